package directory

import (
	"slices"

	"github.com/spacestore/space/fabric/identity"
)

// record returns an entry's record for a caller, who may do with it what it likes.
func (e *entry) record() Record {
	r := e.Record
	r.Addrs, r.Services = slices.Clone(r.Addrs), slices.Clone(r.Services)
	r.Expires = e.expires
	return r
}

// sorted returns the entries of tables that are live and fit, by ID.
func (d *Directory) sorted(fits func(*entry) bool, tables ...*table) (all []*entry) {
	now := d.clock.Now()
	for _, t := range tables {
		for _, e := range t.m {
			if d.live(e, now) && fits(e) {
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(a, b *entry) int { return a.key().compare(b.key()) })
	return all
}

func records(entries []*entry) []Record {
	all := make([]Record, len(entries))
	for i, e := range entries {
		all[i] = e.record()
	}
	return all
}

// All returns the records that are here: those of the area, and guests.
func (d *Directory) All() []Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return records(d.sorted(func(*entry) bool { return true }, &d.members, &d.guests))
}

// Node returns a node's record. Of a node of another area that has signed a
// summary, it is what the summary says, without services.
func (d *Directory) Node(n identity.NodeID) (Record, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.clock.Now()
	for _, t := range []*table{&d.members, &d.guests, &d.summaries} {
		if e := t.m[n]; d.live(e, now) {
			r := e.record()
			if e.kind == kindSummary {
				r.Services = nil
			}
			return r, true
		}
	}
	return Record{}, false
}

// provides returns what fits a service; an empty role: any.
func provides(pool, kind, role string) func(*entry) bool {
	return func(e *entry) bool {
		return slices.ContainsFunc(e.Services, func(s Service) bool { return s.fits(pool, kind, role) })
	}
}

// Find returns the nodes that are known to provide a service; no role: in any.
// If there is none, see Where.
func (d *Directory) Find(pool, kind, role string) []Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return records(d.sorted(provides(pool, kind, role), &d.members, &d.guests))
}

// Where returns nodes of other areas to ask for a service, with [Directory.Answer]:
// those whose summaries have it, then those whose summaries leave something out.
func (d *Directory) Where(pool, kind, role string) []Summary {
	d.mu.Lock()
	defer d.mu.Unlock()
	has := provides(pool, kind, role)
	all := d.sorted(func(e *entry) bool { return e.Area != d.area && (has(e) || e.Full) }, &d.summaries)
	slices.SortStableFunc(all, func(a, b *entry) int {
		switch x, y := has(a), has(b); {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return summaries(all)
}

// Answer returns the signed records of this area's nodes that provide a
// service, for the Merge of a node of another area; nil: there are none.
func (d *Directory) Answer(pool, kind, role string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out batch
	for _, e := range d.sorted(provides(pool, kind, role), &d.members) {
		if !out.add(e.signed) {
			break
		}
	}
	return out.b
}

// Summaries returns what is known of areas, this node's too.
func (d *Directory) Summaries() []Summary {
	d.mu.Lock()
	defer d.mu.Unlock()
	return summaries(d.sorted(func(*entry) bool { return true }, &d.summaries))
}

// Summary returns what is known of an area, each signer's word.
func (d *Directory) Summary(area string) []Summary {
	d.mu.Lock()
	defer d.mu.Unlock()
	return summaries(d.sorted(func(e *entry) bool { return e.Area == area }, &d.summaries))
}

func summaries(entries []*entry) []Summary {
	all := make([]Summary, len(entries))
	for i, e := range entries {
		all[i] = Summary{Record: e.record(), Nodes: e.Nodes, Full: e.Full}
	}
	return all
}

// Stats is what a directory holds.
type Stats struct {
	Members int   `json:"members"` // records of the area
	Guests  int   `json:"guests"`
	Areas   int   `json:"areas"`   // other ones that are known
	Bytes   int   `json:"bytes"`   // of all, as signed
	Skipped int64 `json:"skipped"` // items that were no news, had ended or did not fit
}

// Stats returns what the directory holds.
func (d *Directory) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Stats{Members: len(d.members.m), Guests: len(d.guests.m), Areas: d.areas(),
		Bytes: d.members.bytes + d.guests.bytes + d.summaries.bytes, Skipped: d.skipped}
}
