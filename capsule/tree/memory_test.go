package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/spacestore/space/capsule"
)

// memory is a Capsule in memory. Its rows and blocks of content are a
// persistent treap, so that readers need no locks, an update that fails leaves
// nothing, and every state that there was can be had again.
type memory struct {
	updates  sync.Mutex
	root     atomic.Pointer[treap]
	readOnly bool
	punchMax int // blocks that an update gives up at most; 0: no limit

	keep    bool     // every state
	history []*treap // after each update
	fail    func() error
}

func newMemory() *memory { return &memory{} }

// at returns a capsule as it was after n updates.
func (m *memory) at(n int) *memory {
	c := &memory{punchMax: m.punchMax}
	if n > 0 {
		c.root.Store(m.history[n-1])
	}
	return c
}

// snapshot returns a read-only capsule as it is now.
func (m *memory) snapshot() *memory {
	c := &memory{readOnly: true}
	c.root.Store(m.root.Load())
	return c
}

type treap struct {
	key         string
	value       []byte
	prio        uint32
	left, right *treap
}

func (t *treap) get(key string) []byte {
	for t != nil {
		switch {
		case key < t.key:
			t = t.left
		case key > t.key:
			t = t.right
		default:
			return t.value
		}
	}
	return nil
}

// split returns what is before key and what is after it.
func (t *treap) split(key string) (l, r *treap) {
	if t == nil {
		return nil, nil
	}
	c := *t
	switch {
	case t.key < key:
		c.right, r = t.right.split(key)
		return &c, r
	case t.key > key:
		l, c.left = t.left.split(key)
		return l, &c
	}
	return t.left, t.right
}

func join(l, r *treap) *treap {
	switch {
	case l == nil:
		return r
	case r == nil:
		return l
	case l.prio > r.prio:
		c := *l
		c.right = join(l.right, r)
		return &c
	}
	c := *r
	c.left = join(l, r.left)
	return &c
}

func (t *treap) set(key string, value []byte) *treap {
	if value == nil {
		value = []byte{}
	}
	return t.insert(&treap{key: key, value: value, prio: rand.Uint32()})
}

func (t *treap) insert(n *treap) *treap {
	if t == nil {
		return n
	}
	c := *t
	switch {
	case n.key == t.key:
		c.value = n.value
	case n.prio > t.prio && t.get(n.key) == nil:
		n.left, n.right = t.split(n.key)
		return n
	case n.key < t.key:
		c.left = t.left.insert(n)
	default:
		c.right = t.right.insert(n)
	}
	return &c
}

func (t *treap) delete(key string) *treap {
	if t == nil {
		return nil
	}
	c := *t
	switch {
	case key < t.key:
		c.left = t.left.delete(key)
	case key > t.key:
		c.right = t.right.delete(key)
	default:
		return join(t.left, t.right)
	}
	return &c
}

func (t *treap) scan(lo, hi string, fn func(key string, value []byte) (bool, error)) (bool, error) {
	if t == nil {
		return true, nil
	}
	if lo < t.key {
		if more, err := t.left.scan(lo, hi, fn); !more || err != nil {
			return false, err
		}
	}
	if lo <= t.key && t.key < hi {
		if more, err := fn(t.key, t.value); !more || err != nil {
			return false, err
		}
	}
	if t.key < hi {
		return t.right.scan(lo, hi, fn)
	}
	return true, nil
}

// Blocks of content are under a byte that no row begins with.
func blockKey(file uint64, block int64) string {
	b := binary.BigEndian.AppendUint64([]byte{0xff}, file)
	return string(binary.BigEndian.AppendUint64(b, uint64(block)))
}

func (m *memory) Get(key []byte) ([]byte, error) { return m.root.Load().rowGet(key) }
func (m *memory) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	return m.root.Load().rowScan(lo, hi, fn)
}

func (t *treap) rowGet(key []byte) ([]byte, error) {
	if v := t.get(string(key)); v != nil {
		return append([]byte{}, v...), nil
	}
	return nil, nil
}

func (t *treap) rowScan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	_, err := t.scan(string(lo), string(hi), func(k string, v []byte) (bool, error) {
		return fn([]byte(k), append([]byte{}, v...))
	})
	return err
}

func (m *memory) ReadOnly() bool                 { return m.readOnly }
func (m *memory) Sync(ctx context.Context) error { return ctx.Err() }

func (m *memory) Update(ctx context.Context, fn func(tx Tx) error) error {
	m.updates.Lock()
	defer m.updates.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.readOnly {
		return capsule.Errorf(capsule.ReadOnly, "read-only")
	}
	tx := &memoryTx{m: m, root: m.root.Load()}
	if err := fn(tx); err != nil {
		return err
	}
	if m.fail != nil {
		if err := m.fail(); err != nil {
			return err
		}
	}
	m.root.Store(tx.root)
	if m.keep {
		m.history = append(m.history, tx.root)
	}
	return nil
}

func (m *memory) ReadAt(ctx context.Context, file uint64, p []byte, off int64) (int, error) {
	return m.root.Load().readAt(file, p, off), nil
}

func (t *treap) readAt(file uint64, p []byte, off int64) int {
	for n := 0; n < len(p); {
		at := off + int64(n)
		piece := p[n:min(len(p), n+blockSize-int(at%blockSize))]
		clear(piece)
		if b := t.get(blockKey(file, at/blockSize)); b != nil {
			copy(piece, b[at%blockSize:])
		}
		n += len(piece)
	}
	return len(p)
}

func (m *memory) NextData(ctx context.Context, file uint64, off, limit int64) (start, end int64, err error) {
	start, end = limit, limit
	_, err = m.root.Load().scan(blockKey(file, off/blockSize), blockKey(file+1, 0), func(k string, _ []byte) (bool, error) {
		at := int64(binary.BigEndian.Uint64([]byte(k[9:]))) * blockSize
		switch {
		case at >= limit || start < limit && at > end:
			return false, nil
		case start == limit:
			start = max(at, off)
		}
		end = min(at+blockSize, limit)
		return true, nil
	})
	return start, end, err
}

type memoryTx struct {
	m    *memory
	root *treap
}

var errKey = errors.New("a key or value is too long, or not a row's")

func (tx *memoryTx) Get(key []byte) ([]byte, error) { return tx.root.rowGet(key) }
func (tx *memoryTx) Scan(lo, hi []byte, fn func(k, v []byte) (bool, error)) error {
	return tx.root.rowScan(lo, hi, fn)
}

func (tx *memoryTx) Set(key, value []byte) error {
	if len(key) == 0 || len(key) > 1<<10 || len(value) > 64<<10 || key[0] == 0xff {
		return errKey
	}
	tx.root = tx.root.set(string(key), bytes.Clone(value))
	return nil
}

func (tx *memoryTx) Delete(key []byte) error {
	tx.root = tx.root.delete(string(key))
	return nil
}

func (tx *memoryTx) Write(file uint64, off int64, p []byte) (grew int64, err error) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		k := blockKey(file, at/blockSize)
		b := bytes.Clone(tx.root.get(k))
		if b == nil {
			b = make([]byte, blockSize)
			grew += blockSize
		}
		n += copy(b[at%blockSize:], p[n:])
		tx.root = tx.root.set(k, b)
	}
	return grew, nil
}

func (tx *memoryTx) Punch(file uint64, off, end int64) (next, freed int64, err error) {
	var blocks []int64
	next = end
	tx.root.scan(blockKey(file, off/blockSize), blockKey(file+1, 0), func(k string, _ []byte) (bool, error) {
		block := int64(binary.BigEndian.Uint64([]byte(k[9:])))
		if block*blockSize >= end {
			return false, nil
		}
		if tx.m.punchMax > 0 && len(blocks) > tx.m.punchMax {
			next = block * blockSize
			return false, nil
		}
		blocks = append(blocks, block)
		return true, nil
	})
	for _, block := range blocks {
		k := blockKey(file, block)
		lo, hi := max(off-block*blockSize, 0), min(end-block*blockSize, blockSize)
		if lo == 0 && hi == blockSize {
			tx.root = tx.root.delete(k)
			freed += blockSize
			continue
		}
		b := bytes.Clone(tx.root.get(k))
		clear(b[lo:hi])
		tx.root = tx.root.set(k, b)
	}
	return next, freed, nil
}

func (tx *memoryTx) Copy(dst uint64, dstOff int64, src uint64, srcOff, n int64) (done, grew int64, err error) {
	n = min(n, 16*blockSize)
	p := make([]byte, n)
	tx.root.readAt(src, p, srcOff)
	grew, err = tx.Write(dst, dstOff, p)
	return n, grew, err
}

var _ Capsule = (*memory)(nil)
