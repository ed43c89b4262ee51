package directory

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/testenv/seed"
)

// network carries messages between directories, badly.
type network struct {
	t     *testing.T
	f     *fabric
	rng   *rand.Rand
	all   []*Directory
	marks map[[2]*Directory]uint64
	apart func(a, b *Directory) bool // no message gets from a to b
	loss  float64
	wire  []message
	sent  int // bytes
}

type message struct {
	from, to *Directory
	digest   bool
	b        []byte
}

func (n *network) send(m message) {
	n.sent += len(m.b)
	for range 1 + n.rng.IntN(2)*n.rng.IntN(2) { // a quarter goes twice
		if n.rng.Float64() >= n.loss {
			n.wire = append(n.wire, m)
		}
	}
}

// round has each node talk to one that it knows, and delivers in any order.
func (n *network) round() {
	n.f.clock.Advance(2 * time.Second)
	for _, d := range n.all {
		d.Expire()
		peer := n.all[n.rng.IntN(len(n.all))]
		if peer == d {
			continue
		}
		n.send(message{d, peer, true, d.Digest()})
		if n.rng.IntN(2) == 0 {
			pair := [2]*Directory{d, peer}
			news, mark := d.News(peer.area, n.marks[pair])
			n.marks[pair] = mark
			if news != nil {
				n.send(message{d, peer, false, news})
			}
		}
	}
	// Some messages stay for later rounds.
	n.rng.Shuffle(len(n.wire), func(i, j int) { n.wire[i], n.wire[j] = n.wire[j], n.wire[i] })
	late := len(n.wire) / 8
	now := n.wire[late:]
	n.wire = slices.Clone(n.wire[:late])
	for _, m := range now {
		if n.apart != nil && n.apart(m.from, m.to) {
			continue
		}
		if !m.digest {
			if _, err := m.to.Merge(m.b); err != nil {
				n.t.Fatal(err)
			}
			continue
		}
		answer, err := m.to.Missing(m.b)
		if err != nil {
			n.t.Fatal(err)
		}
		if answer != nil {
			n.send(message{m.to, m.from, false, answer})
		}
	}
}

// until plays rounds until something holds.
func (n *network) until(what string, holds func() bool) {
	n.t.Helper()
	for range 150 {
		if n.round(); holds() {
			return
		}
	}
	n.t.Fatalf("%s: not after five minutes", what)
}

// agree reports whether the nodes of an area know all of each other, and
// nobody else.
func agree(all []*Directory) bool {
	want := map[string]map[identity.NodeID]uint64{}
	for _, d := range all {
		if want[d.area] == nil {
			want[d.area] = map[identity.NodeID]uint64{}
		}
		own, _ := d.Node(d.id.ID())
		want[d.area][own.Node] = own.Serial
	}
	for _, d := range all {
		got := map[identity.NodeID]uint64{}
		for _, r := range d.All() {
			got[r.Node] = r.Serial
		}
		maps.DeleteFunc(got, func(id identity.NodeID, _ uint64) bool { return d.guests.m[id] != nil })
		if !maps.Equal(got, want[d.area]) {
			return false
		}
	}
	return true
}

// TestConvergence: with messages lost, doubled, late and out of order, all
// nodes of an area come to know the same; through a partition, changes, a
// restart, and the end of a node.
func TestConvergence(t *testing.T) {
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			f := newFabric(t)
			n := &network{t: t, f: f, rng: seed.Rand(t), marks: map[[2]*Directory]uint64{}, loss: 0.3}
			for i := range 15 {
				n.all = append(n.all, f.directory([]string{"x", "y", "x"}[i%3], i%4 == 0))
			}
			n.until("the beginning", func() bool { return agree(n.all) })

			half := map[*Directory]bool{}
			for _, d := range n.all[:7] {
				half[d] = true
			}
			n.apart = func(a, b *Directory) bool { return half[a] != half[b] }
			for _, d := range n.all {
				f.set(d, d.members.m[d.id.ID()].Relay, build)
			}
			for range 20 {
				n.round()
			}
			if agree(n.all) {
				t.Error("the partition is none")
			}
			n.apart = nil
			n.until("the partition's end", func() bool { return agree(n.all) })

			// One restarts, with a clock that was ahead before; one is gone.
			again := f.of(n.all[3].id, n.all[3].area, false)
			again.serial += 1 << 50
			f.set(again, false)
			n.all[3] = again
			n.until("a clock that is ahead", func() bool { return agree(n.all) })
			again = f.of(n.all[3].id, n.all[3].area, false, build)
			n.all[3] = again
			n.until("a restart", func() bool { return agree(n.all) })

			gone := n.all[14].id.ID()
			n.all = n.all[:14]
			n.wire = slices.DeleteFunc(n.wire, func(m message) bool { return m.to.id.ID() == gone })
			f.clock.Advance(MaxLife - 2*time.Minute)
			for _, d := range n.all {
				f.set(d, d.members.m[d.id.ID()].Relay, build)
			}
			n.until("the end of a node", func() bool { return agree(n.all) })
			for _, d := range n.all {
				if _, ok := d.Node(gone); ok && d.area == "x" {
					t.Error("a node that is gone is known")
				}
			}
			n.until("both areas' summaries", func() bool {
				return !slices.ContainsFunc(n.all, func(d *Directory) bool { return len(d.Where("build", "artifact-store", "")) == 0 })
			})
		})
	}
}

// TestSummariesOfLowestSigners: however many nodes of an area pass links on,
// everybody keeps the summaries of the same few, and nobody sends the others'.
func TestSummariesOfLowestSigners(t *testing.T) {
	f := newFabric(t)
	n := &network{t: t, f: f, rng: seed.Rand(t), marks: map[[2]*Directory]uint64{}}
	var relays []identity.NodeID
	for i := range 12 {
		n.all = append(n.all, f.directory([]string{"x", "y"}[i/8], i < 8))
		if i < 8 {
			relays = append(relays, n.all[i].id.ID())
		}
	}
	slices.SortFunc(relays, func(a, b identity.NodeID) int { return slices.Compare(a[:], b[:]) })
	signers := func(d *Directory) (ids []identity.NodeID) {
		for _, s := range d.Summary("x") {
			ids = append(ids, s.Node)
		}
		return ids
	}
	n.until("the lowest signers", func() bool {
		return !slices.ContainsFunc(n.all, func(d *Directory) bool { return !slices.Equal(signers(d), relays[:SummariesPerArea]) })
	})
	for _, a := range n.all {
		for _, b := range n.all {
			tell(t, a, b)
			if got, err := a.Missing(b.Digest()); got != nil || err != nil {
				t.Errorf("what is not kept is sent: %d bytes, %v", len(got), err)
			}
		}
	}
}

// TestHundredAreas: what a node holds of 10,000 nodes.
func TestHundredAreas(t *testing.T) {
	const areas, size = 100, 100
	f := newFabric(t)
	var ids []*identity.Node // in areas other than the first one they are the same, under other relays
	for range size {
		ids = append(ids, f.node())
	}
	me, neighbour := f.of(ids[0], "area 0", false), f.directory("area 0", false)
	var all []*Directory // that pass links on
	for a := range areas {
		area := fmt.Sprintf("area %d", a)
		var relays []*Directory
		for range SummariesPerArea {
			relays = append(relays, f.directory(area, true, Service{fmt.Sprintf("pool %d", a), "kind", ""}))
		}
		for i := SummariesPerArea; i < size; i++ {
			d := f.of(ids[i], area, false, Service{fmt.Sprintf("pool %d", a), fmt.Sprintf("kind %d", i%10), ""})
			if a == 0 {
				tell(t, d, relays[0])
				continue
			}
			// Signatures are checked in the own area; 10,000 take long.
			relays[0].members.put(d.members.m[ids[i].ID()])
		}
		for _, r := range relays[1:] {
			tell(t, r, relays[0])
		}
		all = append(all, relays...)
	}
	f.clock.Advance(summaryRest)
	for _, r := range all {
		r.Expire()
		tell(t, r, neighbour)
	}
	tell(t, neighbour, me)
	s := me.Stats()
	t.Logf("of %d areas with %d nodes each a node holds %d records and summaries of %d areas, %d bytes; its digest has %d bytes",
		areas, size, s.Members, s.Areas, s.Bytes, len(me.Digest()))
	if s.Members != size+2 || s.Areas != areas || s.Guests != 0 || len(me.summaries.m) != areas*SummariesPerArea {
		t.Errorf("%+v, %d summaries", s, len(me.summaries.m))
	}
	if s.Bytes > 1<<20 {
		t.Errorf("%d bytes", s.Bytes)
	}
	if where := me.Where("pool 77", "kind 9", ""); len(where) != 1 || where[0].Area != "area 77" || where[0].Nodes != size {
		t.Errorf("%+v", where)
	}
	// A member that knows nothing gets all that in a message.
	b, err := me.Missing(f.directory("area 0", false).Digest())
	if err != nil || len(b) < s.Bytes || len(b) > MaxBatch {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestBounds: whatever members say, a directory holds no more than it may, and
// what it has stays.
func TestBounds(t *testing.T) {
	f := newFabric(t)
	small := New(Options{Identity: f.node(), Clock: f.clock, Area: "x", Limits: Limits{Members: 5, Areas: 3, Guests: 4, Bytes: 40 << 10}})
	f.set(small, false)
	first := f.directory("x", false, build)
	tell(t, first, small)
	for range 10 {
		tell(t, f.directory("x", false), small)
	}
	for i := range 10 {
		f.clock.Advance(time.Second) // later guests end later
		d := f.directory(fmt.Sprint("area ", i), true, build)
		tell(t, d, small)
	}
	s := small.Stats()
	if s.Members != 5 || s.Areas != 3 || s.Guests != 4 || s.Skipped == 0 {
		t.Errorf("%+v", s)
	}
	if len(small.Find("build", "artifact-store", "")) != 5 {
		t.Error("those who were there first are gone")
	}
	f.set(first, false, slices.Repeat([]Service{{strings.Repeat("p", 200), "kind", "role"}}, 100)...)
	second := f.directory("y", false, slices.Repeat([]Service{{strings.Repeat("p", 200), "kind", "role"}}, 100)...)
	for range 4 {
		tell(t, first, small)
		tell(t, second, small)
	}
	for _, tab := range []table{small.members, small.guests, small.summaries} {
		n := 0
		for _, e := range tab.m {
			n += len(e.signed)
		}
		if n != tab.bytes || n > 40<<10 {
			t.Errorf("%d bytes, counted as %d", n, tab.bytes)
		}
	}
	f.clock.Advance(MaxLife)
	f.set(small, false)
	tell(t, f.directory("x", false, build), small) // there is room again
	if len(small.Find("build", "artifact-store", "")) != 1 {
		t.Error("what has ended is in the way")
	}
}

// TestMoreThanAMessage: what does not fit into one message comes with the next.
func TestMoreThanAMessage(t *testing.T) {
	f := newFabric(t)
	long := slices.Repeat([]Service{{strings.Repeat("p", 240), "kind", "role"}}, 110)
	a, b := f.directory("x", false), f.directory("x", false)
	for range 50 {
		tell(t, f.directory("x", false, long...), a)
	}
	if a.Stats().Bytes < MaxBatch {
		t.Fatal("it fits")
	}
	tell(t, a, b)
	if len(b.All()) != 52 {
		t.Errorf("%d records", len(b.All()))
	}
	c := f.directory("x", false)
	news, mark := a.News("x", 0)
	for range 10 {
		if _, err := c.Merge(news); err != nil {
			t.Fatal(err)
		}
		if news, mark = a.News("x", mark); news == nil {
			break
		}
	}
	if len(c.All()) != 52 {
		t.Errorf("%d records from news", len(c.All()))
	}
}
