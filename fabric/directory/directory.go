package directory

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/clock"
)

const (
	// MaxLife is how far ahead a record may end.
	MaxLife = 15 * time.Minute
	// skew is by how much the clocks of two nodes may differ.
	skew = 5 * time.Minute
	// SummariesPerArea is how many signers' summaries of an area are kept:
	// those with the lowest IDs, everywhere.
	SummariesPerArea = 4

	maxSummarized = 256 // services in a summary
	summaryLife   = 5 * time.Minute
	summaryRest   = 5 * time.Second // between two summaries of a node, however its area changes
)

// Limits bound what a directory holds. Zero fields have defaults.
type Limits struct {
	Members int // records of the own area; 4096
	Areas   int // that summaries are kept of; 1024
	Guests  int // records of nodes of other areas; 256
	// Bytes bounds each of the three, as signed; 32 MiB.
	Bytes int
}

// Options are for a directory.
type Options struct {
	Identity *identity.Node
	Clock    clock.Clock // nil: the machine's
	Area     string      // of this node
	Limits   Limits
}

// Directory is what a node knows of the others. It may be used from many
// goroutines.
type Directory struct {
	id     *identity.Node
	clock  clock.Clock
	area   string
	limits Limits

	mu        sync.Mutex
	members   table
	guests    table
	summaries table
	serial    uint64    // of the newest own item
	change    uint64    // counts changes of members and summaries
	cursor    key       // where Missing begins, so that all have their turn
	said      []Service // in the own summary
	saidAt    time.Time
	skipped   int64
}

// entry is an item as it is held. It never changes.
type entry struct {
	item
	signed  []byte
	expires time.Time // the item's end or its certificate's
	change  uint64
}

func (e *entry) key() key { return key{e.kind, e.Node} }

// table holds entries by their signers.
type table struct {
	m          map[identity.NodeID]*entry
	max, limit int // entries, bytes
	bytes      int
}

// put takes an entry in, in place of its signer's earlier one, if there is room.
func (t *table) put(e *entry) bool {
	old := t.m[e.Node]
	bytes := t.bytes + len(e.signed)
	if old != nil {
		bytes -= len(old.signed)
	}
	if bytes > t.limit || old == nil && len(t.m) >= t.max {
		return false
	}
	t.m[e.Node], t.bytes = e, bytes
	return true
}

func (t *table) drop(n identity.NodeID) {
	if e := t.m[n]; e != nil {
		t.bytes -= len(e.signed)
		delete(t.m, n)
	}
}

// New returns a directory that knows nobody.
func New(o Options) *Directory {
	if o.Clock == nil {
		o.Clock = clock.System()
	}
	l := o.Limits
	l.Members, l.Areas, l.Guests = cmp.Or(l.Members, 4096), cmp.Or(l.Areas, 1024), cmp.Or(l.Guests, 256)
	l.Bytes = cmp.Or(l.Bytes, 32<<20)
	of := func(max int) table { return table{m: map[identity.NodeID]*entry{}, max: max, limit: l.Bytes} }
	return &Directory{id: o.Identity, clock: o.Clock, area: o.Area, limits: l,
		members: of(l.Members), guests: of(l.Guests), summaries: of(l.Areas * SummariesPerArea)}
}

// Set says what this node is from now on. Node, Area and Serial are filled in.
// Expires is when others forget it unless it is said again; zero: as late as can be.
func (d *Directory) Set(r Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.clock.Now()
	r.Node, r.Area = d.id.ID(), d.area
	if r.Expires.IsZero() || r.Expires.After(now.Add(MaxLife)) {
		r.Expires = now.Add(MaxLife)
	}
	if err := d.say(item{kindRecord, Summary{Record: r}}, now); err != nil {
		return err
	}
	d.summarize(now)
	return nil
}

// say signs an own item and takes it in.
func (d *Directory) say(it item, now time.Time) error {
	if d.serial == math.MaxUint64 {
		return errors.New("directory: this node has no serial numbers left")
	}
	it.Serial = max(d.serial+1, uint64(max(now.UnixNano(), 0)))
	if err := it.check(); err != nil {
		return fmt.Errorf("directory: the own record: %w", err)
	}
	// What others read is what this node has.
	it.Addrs, it.Services = slices.Clone(it.Addrs), slices.Clone(it.Services)
	it.Organization = d.id.Organization()
	e := &entry{item: it, signed: d.id.SignRecord(it.encode()), expires: it.Expires}
	if len(e.signed) > MaxItem {
		return fmt.Errorf("directory: the own record has %d bytes; the limit is %d", len(e.signed), MaxItem)
	}
	t := &d.members
	if it.kind == kindSummary {
		t = &d.summaries
	}
	if !t.put(e) {
		return errors.New("directory: no room for the own record")
	}
	d.serial = it.Serial
	d.changed(e)
	return nil
}

func (d *Directory) changed(e *entry) {
	d.change++
	e.change = d.change
}

// live reports whether an entry is still to be believed.
func (d *Directory) live(e *entry, now time.Time) bool {
	return e != nil && now.Before(e.expires) && !d.id.Revoked(e.Node)
}

// Expire forgets what has ended and whom was revoked, and renews this node's
// summary of its area when it is due. Call it now and then. It reports whether
// anything has changed.
func (d *Directory) Expire() (news bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.clock.Now()
	for _, t := range []*table{&d.members, &d.guests, &d.summaries} {
		for n, e := range t.m {
			if !d.live(e, now) {
				t.drop(n)
				news = true
			}
		}
	}
	return d.summarize(now) || news
}

// summarize says what the area has, if it is for this node to say and others
// don't know it yet.
func (d *Directory) summarize(now time.Time) bool {
	self := d.id.ID()
	own, said := d.members.m[self], d.summaries.m[self]
	if !d.live(own, now) || !own.Relay || !d.lowest(self) {
		if said != nil { // others have it until it ends
			d.summaries.drop(self)
		}
		return false
	}
	if said != nil && d.saidAt.Add(summaryRest).After(now) {
		return false
	}
	services, full := d.services(now)
	if said != nil && slices.Equal(services, d.said) && slices.Equal(said.Addrs, own.Addrs) && said.Name == own.Name &&
		said.expires.Sub(now) > summaryLife/2 {
		return false
	}
	r := own.Record
	r.Services, r.Expires = services, now.Add(summaryLife)
	it := item{kindSummary, Summary{Record: r, Nodes: len(d.members.m), Full: full}}
	for {
		err := d.say(it, now)
		if err == nil {
			break
		}
		if len(it.Services) == 0 { // the name and the addresses alone fit into the record
			return false
		}
		it.Services, it.Full = it.Services[:len(it.Services)/2], true // long names
	}
	d.said, d.saidAt = services, now
	return true
}

// lowest reports whether a node of the area that passes links on is among
// those whose summaries are kept.
func (d *Directory) lowest(self identity.NodeID) bool {
	lower := 0
	for n, e := range d.members.m {
		if e.Relay && slices.Compare(n[:], self[:]) < 0 {
			lower++
		}
	}
	return lower < SummariesPerArea
}

// services returns what the nodes of the area provide.
func (d *Directory) services(now time.Time) (all []Service, full bool) {
	set := map[Service]bool{}
	for _, e := range d.members.m {
		if d.live(e, now) {
			for _, s := range e.Services {
				set[s] = true
			}
		}
	}
	for s := range set {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Service) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Role, b.Role))
	})
	if len(all) > maxSummarized {
		return all[:maxSummarized], true
	}
	return all, false
}

// Digest returns what this node has, for a peer's Missing.
func (d *Directory) Digest() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.clock.Now()
	x := digest{area: d.area, has: map[key]held{}}
	for _, t := range []*table{&d.members, &d.guests, &d.summaries} {
		for _, e := range t.m {
			if d.live(e, now) && 3+len(d.area)+(len(x.has)+1)*digestSize <= MaxDigest {
				h := held{serial: e.Serial}
				if e.kind == kindSummary {
					h.area = areaHash(e.Area)
				}
				x.has[e.key()] = h
			}
		}
	}
	return x.encode()
}

// tells reports whether a peer of an area is told of an entry: a node of the
// own area of everything, another one of this node and of what areas have.
func (d *Directory) tells(area string, e *entry) bool {
	return area == d.area || e.kind == kindSummary || e.Node == d.id.ID()
}

// shared returns what is passed on to a peer of an area.
func (d *Directory) shared(area string) (all []*entry) {
	now := d.clock.Now()
	for _, t := range []*table{&d.members, &d.summaries} {
		for _, e := range t.m {
			if d.live(e, now) && d.tells(area, e) {
				all = append(all, e)
			}
		}
	}
	return all
}

// Missing returns what a peer lacks, given its Digest, for its Merge; nil: it
// has everything. What does not fit into one message comes with its next digests.
func (d *Directory) Missing(peer []byte) ([]byte, error) {
	x, err := decodeDigest(peer)
	if err != nil {
		return nil, err
	}
	signers := map[uint64][]identity.NodeID{}
	for k, h := range x.has {
		if k.kind == kindSummary {
			signers[h.area] = append(signers[h.area], k.node)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var lacks []*entry
	for _, e := range d.shared(x.area) {
		h, ok := x.has[e.key()]
		if ok && h.serial >= e.Serial {
			continue
		}
		if e.kind == kindSummary && !ok { // would it be kept?
			lower := 0
			for _, n := range signers[areaHash(e.Area)] {
				if slices.Compare(n[:], e.Node[:]) < 0 {
					lower++
				}
			}
			if lower >= SummariesPerArea {
				continue
			}
		}
		lacks = append(lacks, e)
	}
	slices.SortFunc(lacks, func(a, b *entry) int { return a.key().compare(b.key()) })
	from, _ := slices.BinarySearchFunc(lacks, d.cursor, func(e *entry, k key) int { return e.key().compare(k) })
	var out batch
	for i := range lacks {
		e := lacks[(from+i)%len(lacks)]
		if !out.add(e.signed) {
			d.cursor = e.key()
			break
		}
	}
	return out.b, nil
}

// News returns what has changed since a mark, for a peer of an area, and the
// mark to ask with next; nil: nothing. Begin with 0. A message that is lost does
// no harm: digests make up for it.
func (d *Directory) News(area string, since uint64) (news []byte, mark uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var changed []*entry
	for _, e := range d.shared(area) {
		if e.change > since {
			changed = append(changed, e)
		}
	}
	slices.SortFunc(changed, func(a, b *entry) int { return cmp.Compare(a.change, b.change) })
	var out batch
	for _, e := range changed {
		if !out.add(e.signed) {
			return out.b, since
		}
		since = e.change
	}
	return out.b, d.change
}

// Merge takes in what a peer's Missing, News or Answer has returned. It
// reports whether anything was news, which other peers should hear of. The
// error is of a peer that is broken or hostile; what came before is kept.
func (d *Directory) Merge(b []byte) (news bool, err error) {
	items, err := cutBatch(b)
	if err != nil {
		return false, err
	}
	for _, signed := range items {
		fresh, err := d.merge(signed)
		news = news || fresh
		if err != nil {
			return news, err
		}
	}
	if news {
		d.mu.Lock()
		d.summarize(d.clock.Now())
		d.mu.Unlock()
	}
	return news, nil
}

// merge takes in one item. The lock is not held while signatures are checked.
func (d *Directory) merge(signed []byte) (news bool, err error) {
	body, err := identity.PeekRecord(signed)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(body) > 1 && body[0] == version && body[1] != kindRecord && body[1] != kindSummary {
		return d.skip() // of a newer node
	}
	it, err := decodeItem(body)
	if err != nil {
		return false, err
	}
	if !d.wants(it) { // what is no news is not worth a signature's check
		return d.skip()
	}
	record, err := d.id.CheckRecord(signed)
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(err, identity.ErrRevoked) || errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return d.skip() // whoever sent it may not know yet
	case err != nil:
		return false, err
	case record.From != it.Node:
		return false, fmt.Errorf("%w: node %s has signed a record of node %s", ErrMalformed, record.From, it.Node)
	}
	it.Organization = record.Organization
	e := &entry{item: it, signed: slices.Clone(signed), expires: it.Expires}
	if record.Until.Before(e.expires) {
		e.expires = record.Until
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.clock.Now()
	switch {
	case record.From == d.id.ID():
		return d.outdo(it, now), nil
	case d.knows(it):
		return false, nil
	}
	return d.keep(e, now), nil
}

func (d *Directory) skip() (news bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.skipped++
	return false, nil
}

// wants reports whether an item would be kept if its signature is right.
func (d *Directory) wants(it item) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if it.Node == d.id.ID() {
		return it.Serial > d.serial
	}
	now := d.clock.Now()
	if it.kind == kindSummary {
		if _, ok := d.rank(it, now); !ok {
			return false
		}
	}
	return !d.knows(it) && now.Before(it.Expires) && !it.Expires.After(now.Add(MaxLife+skew)) && !d.id.Revoked(it.Node)
}

// knows reports whether an item is here, or a newer one of its signer.
func (d *Directory) knows(it item) bool {
	t := &d.summaries
	if it.kind == kindRecord {
		t = &d.members
		if d.members.m[it.Node] == nil {
			t = &d.guests
		}
	}
	e := t.m[it.Node]
	return e != nil && e.Serial >= it.Serial
}

// outdo says again what this node is, above what an earlier life of it has said.
func (d *Directory) outdo(it item, now time.Time) bool {
	if it.Serial <= d.serial {
		return false
	}
	d.serial = max(d.serial, it.Serial)
	own := d.members.m[d.id.ID()]
	if own == nil {
		return false // Set will
	}
	r := own.item
	if err := d.say(r, now); err != nil {
		return false
	}
	d.summaries.drop(d.id.ID())
	d.summarize(now)
	return true
}

// keep takes an entry in where it belongs, if there is room.
func (d *Directory) keep(e *entry, now time.Time) bool {
	d.clean(e, now)
	kept, news := false, true
	switch {
	case e.kind == kindSummary:
		var replaced *entry
		if replaced, kept = d.rank(e.item, now); kept {
			if replaced != nil {
				d.summaries.drop(replaced.Node)
			}
			kept = d.summaries.put(e)
		}
	case e.Area == d.area:
		if kept = d.members.put(e); kept {
			d.guests.drop(e.Node)
		}
	default:
		// One that has moved to another area is none of this one's.
		news = d.members.m[e.Node] != nil
		d.members.drop(e.Node)
		kept = d.guests.put(e)
		news = news || kept
	}
	if !kept {
		d.skipped++
		return false
	}
	d.changed(e)
	return news
}

// clean makes room in the table that an entry belongs into, if there is none.
func (d *Directory) clean(e *entry, now time.Time) {
	if e.kind == kindRecord && e.Area != d.area {
		if len(d.guests.m) >= d.guests.max && d.guests.m[e.Node] == nil { // the one that ends first goes
			var first *entry
			for _, g := range d.guests.m {
				if first == nil || g.expires.Before(first.expires) {
					first = g
				}
			}
			d.guests.drop(first.Node)
		}
		return
	}
	t := &d.members
	if e.kind == kindSummary {
		t = &d.summaries
	}
	if len(t.m) < t.max && t.bytes+len(e.signed) <= t.limit {
		return
	}
	for n, old := range t.m {
		if !d.live(old, now) {
			t.drop(n)
		}
	}
}

// rank reports whether a summary is among those of its area that are kept, and
// which one it replaces there; nil: none.
func (d *Directory) rank(it item, now time.Time) (replaced *entry, ok bool) {
	var others []*entry
	for n, s := range d.summaries.m {
		if n != it.Node && s.Area == it.Area && d.live(s, now) {
			others = append(others, s)
		}
	}
	if len(others) == 0 {
		old := d.summaries.m[it.Node]
		return nil, old != nil && old.Area == it.Area || d.areas() < d.limits.Areas
	}
	if len(others) < SummariesPerArea {
		return nil, true
	}
	highest := slices.MaxFunc(others, func(a, b *entry) int { return slices.Compare(a.Node[:], b.Node[:]) })
	return highest, slices.Compare(it.Node[:], highest.Node[:]) < 0
}

// areas returns of how many areas there are summaries.
func (d *Directory) areas() int {
	areas := map[string]bool{}
	for _, s := range d.summaries.m {
		areas[s.Area] = true
	}
	return len(areas)
}
