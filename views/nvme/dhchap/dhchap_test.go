package dhchap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
)

const (
	hostNQN   = "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
	subsysNQN = "nqn.2014-08.org.example:disk1"

	// The secret that the specification shows, and one made by nvme-cli.
	specSecret  = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:"
	otherSecret = "DHHC-1:00:MWPqcx1Ug1debg8fPIGpkqbQhLcYUt39k7UWirkblaKEH1kE:"
)

func mustParse(t testing.TB, s string) Secret {
	t.Helper()
	secret, err := ParseSecret(s)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func mustGenerate(t testing.TB, h Hash, size int) Secret {
	t.Helper()
	secret, err := GenerateSecret(h, size)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestSecretsOfOtherToolsAreRead(t *testing.T) {
	for _, s := range []string{
		specSecret,
		strings.Replace(specSecret, ":00:", ":01:", 1),
		strings.Replace(specSecret, ":00:", ":03:", 1), // the hash need not be as long as the key
		otherSecret,
		"DHHC-1:00:ojmm6ISA2DBpZEldEJqJvA1/cAl1wDmeolS0fCIn2qZpK0b7gpx3qu76yHpjlOOXNyjqf0oFYCWxUqkXGN2xEBOVxoA=:",
		"DHHC-1:01:Ei7kUrD7iyrjzXDwIZ666sSPBswUk4wDjSQtodytVB5YiBru:",
	} {
		secret := mustParse(t, s)
		if got := secret.Text(); got != s {
			t.Errorf("%s is written as %s", s, got)
		}
		if p := fmt.Sprintf("%v %+v %#v %s", secret, secret, secret, secret); strings.Contains(p, s[10:20]) {
			t.Errorf("a secret prints itself: %s", p)
		}
	}
}

func TestWrongSecretsAreRefused(t *testing.T) {
	for _, s := range []string{
		// Linux's tests (blktests) have this one to be refused.
		"DHHC-1:00:Jc/My1o0qtLCWRp+sHhAVafdfaS7YQOMYhk9zSmlatobqB8C:",
		"", "DHHC-1:", "DHHC-1:00", "DHHC-1:00:", "DHHC-1:00::", "hunter2",
		specSecret[:len(specSecret)-1],       // no last colon
		specSecret[:len(specSecret)-5] + ":", // cut short
		strings.Replace(specSecret, "DHHC-1", "DHHC-2", 1),
		strings.Replace(specSecret, ":00:", ":04:", 1),
		strings.Replace(specSecret, ":00:", ":0:", 1),
		strings.Replace(specSecret, ":00:", ":1x:", 1),
		strings.Replace(specSecret, "ia6z", "ia6Z", 1), // the checksum finds it
		strings.Replace(specSecret, "ia6z", "ia6\n", 1),
		"DHHC-1:00:" + strings.Repeat("A", 1<<20) + ":",
		specSecret + "x",
	} {
		_, err := ParseSecret(s)
		if capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("%.80q: %v", s, err)
		}
		if len(s) > 20 && err != nil && strings.Contains(err.Error(), s[12:20]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestGeneratedSecrets(t *testing.T) {
	for _, c := range []struct {
		hash       Hash
		size, want int
	}{{None, 0, 32}, {SHA256, 0, 32}, {SHA384, 0, 48}, {SHA512, 0, 64}, {None, 48, 48}, {SHA512, 32, 32}} {
		s := mustGenerate(t, c.hash, c.size)
		back := mustParse(t, s.Text())
		if back.hash != c.hash || len(back.key) != c.want || !bytes.Equal(back.key, s.key) {
			t.Errorf("a secret for %v and %d comes back with %v and %d bytes", c.hash, c.size, back.hash, len(back.key))
		}
	}
	if a, b := mustGenerate(t, None, 0), mustGenerate(t, None, 0); a.Text() == b.Text() {
		t.Error("two secrets are one")
	}
	if _, err := GenerateSecret(None, 33); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("33 bytes: %v", err)
	}
	if _, err := GenerateSecret(4, 0); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("hash 4: %v", err)
	}
}

// The primes are those of RFC 7919, here by their SHA-256 as computed from the
// parameters in OpenSSL.
func TestGroupsAreThoseOfRFC7919(t *testing.T) {
	for g, want := range map[Group]string{
		FFDHE2048: "9cd3b7f336872f46c09428d1bbc19877a4d440512cda8d1c1cf0cd6e33698966",
		FFDHE3072: "0eaf67db3a839156d5013494a5318a772b5697d270d721f37f092efc69ea5a17",
		FFDHE4096: "4648414224ac881b3d0dc59b466f96d06a558278776807797ecf1f66ff397b3e",
		FFDHE6144: "227ac9066b3ddd9e193670cda2388fa884f65ba0cf98b742d1fe77a6687c79c7",
		FFDHE8192: "770b14efaf6f049929c523113b3fa99a8d11dab1b18af3609590122075d19833",
	} {
		p := g.prime().Bytes()
		if sum := sha256.Sum256(p); hex.EncodeToString(sum[:]) != want || len(p) != g.size() {
			t.Errorf("%v's prime is %x", g, p)
		}
	}
}

func TestBothSidesOfAnExchangeShareItsResult(t *testing.T) {
	for g := Null; g.valid(); g++ {
		a, b := newExchange(g), newExchange(g)
		x, ok := a.shared(b.public)
		y, ok2 := b.shared(a.public)
		if !ok || !ok2 || !bytes.Equal(x, y) || len(x) != g.size() {
			t.Errorf("%v: %d and %d bytes that differ, or refused", g, len(x), len(y))
		}
		if g != Null && bytes.Equal(a.public, b.public) {
			t.Errorf("%v: an exponent was used twice", g)
		}
	}
}

func TestPublicValuesThatGiveTheResultAwayAreRefused(t *testing.T) {
	x := newExchange(FFDHE2048)
	value := func(low byte) []byte {
		b := make([]byte, FFDHE2048.size())
		b[len(b)-1] = low
		return b
	}
	p := FFDHE2048.prime().Bytes()
	last := bytes.Clone(p)
	last[len(last)-1]--
	over := bytes.Repeat([]byte{0xff}, len(p))
	for name, v := range map[string][]byte{
		"nothing": nil, "zero": value(0), "one": value(1), "p-1": last, "p": p, "above p": over,
		"too short": value(2)[1:], "too long": append(value(2), 0),
	} {
		if _, ok := x.shared(v); ok {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, ok := x.shared(value(2)); !ok {
		t.Error("the generator is refused")
	}
	null := newExchange(Null)
	if _, ok := null.shared([]byte{2}); ok {
		t.Error("without a group a value is accepted")
	}
}

// The expected values were computed apart from this package (Python's hmac),
// from the formulas of the specification.
func TestResponsesAreThoseOfTheSpecification(t *testing.T) {
	for _, c := range knownResponses {
		secret := mustParse(t, c.secret)
		challenge := make([]byte, c.hash.Size())
		for i := range challenge {
			challenge[i] = byte(i)
		}
		tr := transcript{hash: c.hash, challenge: challenge, seq: 0x01020304, tid: 0x0506}
		if c.shared {
			tr.shared = bytes.Repeat([]byte{0xa5}, 256)
		}
		if got := hex.EncodeToString(tr.hostResponse(secret, hostNQN, subsysNQN)); got != c.host {
			t.Errorf("%v, %v, exchange %v: host says %s, not %s", c.hash, secret, c.shared, got, c.host)
		}
		if got := hex.EncodeToString(tr.controllerResponse(secret, hostNQN, subsysNQN)); got != c.controller {
			t.Errorf("%v, %v, exchange %v: controller says %s, not %s", c.hash, secret, c.shared, got, c.controller)
		}
	}
}

// converse carries messages between the two until they are done, and returns
// what the host says of it.
func converse(t testing.TB, h *Host, c *Controller) error {
	t.Helper()
	c.Send(h.Start())
	for range 4 {
		m, err := c.Receive(MaxMessage)
		if err != nil {
			t.Fatalf("nothing to receive: %v", err)
		}
		// The host's buffer is longer than the message.
		reply, done, err := h.Next(append(m, make([]byte, 64)...))
		if reply != nil {
			c.Send(reply)
		}
		if done || err != nil {
			return err
		}
	}
	t.Fatal("no end")
	return nil
}

func roles(t testing.TB, host, controller Config) (*Host, *Controller) {
	t.Helper()
	for _, c := range []*Config{&host, &controller} {
		c.HostNQN, c.SubsysNQN = hostNQN, subsysNQN
	}
	h, err := NewHost(host, 7)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewController(controller)
	if err != nil {
		t.Fatal(err)
	}
	return h, c
}

func TestAuthenticationSucceedsWithTheRightSecrets(t *testing.T) {
	for hash := SHA256; hash <= SHA512; hash++ {
		for g := Null; g.valid(); g++ {
			for _, both := range []bool{false, true} {
				if testing.Short() && g > FFDHE3072 {
					continue
				}
				cfg := Config{HostSecret: mustGenerate(t, hash, 0), Hashes: []Hash{hash}, Groups: []Group{g}}
				if both {
					cfg.ControllerSecret = mustGenerate(t, None, 0)
				}
				h, c := roles(t, cfg, cfg)
				if err := converse(t, h, c); err != nil || !c.Authenticated() || c.Err() != nil || c.Over() {
					t.Errorf("%v, %v, both ways %v: host says %v, controller %v (authenticated: %v)",
						hash, g, both, err, c.Err(), c.Authenticated())
				}
			}
		}
	}
}

func TestAuthenticationFailsWithTheReason(t *testing.T) {
	right, wrong := mustParse(t, specSecret), mustParse(t, otherSecret)
	good := Config{HostSecret: right, Groups: []Group{Null}}
	bidirectional := good
	bidirectional.ControllerSecret = wrong
	with := func(c Config, f func(*Config)) Config { f(&c); return c }
	for name, c := range map[string]struct {
		host, controller Config
		want             Reason
	}{
		"host's secret": {with(good, func(c *Config) { c.HostSecret = wrong }), good, Failed},
		"same key, another transformation": {
			with(good, func(c *Config) { c.HostSecret = Secret{SHA256, right.key} }), good, Failed},
		"controller's secret":            {bidirectional, with(bidirectional, func(c *Config) { c.ControllerSecret = right }), Failed},
		"controller cannot prove itself": {bidirectional, good, Failed},
		"no common hash":                 {with(good, func(c *Config) { c.Hashes = []Hash{SHA256} }), with(good, func(c *Config) { c.Hashes = []Hash{SHA512} }), HashUnusable},
		"no common group":                {good, with(good, func(c *Config) { c.Groups = []Group{FFDHE2048} }), GroupUnusable},
	} {
		h, ctl := roles(t, c.host, c.controller)
		err := converse(t, h, ctl)
		var f *FailureError
		if !errors.As(err, &f) || f.Reason != c.want || capsule.KindOf(err) != capsule.Denied {
			t.Errorf("%s: host says %v, not %v", name, err, c.want)
		}
		if ctl.Authenticated() || ctl.Err() == nil || !ctl.Over() {
			t.Errorf("%s: controller: authenticated %v, error %v, over %v", name, ctl.Authenticated(), ctl.Err(), ctl.Over())
		}
		if _, err := ctl.Receive(MaxMessage); !errors.Is(err, ErrSequence) {
			t.Errorf("%s: after the end there is something to receive: %v", name, err)
		}
	}
}

func TestControllerTakesMessagesInTheirOrderOnly(t *testing.T) {
	cfg := Config{HostSecret: mustParse(t, specSecret), Groups: []Group{Null}}
	reply := Reply{Transaction: 7, Response: make([]byte, 32)}
	success := Success2{Transaction: 7}
	strange := Challenge{Transaction: 7, Hash: SHA256, Value: make([]byte, 32)}
	concat := Negotiate{Transaction: 7, SecureChannel: 2, Hashes: allHashes, Groups: allGroups}
	for name, c := range map[string]struct {
		m    []byte
		want Reason
	}{
		"reply first":    {reply.Append(nil), IncorrectMessage},
		"success first":  {success.Append(nil), IncorrectMessage},
		"a challenge":    {strange.Append(nil), IncorrectMessage},
		"secure channel": {concat.Append(nil), ConcatMismatch},
		"nothing":        {nil, IncorrectPayload},
		"unknown type":   {[]byte{9, 9, 0, 0, 0, 0, 0, 0}, IncorrectMessage},
	} {
		h, ctl := roles(t, cfg, cfg)
		ctl.Send(c.m)
		m, err := ctl.Receive(MaxMessage)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		h.Start()
		_, _, err = h.Next(m)
		var f *FailureError
		if !errors.As(err, &f) || !f.Peer || f.Reason != c.want || !ctl.Over() || ctl.Authenticated() {
			t.Errorf("%s: %v, not %v", name, err, c.want)
		}
		// Nothing helps after that.
		ctl.Send(h.Start())
		if _, err := ctl.Receive(MaxMessage); !errors.Is(err, ErrSequence) || ctl.Authenticated() {
			t.Errorf("%s: a failed controller goes on: %v", name, err)
		}
	}
}

func TestReplayedReplyFails(t *testing.T) {
	cfg := Config{HostSecret: mustParse(t, specSecret), Groups: []Group{Null}}
	h, ctl := roles(t, cfg, cfg)
	start := h.Start()
	ctl.Send(start)
	m, err := ctl.Receive(MaxMessage)
	if err != nil {
		t.Fatal(err)
	}
	reply, _, err := h.Next(m)
	if err != nil {
		t.Fatal(err)
	}
	ctl.Send(start) // anew: another challenge
	if _, err := ctl.Receive(MaxMessage); err != nil {
		t.Fatal(err)
	}
	ctl.Send(reply)
	if _, err := ctl.Receive(MaxMessage); err != nil || ctl.Authenticated() || !ctl.Over() {
		t.Fatalf("the reply to another challenge: authenticated %v, %v", ctl.Authenticated(), err)
	}
}

func TestReauthenticationKeepsTheHostUnlessItFails(t *testing.T) {
	cfg := Config{HostSecret: mustParse(t, specSecret), Groups: []Group{Null}}
	h, ctl := roles(t, cfg, cfg)
	for range 3 * maxAttempts { // a host that succeeds may come as often as it likes
		if err := converse(t, h, ctl); err != nil {
			t.Fatal(err)
		}
	}
	ctl.Send(h.Start())
	if !ctl.Authenticated() {
		t.Error("the beginning of another authentication throws the host out")
	}
	if _, err := ctl.Receive(MaxMessage); err != nil {
		t.Fatal(err)
	}
	bad := Reply{Transaction: 7, Response: make([]byte, 32)}
	ctl.Send(bad.Append(nil))
	if ctl.Authenticated() {
		t.Error("a host that fails to authenticate again stays")
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	cfg := Config{HostSecret: mustParse(t, specSecret), Groups: []Group{Null}}
	h, ctl := roles(t, cfg, cfg)
	n := 0
	for ; !ctl.Over() && n < 100; n++ {
		ctl.Send(h.Start())
		if _, err := ctl.Receive(MaxMessage); err != nil {
			t.Fatal(err)
		}
	}
	if n > maxAttempts+1 {
		t.Errorf("a host began %d times without an end", n)
	}
}

func TestShortBuffersAreTheCommandsFault(t *testing.T) {
	cfg := Config{HostSecret: mustParse(t, specSecret), Groups: []Group{FFDHE2048}}
	h, ctl := roles(t, cfg, cfg)
	if _, err := ctl.Receive(MaxMessage); !errors.Is(err, ErrSequence) {
		t.Errorf("before anything: %v", err)
	}
	ctl.Send(h.Start())
	if _, err := ctl.Receive(100); !errors.Is(err, ErrShort) {
		t.Errorf("100 bytes: %v", err)
	}
	m, err := ctl.Receive(16 + 32 + 256)
	if err != nil || len(m) != 16+32+256 {
		t.Errorf("just enough: %d bytes, %v", len(m), err)
	}
}

func TestHostAcceptsOnlyWhatItOffered(t *testing.T) {
	cfg := Config{HostSecret: mustParse(t, specSecret), Hashes: []Hash{SHA512}, Groups: []Group{FFDHE2048}}
	for name, c := range map[string]struct {
		m    Challenge
		want Reason
	}{
		"weaker hash":       {Challenge{Transaction: 7, Hash: SHA256, Value: make([]byte, 32), Group: FFDHE2048, Public: FFDHE2048.generator()}, HashUnusable},
		"no exchange":       {Challenge{Transaction: 7, Hash: SHA512, Value: make([]byte, 64)}, GroupUnusable},
		"public value zero": {Challenge{Transaction: 7, Hash: SHA512, Value: make([]byte, 64), Group: FFDHE2048, Public: make([]byte, 256)}, GroupUnusable},
		"transaction":       {Challenge{Transaction: 8, Hash: SHA512, Value: make([]byte, 64), Group: FFDHE2048, Public: FFDHE2048.generator()}, IncorrectMessage},
	} {
		h, _ := roles(t, cfg, cfg)
		h.Start()
		reply, done, err := h.Next(c.m.Append(nil))
		var f *FailureError
		if done || !errors.As(err, &f) || f.Reason != c.want {
			t.Errorf("%s: %v, not %v", name, err, c.want)
		}
		m, perr := Parse(reply)
		if got, ok := m.(*Failure); perr != nil || !ok || !got.Host || got.Reason != c.want || got.Transaction != 7 {
			t.Errorf("%s: the controller is told %+v, %v", name, m, perr)
		}
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	s := mustParse(t, specSecret)
	for name, cfg := range map[string]Config{
		"no secret": {}, "no hashes": {HostSecret: s, Hashes: []Hash{}}, "bad hash": {HostSecret: s, Hashes: []Hash{9}},
		"no groups": {HostSecret: s, Groups: []Group{}}, "bad group": {HostSecret: s, Groups: []Group{9}},
	} {
		if _, err := NewHost(cfg, 1); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("host, %s: %v", name, err)
		}
		if _, err := NewController(cfg); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("controller, %s: %v", name, err)
		}
	}
	if h, err := ParseHash("sha384"); h != SHA384 || err != nil {
		t.Error(h, err)
	}
	if g, err := ParseGroup("ffdhe6144"); g != FFDHE6144 || err != nil {
		t.Error(g, err)
	}
	if _, err := ParseHash("md5"); capsule.KindOf(err) != capsule.Invalid {
		t.Error(err)
	}
	if _, err := ParseGroup("modp1024"); capsule.KindOf(err) != capsule.Invalid {
		t.Error(err)
	}
}

// seeds are one of each message, and some that lie about their lengths.
func seeds() [][]byte {
	n := Negotiate{Transaction: 7, Hashes: allHashes, Groups: allGroups}
	c := Challenge{7, SHA384, FFDHE2048, 5, make([]byte, 48), make([]byte, 256)}
	r := Reply{7, 6, make([]byte, 48), make([]byte, 48), make([]byte, 256)}
	s1 := Success1{7, 48, make([]byte, 48)}
	s2 := Success2{7}
	f := Failure{7, true, HashUnusable}
	all := [][]byte{n.Append(nil), c.Append(nil), r.Append(nil), s1.Append(nil), s2.Append(nil), f.Append(nil)}
	for _, m := range all[:5] {
		long := bytes.Clone(m)
		long[6], long[7], long[10], long[11] = 0xff, 0xff, 0xff, 0xff
		all = append(all, long, m[:len(m)-1])
	}
	return all
}

// Any bytes are a message or refused, and a message that is written and read
// again is the same.
func FuzzParse(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := Parse(p)
		if err != nil {
			var fail *FailureError
			if !errors.As(err, &fail) || m != nil {
				t.Fatalf("%v with %v", err, m)
			}
			return
		}
		b := m.(interface{ Append([]byte) []byte }).Append(nil)
		again, err := Parse(b)
		if err != nil || fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", m) {
			t.Fatalf("%+v comes back as %+v, %v", m, again, err)
		}
	})
}

func FuzzParseSecret(f *testing.F) {
	f.Add(specSecret)
	f.Add("DHHC-1:03:" + strings.Repeat("A", 92) + ":")
	f.Fuzz(func(t *testing.T, s string) {
		if secret, err := ParseSecret(s); err == nil && secret.Text() != s {
			t.Fatalf("%q is written as %q", s, secret.Text())
		}
	})
}

// No sequence of messages authenticates a host that lacks the secret, or breaks
// the roles.
func FuzzRoles(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		cfg := Config{HostSecret: mustParse(t, specSecret), Groups: []Group{Null}}
		h, ctl := roles(t, cfg, cfg)
		for _, m := range [][]byte{a, b, h.Start(), a, b} {
			ctl.Send(m)
			ctl.Receive(MaxMessage)
			if ctl.Authenticated() {
				t.Fatal("authenticated without the secret")
			}
			if _, done, _ := h.Next(m); done {
				// Without a controller's secret the host asks for no proof, but a
				// challenge has to come first.
				return
			}
		}
	})
}

func BenchmarkExchange(b *testing.B) {
	for g := FFDHE2048; g.valid(); g++ {
		b.Run(g.String(), func(b *testing.B) {
			peer := newExchange(g)
			for b.Loop() {
				x := newExchange(g)
				if _, ok := x.shared(peer.public); !ok {
					b.Fatal("refused")
				}
			}
		})
	}
}
