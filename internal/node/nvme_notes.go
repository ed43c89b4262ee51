package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views"
)

// Names of notes: a capsule's projections through this view, and before a hash
// of where the namespace is, its reservations.
const (
	nvmeNote         = "nvme"
	reservationsNote = "nvme.reservations."
)

// nvmePlace is where a namespace is.
type nvmePlace struct {
	nqn  string
	nsid uint32
}

// reservations is the name of the note that holds a namespace's reservations.
func (p nvmePlace) reservations() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", p.nsid, p.nqn))
	return reservationsNote + hex.EncodeToString(sum[:16])
}

// nvmeExport is a projection as it is noted with its capsule.
type nvmeExport struct {
	ID       string             `json:"id"`
	NQN      string             `json:"nqn"`
	NSID     uint32             `json:"nsid"`
	Snapshot string             `json:"snapshot,omitempty"`
	ReadOnly bool               `json:"read_only,omitempty"`
	Listen   []string           `json:"listen,omitempty"` // none: where space.yaml says
	Hosts    []control.NVMeHost `json:"hosts,omitempty"`
	Revision uint64             `json:"revision,omitempty"` // of Hosts, which the namespaces of a subsystem have in common
	Since    time.Time          `json:"since"`
}

func (e *nvmeExport) place() nvmePlace { return nvmePlace{e.NQN, e.NSID} }

// targetName is how a listing calls the projection.
func (e *nvmeExport) targetName() string { return fmt.Sprintf("%s#%d", e.NQN, e.NSID) }

func withoutExport(list []nvmeExport, id string) []nvmeExport {
	return slices.DeleteFunc(list, func(e nvmeExport) bool { return e.ID == id })
}

// exportsVersion is the version of the note.
const exportsVersion = 1

type exportsNote struct {
	Version int          `json:"version"`
	Exports []nvmeExport `json:"exports"`
}

// encodeExports returns nil for none.
func encodeExports(list []nvmeExport) ([]byte, error) {
	if len(list) == 0 {
		return nil, nil
	}
	return json.Marshal(exportsNote{exportsVersion, list})
}

func decodeExports(b []byte) ([]nvmeExport, error) {
	if b == nil {
		return nil, nil
	}
	var n exportsNote
	if err := json.Unmarshal(b, &n); err != nil {
		return nil, err
	}
	if n.Version != exportsVersion {
		return nil, fmt.Errorf("they are of version %d, this program knows %d", n.Version, exportsVersion)
	}
	return n.Exports, nil
}

// changeExports changes what is noted with a capsule.
func changeExports(ctx context.Context, s *store.Store, id capsule.ID, change func([]nvmeExport) []nvmeExport) error {
	b, err := s.Note(ctx, id, nvmeNote)
	if err != nil {
		return err
	}
	list, err := decodeExports(b)
	if err != nil {
		return capsule.Wrap(capsule.Damaged, err, "projections of capsule %s", id)
	}
	if b, err = encodeExports(change(list)); err != nil {
		return err
	}
	return s.SetNote(ctx, id, nvmeNote, b)
}

// forgetExport takes a projection out of the notes.
func forgetExport(ctx context.Context, s *store.Store, id capsule.ID, e *nvmeExport) error {
	return unlessGone(changeExports(ctx, s, id, func(list []nvmeExport) []nvmeExport { return withoutExport(list, e.ID) }))
}

// dropReservations forgets the reservations of a namespace.
func dropReservations(ctx context.Context, s *store.Store, id capsule.ID, p nvmePlace) error {
	return unlessGone(s.SetNote(ctx, id, p.reservations(), nil))
}

// unlessGone is err unless it says that the capsule is gone: notes go with it.
func unlessGone(err error) error {
	if capsule.KindOf(err) == capsule.NotFound {
		return nil
	}
	return err
}

// eachExport calls fn with all projections that are noted. Notes that cannot be
// read are told to bad, and keep none of the others from being seen.
func eachExport(ctx context.Context, s *store.Store, fn func(capsule.ID, nvmeExport) error, bad func(capsule.ID, error)) error {
	for after := (capsule.ID{}); ; {
		page, err := s.Noted(ctx, after, 256)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, n := range page {
			after = n.ID
			list, err := decodeExports(n.Notes[nvmeNote])
			if err != nil {
				bad(n.ID, err)
			}
			for _, e := range list {
				if err := fn(n.ID, e); err != nil {
					return err
				}
			}
		}
	}
}

// forgetNVMe ends a projection that no node runs, named by its ID or target.
func forgetNVMe(ctx context.Context, s *store.Store, ref string) (info views.Info, err error) {
	found := false
	err = eachExport(ctx, s, func(id capsule.ID, e nvmeExport) error {
		if found || ref != e.ID && ref != e.targetName() {
			return nil
		}
		found = true
		info = views.Info{ID: e.ID, View: views.NVMe, Target: e.targetName(), Capsule: id, Mode: views.ModeTCP, Since: e.Since,
			NVMe: &views.Namespace{NQN: e.NQN, NSID: e.NSID, Snapshot: e.Snapshot, ReadOnly: e.ReadOnly, Addresses: e.Listen}}
		if err := forgetExport(ctx, s, id, &e); err != nil {
			return err
		}
		return dropReservations(ctx, s, id, e.place())
	}, func(capsule.ID, error) {})
	if err == nil && !found {
		err = noProjection(ref)
	}
	return info, err
}
