package forward

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func rules(t testing.TB, texts ...string) (rs Rules) {
	t.Helper()
	for _, s := range texts {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		if r.String() != s {
			t.Errorf("rule %q says that it is %q", s, r)
		}
		rs = append(rs, r)
	}
	return rs
}

func TestRules(t *testing.T) {
	rs := rules(t, "db.internal:5432", "*.lab.example:8000-8099", "10.0.0.0/8:22", "[fd00::/8]:*", "192.0.2.1:80", "unix:/run/db.sock")
	for target, want := range map[string]bool{
		"db.internal:5432":           true,
		"DB.Internal.:5432":          true,
		"db.internal:5433":           false,
		"xdb.internal:5432":          false,
		"a.lab.example:8000":         true,
		"a.b.lab.example:8099":       true,
		"a.lab.example:8100":         false,
		"lab.example:8000":           false,
		"evil-lab.example:8000":      false,
		"10.1.2.3:22":                true,
		"10.1.2.3:23":                false,
		"11.1.2.3:22":                false,
		"[::ffff:10.1.2.3]:22":       true,
		"[::ffff:11.1.2.3]:22":       false,
		"[fd00::1]:443":              true,
		"[fe80::1]:443":              false,
		"[fd00::1%eth0]:443":         true,
		"192.0.2.1:80":               true,
		"192.0.2.2:80":               false,
		"unix:/run/db.sock":          true,
		"unix:/run/../run/db.sock":   false,
		"unix:/run/db.sock.attacker": false,
	} {
		network, addr, err := parseTarget(target)
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		if check, ok := rs.match(network, addr); (ok && check == nil) != want { // with a check, addresses decide
			t.Errorf("%s: %v, want %v", target, ok, want)
		}
	}
}

// TestRulesOfNames has a rule with addresses allow a name only for those of its
// addresses.
func TestRulesOfNames(t *testing.T) {
	check, ok := rules(t, "10.0.0.0/8:22").match("tcp", "some.name:22")
	if !ok || check == nil {
		t.Fatal("the name can't be asked for")
	}
	if err := check("tcp4", "10.1.2.3:22", nil); err != nil {
		t.Error(err)
	}
	for _, addr := range []string{"127.0.0.1:22", "[::1]:22", "nonsense"} {
		if err := check("tcp", addr, nil); err == nil {
			t.Errorf("the name may stand for %s", addr)
		}
	}
}

func TestBadRules(t *testing.T) {
	for _, s := range []string{"", ":", "host", "host:", "host:0", "host:65536", "host:9-8", "host:1-", ":80", "10.0.0.0/33:1",
		"fd00::1:80", "[fd00::1:80", "*:80", "a*b:80", "*.:80", "unix:", "host:-1", "host:+5"} {
		if r, err := ParseRule(s); err == nil {
			t.Errorf("%q is a rule: %+v", s, r)
		}
	}
}

func TestProxyHeaders(t *testing.T) {
	for _, c := range []struct{ source, target, want string }{
		{"", "10.0.0.2:22", "\x20\x00\x00\x00"},
		{"192.0.2.1:4660", "10.0.0.2:22", "\x21\x11\x00\x0c\xc0\x00\x02\x01\x0a\x00\x00\x02\x12\x34\x00\x16"},
		{"[::ffff:192.0.2.1]:4660", "", "\x21\x11\x00\x0c\xc0\x00\x02\x01\x00\x00\x00\x00\x12\x34\x00\x00"},
		{"[fd00::1]:4660", "10.0.0.2:22", "\x21\x21\x00\x24\xfd" + strings.Repeat("\x00", 14) + "\x01" + strings.Repeat("\x00", 16) + "\x12\x34\x00\x16"},
	} {
		source, _ := netip.ParseAddrPort(c.source)
		target, _ := netip.ParseAddrPort(c.target)
		if got := string(proxyHeader(source, target)); got != proxySignature+c.want {
			t.Errorf("from %q to %q: %q", c.source, c.target, got)
		}
	}
}

func FuzzHeader(f *testing.F) {
	for _, h := range []header{{}, {target: "host:80"}, {"unix:/x", netip.MustParseAddrPort("192.0.2.1:5")}, {"a", netip.MustParseAddrPort("[fe80::1%x]:5")}} {
		b, err := h.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, again header
		if h.decode(b) != nil {
			return
		}
		e, err := h.encode()
		if err != nil {
			return // longer than this package makes them
		}
		if err := again.decode(e); err != nil || !reflect.DeepEqual(h, again) {
			t.Errorf("%+v becomes %+v, %v", h, again, err)
		}
	})
}

func FuzzRule(f *testing.F) {
	for _, s := range []string{"db.internal:5432", "*.lab.example:8000-8099", "10.0.0.0/8:22", "[fd00::/8]:*", "unix:/x", "a:1-2-3", "[[::1]:5"} {
		f.Add(s, "host:80")
	}
	f.Fuzz(func(t *testing.T, rule, target string) {
		r, err := ParseRule(rule)
		if err != nil {
			return
		}
		network, addr, err := parseTarget(target)
		if err != nil {
			return
		}
		if _, ok := (Rules{r}).match(network, addr); ok && network == "unix" && rule != target {
			t.Errorf("rule %q allows %q", rule, target)
		}
	})
}
