package fuse

import (
	"context"

	"github.com/spacestore/space/internal/ledger"
)

func (f *fileSystem) replied() func(uint64) { return nil }

// remember has the mount keep what the process after this one needs.
func (f *fileSystem) remember(l *ledger.Ledger) error {
	first, err := newLife(l)
	if err != nil {
		return err
	}
	f.handles.begin(first)
	f.dirs.next = first
	f.memory, f.nodes.ledger = l, l
	return nil
}

// recall takes up nodes, open files and directories. A file whose version is not
// the current one any more is gone: nobody held it meanwhile.
func (f *fileSystem) recall(ctx context.Context, l *ledger.Ledger) error {
	f.nodes.recall(l)
	for _, e := range l.All(keptHandle) {
		var n *node
		if w := wordsOf(e.Value, 1); w != nil {
			n = f.nodes.get(w[0])
		}
		if n == nil || n.dir {
			l.Delete(keptHandle, e.Number)
			continue
		}
		r, err := f.store.Open(ctx, n.info.ID)
		if err == nil && r.Info().Version != n.info.Version {
			r.Close()
			err = errNotCurrent
		}
		if err != nil {
			f.log.Warn("an open file is lost: its capsule was replaced or removed, and the node ended meanwhile", "capsule", n.info.ID, "err", err)
			continue
		}
		f.handles.restore(e.Number, newHandle(r, &f.streams))
	}
	f.dirs.open = map[uint64]*dirHandle{}
	for _, e := range l.All(keptDir) {
		f.dirs.open[e.Number] = &dirHandle{path: string(e.Value), fh: e.Number, marks: []string{""}}
	}
	for _, e := range l.All(keptPage) { // in order
		f.dirs.pages.Store(e.Number)
		var d *dirHandle
		var w []uint64
		if len(e.Value) >= 16 {
			w = wordsOf(e.Value[:16], 2)
			d = f.dirs.open[w[0]]
		}
		if d == nil || w[1] == 0 || w[1] > uint64(len(d.marks)) {
			l.Delete(keptPage, e.Number)
			continue
		}
		for _, old := range d.kept[w[1]-1:] {
			l.Delete(keptPage, old)
		}
		d.marks = append(d.marks[:w[1]], string(e.Value[16:]))
		d.kept = append(d.kept[:w[1]-1], e.Number)
	}
	return f.remember(l)
}
