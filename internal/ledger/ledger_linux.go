package ledger

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
)

const (
	magic = 0x5350434c45444745 // "SPCLEDGE"
	// Version is the format's. An unknown one is refused.
	Version = 1

	pageSize   = 4096
	recordHead = 24
	deleted    = 1<<32 - 1
	otherHalf  = 1 << 63

	// halfSize is how much memory the entries may take; it takes what is used.
	halfSize = 64 << 20
	// tidyAbove is how long a half grows before it is looked at.
	tidyAbove = 1 << 20

	// MaxValue bounds a value, in bytes.
	MaxValue = 16 << 10
)

// Kind says what an entry is about; what the kinds are is the user's business.
type Kind uint32

// Entry is one entry.
type Entry struct {
	Kind   Kind
	Number uint64
	Value  []byte
}

type key struct {
	kind   Kind
	number uint64
}

// Ledger is an open ledger. It is safe for concurrent use, by one process at a time.
type Ledger struct {
	file *os.File

	mu      sync.Mutex
	mem     []byte
	half    int           // bytes of each half
	entries map[key]int64 // where its record is, in mem
	live    int64         // bytes of their records
}

// New makes an empty ledger.
func New() (*Ledger, error) { return newLedger(halfSize) }

func newLedger(half int) (*Ledger, error) {
	fd, err := unix.MemfdCreate("space-ledger", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "memory for a ledger")
	}
	f := os.NewFile(uintptr(fd), "ledger")
	l := &Ledger{file: f, entries: map[key]int64{}}
	if err := f.Truncate(int64(pageSize + 2*half)); err != nil {
		f.Close()
		return nil, capsule.Wrap(capsule.IO, err, "memory for a ledger")
	}
	// So that nobody can take memory away that we look at.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		f.Close()
		return nil, capsule.Wrap(capsule.IO, err, "memory for a ledger")
	}
	if err := l.mapFile(); err != nil {
		f.Close()
		return nil, err
	}
	*l.word(0), *l.word(8) = magic, Version
	return l, nil
}

// Open opens the ledger in a file that another process made. It takes the file over.
func Open(f *os.File) (*Ledger, error) {
	l := &Ledger{file: f, entries: map[key]int64{}}
	err := l.mapFile()
	if err == nil {
		err = l.load()
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Ledger) mapFile() error {
	st, err := l.file.Stat()
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "ledger")
	}
	size := st.Size()
	if size < 2*pageSize || size > pageSize+2*halfSize || (size-pageSize)%16 != 0 {
		return capsule.Errorf(capsule.Damaged, "a ledger of %d bytes", size)
	}
	seals, err := unix.FcntlInt(l.file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return capsule.Errorf(capsule.Damaged, "the ledger is no sealed memory file")
	}
	l.half = int(size-pageSize) / 2
	if l.mem, err = unix.Mmap(int(l.file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return capsule.Wrap(capsule.IO, err, "map the ledger")
	}
	return nil
}

// word is a word of the memory.
func (l *Ledger) word(at int64) *uint64 { return (*uint64)(unsafe.Pointer(&l.mem[at])) }

func (l *Ledger) state() *uint64 { return l.word(16) }

// bounds returns where the half in use begins, and where its records end.
func (l *Ledger) bounds() (start, end int64) {
	s := atomic.LoadUint64(l.state())
	start = pageSize
	if s&otherHalf != 0 {
		start += int64(l.half)
	}
	return start, start + int64(s&^otherHalf)
}

// record is a record's head, as it is in memory.
type record struct {
	length, value uint32
	kind          Kind
	_             uint32
	number        uint64
}

func (l *Ledger) record(at int64) *record { return (*record)(unsafe.Pointer(&l.mem[at])) }

func (l *Ledger) load() error {
	if *l.word(0) != magic {
		return capsule.Errorf(capsule.Damaged, "the memory file is no ledger")
	}
	if v := *l.word(8); v != Version {
		return capsule.Errorf(capsule.Unsupported, "the ledger has format version %d, this program knows %d", v, Version)
	}
	start, end := l.bounds()
	if end-start > int64(l.half) || end < start || end > int64(len(l.mem)) {
		return capsule.Errorf(capsule.Damaged, "the ledger's end is out of its bounds")
	}
	for at := start; at < end; {
		if end-at < recordHead {
			return capsule.Errorf(capsule.Damaged, "the ledger ends inside a record")
		}
		r := *l.record(at)
		n := r.value
		if n == deleted {
			n = 0
		}
		if int64(r.length) > end-at || n > MaxValue || int64(r.length) != recordSize(int(n)) {
			return capsule.Errorf(capsule.Damaged, "the ledger has a record of %d bytes with a value of %d", r.length, n)
		}
		k := key{r.kind, r.number}
		l.forget(k)
		if r.value != deleted {
			l.entries[k] = at
			l.live += int64(r.length)
		}
		at += int64(r.length)
	}
	return nil
}

func (l *Ledger) forget(k key) bool {
	at, ok := l.entries[k]
	if ok {
		l.live -= int64(l.record(at).length)
		delete(l.entries, k)
	}
	return ok
}

func recordSize(value int) int64 { return int64(recordHead+value+7) &^ 7 }

// Put sets an entry.
func (l *Ledger) Put(kind Kind, number uint64, value []byte) error {
	if len(value) > MaxValue {
		return capsule.Errorf(capsule.TooLarge, "a ledger entry of %d bytes", len(value))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at, err := l.append(kind, number, uint32(len(value)), value)
	if err != nil {
		return err
	}
	k := key{kind, number}
	l.forget(k)
	l.entries[k] = at
	l.live += recordSize(len(value))
	return nil
}

// Delete removes an entry, if it is there. It needs no room that could lack.
func (l *Ledger) Delete(kind Kind, number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.forget(key{kind, number}) || l.mem == nil {
		return
	}
	// Where there is no room, tidying leaves the entry out.
	_, _ = l.append(kind, number, deleted, nil)
}

// append adds a record. l.mu is held.
func (l *Ledger) append(kind Kind, number uint64, size uint32, value []byte) (int64, error) {
	if l.mem == nil {
		return 0, capsule.Errorf(capsule.Unavailable, "the ledger is closed")
	}
	n := recordSize(len(value))
	start, end := l.bounds()
	if used := end - start; used > tidyAbove && used > 4*l.live || used+n > int64(l.half) {
		l.tidy()
		if start, end = l.bounds(); end-start+n > int64(l.half) {
			return 0, capsule.Errorf(capsule.Busy, "the ledger is full")
		}
	}
	*l.record(end) = record{length: uint32(n), value: size, kind: kind, number: number}
	copy(l.mem[end+recordHead:], value)
	atomic.AddUint64(l.state(), uint64(n))
	return end, nil
}

// tidy moves the entries to the other half. l.mu is held.
func (l *Ledger) tidy() {
	old := atomic.LoadUint64(l.state()) & otherHalf
	from, _ := l.bounds()
	to := int64(pageSize)
	if old == 0 {
		to += int64(l.half)
	}
	at := to
	for k, was := range l.entries {
		at += int64(copy(l.mem[at:], l.mem[was:was+int64(l.record(was).length)]))
		l.entries[k] = at - int64(l.record(was).length)
	}
	atomic.StoreUint64(l.state(), old^otherHalf|uint64(at-to))
	// Without it the memory stays in use until the half is written again.
	_ = unix.Fallocate(int(l.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, int64(l.half))
}

// All returns the entries of a kind, by number.
func (l *Ledger) All(kind Kind) []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Entry
	for k, at := range l.entries {
		if k.kind == kind {
			all = append(all, Entry{k.kind, k.number, l.value(at)})
		}
	}
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.Number, b.Number) })
	return all
}

func (l *Ledger) value(at int64) []byte {
	return slices.Clone(l.mem[at+recordHead : at+recordHead+int64(l.record(at).value)])
}

// Get returns an entry's value, and whether it is there.
func (l *Ledger) Get(kind Kind, number uint64) ([]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.entries[key{kind, number}]
	if !ok {
		return nil, false
	}
	return l.value(at), true
}

// File is the memory file, for handing it to another process.
func (l *Ledger) File() *os.File { return l.file }

// Close lets go of the memory, which is freed when nobody else has the file.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mem != nil {
		if err := unix.Munmap(l.mem); err != nil {
			return fmt.Errorf("unmap the ledger: %w", err)
		}
		l.mem, l.entries = nil, nil
	}
	return l.file.Close()
}
