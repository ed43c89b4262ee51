package node

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme"
)

// testSecret is a DH-HMAC-CHAP secret with a right checksum.
const testSecret = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:"

func TestNVMeConfig(t *testing.T) {
	text := `
log_level: info
nvme:
  listen:
    - 127.0.0.1:4420
    - {address: "[::1]:4421", port_id: 7, ana: non-optimized}
  discovery: [127.0.0.1:8009]
  subsystems:
    - nqn: nqn.2026-11.com.example:db
      hosts:
        - nqn.2014-08.org.nvmexpress:uuid:1
        - nqn: nqn.2014-08.org.nvmexpress:uuid:2
          secret: "` + testSecret + `"
          ctrl_secret_file: secret
      namespaces:
        - db
        - {capsule: logs, nsid: 9, read_only: true, snapshot: s}
metrics_listen: 127.0.0.1:9100
`
	got, err := parseConfig("space.yaml", []byte(text))
	want := &NVMeConfig{
		Listen:    []NVMeListen{{Address: "127.0.0.1:4420", ANA: nvme.Optimized}, {Address: "[::1]:4421", PortID: 7, ANA: nvme.NonOptimized}},
		Discovery: []string{"127.0.0.1:8009"},
		Subsystems: []NVMeSubsystem{{NQN: "nqn.2026-11.com.example:db",
			Hosts: []NVMeConfigHost{{NQN: "nqn.2014-08.org.nvmexpress:uuid:1"},
				{NQN: "nqn.2014-08.org.nvmexpress:uuid:2", Secret: testSecret, CtrlSecretFile: "secret"}},
			Namespaces: []NVMeConfigNamespace{{Capsule: "db", NSID: 1}, {Capsule: "logs", NSID: 9, ReadOnly: true, Snapshot: "s"}}}},
	}
	if err != nil || !reflect.DeepEqual(got.nvme, want) || got.values["metrics_listen"] != "127.0.0.1:9100" {
		t.Errorf("%v\n got %+v\nwant %+v", err, got.nvme, want)
	}

	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "secret"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts, err := configHosts(home, want.Subsystems[0].Hosts)
	if err != nil || len(hosts) != 2 || hosts[1].Secret != testSecret || hosts[1].CtrlSecret != testSecret {
		t.Errorf("hosts %+v: %v", hosts, err)
	}
	if err := os.WriteFile(filepath.Join(home, "secret"), []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := configHosts(home, want.Subsystems[0].Hosts); capsule.KindOf(err) != capsule.Invalid || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a file without a secret: %v", err)
	}
}

// A mistake in the section is named with its place, and secrets are not shown.
func TestNVMeConfigMistakes(t *testing.T) {
	for text, says := range map[string]string{
		"nvme: 1\n":                                                                                    "space.yaml:1: nvme wants lines",
		"nvme:\n  lsten: []\n":                                                                         `space.yaml:2: unknown setting "lsten" in nvme`,
		"nvme:\n  listen: x\n":                                                                         "space.yaml:2: listen wants a list",
		"nvme:\n  listen: [x]\n":                                                                       `space.yaml:2: listen: "x" is not valid: want host:port`,
		"nvme:\n  listen: ['h:70000']\n":                                                               "space.yaml:2: listen",
		"nvme:\n  listen:\n  - port_id: 1\n":                                                           "space.yaml:3: listen lacks its address",
		"nvme:\n  listen:\n  - {address: 'a:1', port_id: 0}\n":                                         "space.yaml:3: port_id",
		"nvme:\n  listen:\n  - {address: 'a:1', ana: best}\n":                                          "space.yaml:3: ana: \"best\" is not valid: want inaccessible, non-optimized, optimized",
		"nvme:\n  listen:\n  - a:1\n  - a:1\n":                                                         "space.yaml:4: listen: the address",
		"nvme:\n  discovery: [{}]\n":                                                                   "space.yaml:2: discovery wants one plain value",
		"nvme:\n  subsystems:\n  - namespaces: []\n":                                                   "space.yaml:3: a subsystem lacks its nqn",
		"nvme:\n  subsystems:\n  - nqn: x\n":                                                           "space.yaml:3: nqn: \"x\" is not valid",
		"nvme:\n  subsystems:\n  - nqn: nqn.2014-08.org.nvmexpress.discovery\n":                        "space.yaml:3: nqn",
		"nvme:\n  subsystems:\n  - nqn: nqn.2026-11.a:b\n  - nqn: nqn.2026-11.a:b\n":                   "space.yaml:4: the subsystem nqn.2026-11.a:b is there twice",
		"nvme:\n  subsystems:\n  - nqn: nqn.2026-11.a:b\n    nqn: nqn.2026-11.a:b\n":                   "space.yaml:4: nqn is set twice, first in line 3",
		"nvme:\n  subsystems:\n  - nqn: nqn.2026-11.a:b\n    namespaces: [{nsid: 1}]\n":                "space.yaml:4: a namespace lacks its capsule",
		"nvme:\n  subsystems:\n  - nqn: nqn.2026-11.a:b\n    namespaces: [a, {capsule: b, nsid: 1}]\n": "space.yaml:4: the subsystem has two namespaces with the nsid 1",
		"nvme:\n  subsystems:\n  - nqn: nqn.2026-11.a:b\n    hosts:\n    - {nqn: nqn.2026-11.a:h, secret: hunter2}\n":     "space.yaml:5: secret is no secret",
		"nvme:\n  subsystems:\n  - nqn: nqn.2026-11.a:b\n    hosts:\n    - {nqn: nqn.2026-11.a:h, ctrl_secret_file: f}\n": "space.yaml:5: the host nqn.2026-11.a:h has a ctrl_secret alone",
		"nvme:\n  subsystems:\n  - nqn: nqn.2026-11.a:b\n    hosts: [nqn.2026-11.a:h, nqn.2026-11.a:h]\n":                 "space.yaml:4: the host nqn.2026-11.a:h is there twice",
		"metrics_listen: here\n": "space.yaml:1: metrics_listen",
	} {
		home := t.TempDir()
		if err := os.WriteFile(filepath.Join(home, ConfigName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(home, nil, func(string) string { return "" })
		if capsule.KindOf(err) != capsule.Invalid || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s gives: %v\nwant %q", text, err, says)
		}
	}
}
