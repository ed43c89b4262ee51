package fuse

import (
	"context"
	"sync"

	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/ledger"
)

// treeMemory is what a mount of a tree keeps for the process after this one.
// Without a ledger it keeps nothing.
type treeMemory struct {
	ledger *ledger.Ledger

	mu sync.Mutex
	// From the process before:
	byRequest map[uint64]uint64   // handles that it gave, by request
	stale     []uint64            // inodes that are open
	fresh     map[uint64]struct{} // inodes of whose changes the kernel was told since; nil: all
}

// maxFresh bounds the inodes whose pages are known to be good.
const maxFresh = 1 << 16

// open notes a handle that the kernel is about to get.
func (m *treeMemory) open(fh, ino uint64, flags uint32, unique uint64) error {
	if m.ledger == nil {
		return nil
	}
	return m.ledger.Put(keptHandle, fh, words(ino, uint64(openFlagsOf(flags)&^tree.OpenTrunc), unique&^resent))
}

// opened returns the handle that the process before gave for a request.
func (m *treeMemory) opened(unique uint64) (fh uint64, ok bool) {
	if !cameAgain(unique) {
		return 0, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	fh, ok = m.byRequest[unique&^resent]
	return fh, ok
}

func (m *treeMemory) release(fh uint64) {
	if m.ledger != nil {
		m.ledger.Delete(keptHandle, fh)
	}
}

// pagesGood reports whether the kernel may keep a file's pages as it opens it.
// Of changes that an earlier process did not come to tell of it does not know.
func (m *treeMemory) pagesGood(ino uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fresh == nil {
		return true
	}
	if _, ok := m.fresh[ino]; ok {
		return true
	}
	if len(m.fresh) >= maxFresh {
		clear(m.fresh)
	}
	m.fresh[ino] = struct{}{}
	return false
}

// keep notes an inode that was removed and that the kernel refers to so often.
func (m *treeMemory) keep(ino, refs uint64) error {
	if m == nil || m.ledger == nil {
		return nil
	}
	return m.ledger.Put(keptOrphan, ino, words(refs))
}

func (m *treeMemory) drop(ino uint64) {
	if m != nil && m.ledger != nil {
		m.ledger.Delete(keptOrphan, ino)
	}
}

// note says of a request that it was carried out, and on which inode.
func (m *treeMemory) note(unique, ino uint64) error {
	if m.ledger == nil {
		return nil
	}
	return m.ledger.Put(keptDone, unique&^resent, words(ino))
}

// done returns what an earlier process noted of a request.
func (m *treeMemory) done(unique uint64) (ino uint64, ok bool) {
	if m.ledger == nil || !cameAgain(unique) {
		return 0, false
	}
	v, _ := m.ledger.Get(keptDone, unique&^resent)
	if w := wordsOf(v, 1); w != nil {
		return w[0], true
	}
	return 0, false
}

// replied forgets a request that was answered.
func (m *treeMemory) replied(unique uint64) { m.ledger.Delete(keptDone, unique&^resent) }

func (f *treeSystem) replied() func(uint64) { return f.memory.replied }

// remember has the mount keep what the process after this one needs.
func (f *treeSystem) remember(l *ledger.Ledger) error {
	first, err := newLife(l)
	if err != nil {
		return err
	}
	f.files.begin(first)
	f.memory.ledger, f.locks.ledger = l, l
	f.nodes.memory = &f.memory
	return nil
}

// recall takes up what the process before has kept: open files, removed inodes,
// locks. What is not there any more was given up in an answer that never came.
func (f *treeSystem) recall(ctx context.Context, l *ledger.Ledger) error {
	m := &f.memory
	m.byRequest, m.fresh = map[uint64]uint64{}, map[uint64]struct{}{}
	for _, e := range l.All(keptHandle) {
		w := wordsOf(e.Value, 3)
		var file *tree.File
		var err error
		if w != nil {
			file, err = f.tree.Open(ctx, asRoot, w[0], tree.OpenFlags(w[1])&^tree.OpenTrunc)
		}
		if file == nil {
			f.log.Debug("an open file is not there any more", "capsule", f.id, "err", err)
			l.Delete(keptHandle, e.Number)
			continue
		}
		f.files.restore(e.Number, newTreeFile(file))
		m.byRequest[w[2]] = e.Number
		m.stale = append(m.stale, w[0])
	}
	f.nodes.init()
	f.nodes.partial = true
	for _, e := range l.All(keptOrphan) {
		w := wordsOf(e.Value, 1)
		file, err := f.tree.Open(ctx, nil, e.Number, 0)
		if w == nil || err != nil {
			l.Delete(keptOrphan, e.Number)
			continue
		}
		f.nodes.refs[e.Number], f.nodes.kept[e.Number] = w[0], file
	}
	f.askPolicy()
	f.locks.recall(ctx, l)
	return f.remember(l)
}
