package directory

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/identity/identitytest"
	"github.com/spacestore/space/internal/testenv/manualclock"
)

// fabric makes nodes.
type fabric struct {
	t     testing.TB
	clock *manualclock.Clock
	*identitytest.Authority
}

func newFabric(t testing.TB) *fabric {
	clk := manualclock.New()
	return &fabric{t, clk, identitytest.New(t, clk)}
}

func (f *fabric) node() *identity.Node {
	f.t.Helper()
	return f.Node(f.t)
}

// directory returns the directory of a new node that says what it is.
func (f *fabric) directory(area string, relay bool, services ...Service) *Directory {
	f.t.Helper()
	return f.of(f.node(), area, relay, services...)
}

func (f *fabric) of(n *identity.Node, area string, relay bool, services ...Service) *Directory {
	f.t.Helper()
	d := New(Options{Identity: n, Clock: f.clock, Area: area})
	f.set(d, relay, services...)
	return d
}

func (f *fabric) set(d *Directory, relay bool, services ...Service) {
	f.t.Helper()
	if err := d.Set(Record{Name: "node", Relay: relay, Addrs: []Addr{{"tls", "10.0.0.1:7000"}}, Services: services}); err != nil {
		f.t.Fatal(err)
	}
}

// tell has to know all that from knows and may tell it.
func tell(t testing.TB, from, to *Directory) {
	t.Helper()
	for {
		b, err := from.Missing(to.Digest())
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			return
		}
		news, err := to.Merge(b)
		if err != nil {
			t.Fatal(err)
		}
		if !news {
			return
		}
	}
}

var build = Service{Pool: "build", Kind: "artifact-store", Role: "cache"}

func nodes(records []Record) (ids []identity.NodeID) {
	for _, r := range records {
		ids = append(ids, r.Node)
	}
	return ids
}

func TestMembersKnowEachOther(t *testing.T) {
	f := newFabric(t)
	a, b, c := f.directory("x", false), f.directory("x", false, build), f.directory("x", false)
	tell(t, b, c)
	tell(t, c, a) // from hand to hand
	got := a.Find("build", "artifact-store", "cache")
	if len(got) != 1 || got[0].Node != b.id.ID() || got[0].Area != "x" || !slices.Equal(got[0].Addrs, []Addr{{"tls", "10.0.0.1:7000"}}) {
		t.Fatalf("%+v", got)
	}
	if len(a.Find("build", "artifact-store", "")) != 1 || len(a.Find("build", "artifact-store", "other")) != 0 || len(a.Find("other", "artifact-store", "")) != 0 {
		t.Error("roles and pools are told apart wrongly")
	}
	f.set(b, false)
	tell(t, b, a)
	if got := a.Find("build", "artifact-store", ""); len(got) != 0 {
		t.Errorf("the newest record does not count: %+v", got)
	}
	tell(t, c, a) // which has the older one
	if got := a.Find("build", "artifact-store", ""); len(got) != 0 {
		t.Errorf("an older record counts: %+v", got)
	}
}

func TestRecordsEnd(t *testing.T) {
	f := newFabric(t)
	a, b := f.directory("x", false), f.directory("x", false, build)
	tell(t, b, a)
	old, err := b.Missing(f.directory("x", false).Digest())
	if err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(MaxLife - time.Second)
	f.set(a, false)
	if len(a.All()) != 2 {
		t.Error("a record has ended early")
	}
	f.clock.Advance(2 * time.Second)
	if got := a.All(); len(got) != 1 {
		t.Errorf("a record goes on after its end: %+v", got)
	}
	if !a.Expire() || a.Stats().Members != 1 {
		t.Error("what has ended is kept")
	}
	if news, err := a.Merge(old); news || err != nil || len(a.All()) != 1 {
		t.Errorf("what has ended came back: %v, %v", news, err)
	}
}

func TestRevokedNodesVanishAtOnce(t *testing.T) {
	f := newFabric(t)
	a, b := f.directory("x", false), f.directory("x", false, build)
	tell(t, b, a)
	list, err := f.Revoke(b.id.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.id.Revoke(list); err != nil {
		t.Fatal(err)
	}
	if len(a.Find("build", "artifact-store", "")) != 0 || len(a.All()) != 1 {
		t.Error("a revoked node is found")
	}
	if _, ok := a.Node(b.id.ID()); ok {
		t.Error("a revoked node is known")
	}
	f.set(b, false, build)
	if got, err := b.Missing(a.Digest()); err != nil {
		t.Fatal(err)
	} else if news, err := a.Merge(got); news || err != nil {
		t.Errorf("a revoked node's new record: %v, %v", news, err)
	}
	if other, err := a.Missing(f.directory("x", false).Digest()); err != nil || strings.Contains(string(other), "artifact-store") {
		t.Errorf("a revoked node's record is passed on: %v", err)
	}
}

func TestRestartedNodeIsHeard(t *testing.T) {
	f := newFabric(t)
	a := f.directory("x", false)
	n := f.node()
	first := f.of(n, "x", false, build)
	for range 5 {
		f.set(first, false, build)
	}
	tell(t, first, a)
	f.clock.Advance(-time.Minute) // its clock was ahead before
	second := f.of(n, "x", false)
	tell(t, second, a) // a has a higher number
	tell(t, a, second)
	tell(t, second, a)
	if got := a.Find("build", "artifact-store", ""); len(got) != 0 {
		t.Errorf("the earlier life's record counts: %+v", got)
	}
	if r, ok := a.Node(n.ID()); !ok || len(r.Services) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestForgedRecordsAreRefused(t *testing.T) {
	f := newFabric(t)
	a, b, evil := f.directory("x", false), f.directory("x", false, build), f.node()
	tell(t, b, a)
	one := func(signed []byte) []byte {
		var x batch
		x.add(signed)
		return x.b
	}
	of := func(it item) []byte { return one(evil.SignRecord(it.encode())) }
	other := b.members.m[b.id.ID()].item
	other.Serial += 1 << 40
	other.Services = nil
	genuine := b.members.m[b.id.ID()].signed
	changed := slices.Clone(genuine)
	i := strings.Index(string(changed), "artifact-store")
	changed[i] ^= 1
	cert := evil.SignRecord(nil)
	for name, msg := range map[string][]byte{
		"another node's":     of(other),
		"another signature":  one(append(slices.Clone(cert[:len(cert)-64]), genuine[len(genuine)-64:]...)),
		"another fabric's":   one(newFabric(t).node().SignRecord(other.encode())),
		"cut":                one(genuine)[:100],
		"no version":         {},
		"an unknown version": {9},
	} {
		if news, err := a.Merge(msg); news || err == nil {
			t.Errorf("%s: %v, %v", name, news, err)
		}
	}
	f.set(b, false)
	changed2 := slices.Clone(b.members.m[b.id.ID()].signed)
	changed2[len(changed2)-70] ^= 1
	if news, err := a.Merge(one(changed2)); news || err == nil {
		t.Errorf("a changed record: %v, %v", news, err)
	}
	far := item{kindRecord, Summary{Record: Record{Node: evil.ID(), Area: "x", Serial: 1, Expires: f.clock.Now().Add(24 * time.Hour)}}}
	if news, err := a.Merge(of(far)); news || err != nil {
		t.Errorf("a record that never ends: %v, %v", news, err)
	}
	if got := a.Find("build", "artifact-store", ""); len(got) != 1 || got[0].Node != b.id.ID() {
		t.Errorf("%+v", got)
	}
	// What a newer node says besides is no error.
	later := item{77, far.Summary}
	later.Expires = f.clock.Now().Add(time.Minute)
	if news, err := a.Merge(of(later)); news || err != nil {
		t.Errorf("an unknown kind: %v, %v", news, err)
	}
	later.kind, later.Organization = kindRecord, "another one's"
	if news, err := a.Merge(one(evil.SignRecord(append(later.encode(), "more"...)))); !news || err != nil {
		t.Errorf("a record with more in it: %v, %v", news, err)
	}
	// Whose a node is its certificate says, whatever the record does.
	if rec, ok := a.Node(evil.ID()); !ok || rec.Organization != identity.DefaultOrganization {
		t.Errorf("%+v", rec)
	}
}

func TestOtherAreasAreAskedForTheirServices(t *testing.T) {
	f := newFabric(t)
	provider, relay, asker := f.directory("x", false, build), f.directory("x", true), f.directory("y", false)
	tell(t, provider, relay)
	tell(t, relay, asker)
	f.clock.Advance(summaryRest)
	relay.Expire()
	tell(t, relay, asker)
	if got := asker.Find("build", "artifact-store", ""); len(got) != 0 {
		t.Fatalf("records of another area came unasked: %+v", got)
	}
	if _, ok := asker.Node(provider.id.ID()); ok {
		t.Error("another area's node is known")
	}
	where := asker.Where("build", "artifact-store", "cache")
	if len(where) != 1 || where[0].Node != relay.id.ID() || where[0].Area != "x" || where[0].Nodes != 2 || len(where[0].Addrs) != 1 {
		t.Fatalf("%+v", where)
	}
	if r, ok := asker.Node(relay.id.ID()); !ok || len(r.Addrs) != 1 {
		t.Errorf("where to reach the one to ask: %+v", r)
	}
	if len(asker.Where("build", "other", "")) != 0 || len(relay.Where("build", "artifact-store", "")) != 0 {
		t.Error("areas are asked for nothing")
	}
	if news, err := asker.Merge(relay.Answer("build", "artifact-store", "cache")); !news || err != nil {
		t.Fatal(news, err)
	}
	if got := nodes(asker.Find("build", "artifact-store", "cache")); !slices.Equal(got, []identity.NodeID{provider.id.ID()}) {
		t.Errorf("%v", got)
	}
	if b, err := asker.Missing(f.directory("y", false).Digest()); err != nil || strings.Contains(string(b), provider.id.ID().String()) {
		t.Error(err)
	}
	if got := relay.Answer("none", "artifact-store", ""); got != nil {
		t.Errorf("%q", got)
	}
}

func TestNewsAreToldOnce(t *testing.T) {
	f := newFabric(t)
	a, b, c := f.directory("x", false), f.directory("x", false, build), f.directory("x", false)
	news, mark := a.News("x", 0)
	if ok, err := b.Merge(news); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if news, next := a.News("x", mark); news != nil || next != mark {
		t.Error("nothing has changed, and there are news")
	}
	tell(t, c, a)
	news, _ = a.News("x", mark)
	if ok, err := b.Merge(news); !ok || err != nil || len(b.All()) != 3 {
		t.Fatal(ok, err)
	}
	if ok, err := b.Merge(news); ok || err != nil {
		t.Errorf("the same twice is news: %v", err)
	}
	if news, _ := a.News("y", 0); len(news) == 0 || strings.Count(string(news), "10.0.0.1") != 1 {
		t.Error("another area hears of more than this node")
	}
}

func TestOwnRecordIsChecked(t *testing.T) {
	f := newFabric(t)
	d := f.directory("x", false)
	for _, r := range []Record{
		{Name: strings.Repeat("n", MaxName+1)}, {Name: "a\x1b[2J"}, {Name: "\xff"},
		{Addrs: make([]Addr, MaxAddrs+1)}, {Services: make([]Service, maxListed+1)},
		{Services: slices.Repeat([]Service{{strings.Repeat("p", 200), "k", "r"}}, maxListed)},
	} {
		if err := d.Set(r); err == nil {
			t.Errorf("%.60q was said", fmt.Sprint(r))
		}
	}
	if len(d.All()) != 1 {
		t.Error("the record before is gone")
	}
	if _, err := d.Missing([]byte{1, 0}); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// TestOneSummaryPerSigner: a node that speaks for one area after the other has
// one place, and can't take others'.
func TestOneSummaryPerSigner(t *testing.T) {
	f := newFabric(t)
	honest, asker := f.directory("x", true, build), f.directory("y", false)
	tell(t, honest, asker)
	liar := f.node()
	for i := range 10 {
		f.clock.Advance(time.Second)
		d := f.of(liar, []string{"x", fmt.Sprint("made up ", i)}[i%2], true, Service{"fake", "fake", ""})
		tell(t, d, asker)
	}
	signers := map[identity.NodeID]int{}
	for _, s := range asker.Summaries() {
		signers[s.Node]++
	}
	if len(signers) != 2 || signers[honest.id.ID()] != 1 || signers[liar.ID()] != 1 {
		t.Errorf("%v", signers)
	}
	if where := asker.Where("build", "artifact-store", ""); len(where) != 1 || where[0].Node != honest.id.ID() {
		t.Errorf("%+v", where)
	}
	// One whose summary has ended makes room for others of its area.
	f.clock.Advance(summaryLife)
	f.set(asker, false)
	if where := asker.Summaries(); len(where) != 0 {
		t.Errorf("%+v", where)
	}
	for range SummariesPerArea {
		tell(t, f.directory("x", true), asker)
	}
	if n := len(asker.Summary("x")); n != SummariesPerArea {
		t.Errorf("%d summaries", n)
	}
}
