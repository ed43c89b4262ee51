package node

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spacestore/space/fabric/admit"
	"github.com/spacestore/space/internal/control"
)

func TestFabricConfig(t *testing.T) {
	home := t.TempDir()
	text := `
fabric:
  name: db1
  area: berlin
  organization: ops
  listen:
    - tls://:7420
    - {address: "https://:443", advertise: https://relay.example/fabric, cert: web.pem, key: /etc/web.key}
  seeds: [tls://10.0.0.1:7420, "https://relay.example"]
  relay: true
  https_web: true
  limits:
    node: {sessions: 10, tunnels: 100, streams: 1000, window: 1GiB, rate: 10MiB, burst: 1MiB}
    named: [{scope: pool, name: build, streams: 5}]
  expose:
    - {pool: ssh, address: "127.0.0.1:22"}
    - {pool: lan, allow: ["10.0.0.0/8:443"], peers: ["00000000000000000000000000000001"], proxy_protocol: true, connections: 7}
  forward:
    - {listen: "127.0.0.1:2222", pool: ssh, bulk: true, target: "10.0.0.7:22"}
  vpn:
    - {exit: true, network: 10.77.0.0/24, device: fabric0, mtu: 1400}
    - {routes: [10.0.0.0/8], bypass: [10.1.0.0/16]}
  share:
    - {name: images, path: srv/images, skip_unreadable: true}
  accept:
    - {into: srv/in, from: ["00000000000000000000000000000001"], max_size: 1GiB}
`
	if err := os.WriteFile(filepath.Join(home, ConfigName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(flags, env map[string]string) (*FabricConfig, error) {
		c, err := LoadConfig(home, flags, func(name string) string { return env[name] })
		return c.Fabric, err
	}
	got, err := load(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &FabricConfig{Section: true, Name: "db1", Area: "berlin", Organization: "ops", Relay: true, HTTPSWeb: true,
		Listen: []FabricListen{{Carrier: "tls", Address: ":7420"}, {Carrier: "https", Address: ":443", Advertise: "https://relay.example/fabric",
			Cert: filepath.Join(home, "web.pem"), Key: "/etc/web.key"}},
		Seeds: []string{"tls://10.0.0.1:7420", "https://relay.example"},
		Limits: admit.Config{Each: [admit.Scopes]admit.Limit{{Sessions: 10, Tunnels: 100, Streams: 1000, Window: 1 << 30, Rate: 10 << 20, Burst: 1 << 20}},
			Named: map[admit.Key]admit.Limit{{Scope: admit.Pool, Name: "build"}: {Streams: 5}}},
		Expose: []control.ExposeRequest{{Pool: "ssh", Address: "127.0.0.1:22"},
			{Pool: "lan", Allow: []string{"10.0.0.0/8:443"}, Peers: []string{"00000000000000000000000000000001"}, ProxyProtocol: true, Connections: 7}},
		Forward: []control.ForwardRequest{{Listen: "127.0.0.1:2222", Pool: "ssh", Bulk: true, Target: "10.0.0.7:22"}},
		VPN: []control.VPNRequest{{Exit: true, Networks: []string{"10.77.0.0/24"}, Device: "fabric0", MTU: 1400},
			{Routes: []string{"10.0.0.0/8"}, Bypass: []string{"10.1.0.0/16"}}},
		Share:  []control.SendRequest{{Name: "images", Path: filepath.Join(home, "srv/images"), SkipUnreadable: true}},
		Accept: []control.AcceptRequest{{Into: filepath.Join(home, "srv/in"), From: []string{"00000000000000000000000000000001"}, MaxSize: 1 << 30}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}

	// Flags win over the environment, and both over the file.
	got, err = load(map[string]string{"fabric_listen": "quic://127.0.0.1:1,tls://127.0.0.1:2", "fabric_advertise": "quic://a:1,tls://b:2", "fabric_relay": "false"},
		map[string]string{"SPACE_FABRIC_LISTEN": "none", "SPACE_FABRIC_NAME": "env", "SPACE_FABRIC_SEEDS": "tls://c:3"})
	if err != nil || got.Name != "env" || got.Relay || len(got.Seeds) != 1 || len(got.Listen) != 2 || got.Listen[1].Advertise != "tls://b:2" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = load(nil, map[string]string{"SPACE_FABRIC_LISTEN": "none"}); err != nil || len(got.orDefault().Listen) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err = load(map[string]string{"fabric_relay": "maybe"}, nil); err == nil || !strings.Contains(err.Error(), "--relay") {
		t.Errorf("a wrong flag: %v", err)
	}
	if d := (*FabricConfig)(nil).orDefault(); len(d.Listen) != 1 || d.Section {
		t.Errorf("where nothing is said: %+v", d)
	}
}

// TestFabricMistakes has settings that can't work, and wants to be told in which
// line.
func TestFabricMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"accept:\n    - {into: /in}":                                              ":3: accept wants a directory (into) and the nodes that may send something (from)",
		"accept:\n    - {into: /in, from: [db1]}":                                 ":3: from: \"db1\" is not valid: \"db1\" is no node's ID; `spacectl fabric nodes` shows them",
		"vpn:\n    - {exit: true, network: 10.0.0.0/31}":                          ":3: vpn: addresses can't be handed out of 10.0.0.0/31",
		"vpn:\n    - {exit: true, network: [\"fd00::/64\", \"fd01::/64\"]}":       ":3: vpn: an exit hands out addresses of one network of IPv6",
		"vpn:\n    - {exit: true, network: 10.0.0.0/33}":                          ":3: network:",
		"vpn:\n    - {exit: true, network: \"fd00::/64\", mtu: 1000}":             ":3: vpn: an MTU of 1000; IPv6 takes 1280",
		"vpn:\n    - {routes: [\"::ffff:10.0.0.0/104\"]}":                         ":3: vpn: ::ffff:10.0.0.0/104 is no network",
		"limits:\n    pool:\n      window: 1KiB":                                  ":4: window: \"1KiB\" is not valid: it has to be at least 64KiB",
		"limits:\n    node: {rate: 0}":                                            ":3: rate:",
		"limits:\n    node: {streems: 1}":                                         ":3: unknown setting \"streems\"",
		"listen:\n    - tcp://:1":                                                 ":3: listen:",
		"forward:\n    - {pool: db}":                                              ":3: forward wants a listen and a pool",
		"expose:\n    - {pool: db, address: nowhere}":                             ":3: expose:",
		"expose:\n    - {pool: db, address: \"127.0.0.1:22\", peers: [somebody]}": ":3: peers:",
	} {
		home := t.TempDir()
		text = "fabric:\n  " + text
		if err := os.WriteFile(filepath.Join(home, ConfigName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(home, nil, func(string) string { return "" })
		if err == nil || !strings.Contains(err.Error(), ConfigName+want) {
			t.Errorf("%s\nis answered by %v\nwant %s", text, err, want)
		}
	}
}

func TestFabricAdvertised(t *testing.T) {
	for _, one := range []struct {
		l    FabricListen
		want string
	}{
		{FabricListen{Carrier: "tls", Address: "10.0.0.1:7420"}, "tls://10.0.0.1:7420"},
		{FabricListen{Carrier: "quic", Address: "[fd00::1]:7420"}, "quic://[fd00::1]:7420"},
		{FabricListen{Carrier: "https", Address: ":443", Advertise: "https://a/b"}, "https://a/b"},
		{FabricListen{Carrier: "tls", Address: "127.0.0.1:0"}, ""},
	} {
		if got := one.l.advertised(); got != one.want {
			t.Errorf("%+v: %q, want %q", one.l, got, one.want)
		}
	}
	if got := (FabricListen{Carrier: "tls", Address: ":7420"}).advertised(); strings.Contains(got, "[::]") || !strings.HasSuffix(got, ":7420") {
		t.Errorf("of all addresses %q is advertised", got)
	}
}
