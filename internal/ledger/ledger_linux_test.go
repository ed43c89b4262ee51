package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/capsule"
)

// again opens what another process would find in a ledger's memory now.
func again(t testing.TB, l *Ledger) (*Ledger, error) {
	t.Helper()
	fd, err := unix.FcntlInt(l.File().Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	o, err := Open(os.NewFile(uintptr(fd), "ledger"))
	if err == nil {
		t.Cleanup(func() { o.Close() })
	}
	return o, err
}

// What was put is there in the next process, through any number of tidyings.
func TestOutlives(t *testing.T) {
	l, err := newLedger(256 << 10)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := rand.New(rand.NewPCG(1, 2))
	want := map[key]string{}
	for i := range 60_000 {
		k := key{Kind(r.IntN(3)), uint64(r.IntN(300))}
		if r.IntN(3) == 0 {
			l.Delete(k.kind, k.number)
			delete(want, k)
		} else {
			v := fmt.Sprint(i, bytes.Repeat([]byte("x"), r.IntN(60)))
			if err := l.Put(k.kind, k.number, []byte(v)); err != nil {
				t.Fatal(err)
			}
			want[k] = v
		}
		if i%5000 != 0 {
			continue
		}
		o, err := again(t, l)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for kind := range Kind(3) {
			for _, e := range o.All(kind) {
				n++
				if v, ok := o.Get(e.Kind, e.Number); want[key{e.Kind, e.Number}] != string(e.Value) || !ok || string(v) != string(e.Value) {
					t.Fatalf("step %d: entry %d/%d is %q", i, e.Kind, e.Number, e.Value)
				}
			}
		}
		if n != len(want) {
			t.Fatalf("step %d: %d entries, want %d", i, n, len(want))
		}
	}
}

func TestFull(t *testing.T) {
	l, err := newLedger(pageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := uint64(0)
	for ; err == nil; n++ {
		err = l.Put(1, n, make([]byte, 40))
	}
	if capsule.KindOf(err) != capsule.Busy || n != pageSize/64+1 {
		t.Fatalf("entry %d: %v", n, err)
	}
	l.Delete(1, 0)
	if err := l.Put(1, n, make([]byte, 40)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := l.Put(1, n, make([]byte, MaxValue+1)); capsule.KindOf(err) != capsule.TooLarge {
		t.Errorf("a value that is too long: %v", err)
	}
}

func TestNewerVersion(t *testing.T) {
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	*l.word(8) = Version + 1
	if _, err := again(t, l); capsule.KindOf(err) != capsule.Unsupported {
		t.Errorf("a newer version: %v", err)
	}
}

// Whatever is in the memory, opening it is an error or gives entries.
func FuzzOpen(f *testing.F) {
	l, err := newLedger(pageSize)
	if err != nil {
		f.Fatal(err)
	}
	l.Put(1, 2, []byte("three"))
	l.Put(2, 3, nil)
	l.Delete(1, 2)
	f.Add(bytes.Clone(l.mem[:pageSize+200]))
	l.tidy()
	f.Add(bytes.Clone(l.mem))
	f.Add(binary.NativeEndian.AppendUint64(bytes.Clone(l.mem[:16]), 1<<63|4096))
	l.Close()
	f.Fuzz(func(t *testing.T, mem []byte) {
		l, err := newLedger(pageSize)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		copy(l.mem, mem)
		o, err := again(t, l)
		if err != nil {
			return
		}
		for kind := range Kind(4) {
			o.All(kind)
		}
		for i := range uint64(200) {
			o.Put(1, i, []byte("value"))
			o.Delete(1, i/2)
		}
	})
}
