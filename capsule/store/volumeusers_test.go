package store

import (
	"context"
	"math"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/lock"
)

// TestVolumeModes opens a volume for what goes together and what does not.
func TestVolumeModes(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	first := newVolume(t, s, "v", 1<<20)
	id := first.Info().ID
	open := func(mode VolumeMode, want capsule.ErrorKind) *Volume {
		t.Helper()
		v, err := s.OpenVolume(ctx, id, "", mode)
		if (err == nil) != (want == capsule.Other) || err != nil && capsule.KindOf(err) != want {
			t.Fatalf("open in mode %d: %v", mode, err)
		}
		return v
	}
	open(OwnVolume, capsule.Busy)
	second := open(WriteVolume, capsule.Other)
	first.Close()
	first.Close() // once is enough
	open(OwnVolume, capsule.Busy)
	second.Close()
	own := open(OwnVolume, capsule.Other)
	open(OwnVolume, capsule.Busy)
	open(WriteVolume, capsule.Busy)
	reader := open(ReadVolume, capsule.Other)
	if _, err := reader.WriteAt([]byte("x"), 0); capsule.KindOf(err) != capsule.ReadOnly {
		t.Errorf("a write of who reads: %v", err)
	}
	if err := reader.Trim(ctx, 0, 512); capsule.KindOf(err) != capsule.ReadOnly {
		t.Errorf("a trim of who reads: %v", err)
	}
	if _, err := own.WriteAt([]byte("x"), 0); err != nil {
		t.Error(err)
	}
	if !reader.ReadOnly() || own.ReadOnly() {
		t.Error("who may write is mixed up")
	}
	own.Close()
	last := open(WriteVolume, capsule.Other)
	if err := last.Locks().Set(ctx, lock.Content, lock.POSIX, lock.Lock{Owner: "a", Write: true, Last: 511}, false); err != nil {
		t.Fatal(err)
	}
	other := lock.Lock{Owner: "b", Write: true, First: 511, Last: math.MaxInt64}
	if err := reader.Locks().Set(ctx, lock.Content, lock.POSIX, other, false); capsule.KindOf(err) != capsule.WouldBlock {
		t.Errorf("a lock that another holds: %v", err)
	}
	last.Close()
	reader.Close()
}

// TestVolumeWatch has one who has a volume open told of what others do to it.
func TestVolumeWatch(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	a := newVolume(t, s, "v", 1<<20)
	defer a.Close()
	b := openVolume(t, s, a.Info().ID, "")
	defer b.Close()
	type change struct{ off, n int64 }
	got := make(chan change, 100)
	cancel := a.Watch(func(off, n int64) { got <- change{off, n} })
	for _, do := range []func() error{
		func() error { _, err := a.WriteAt([]byte("mine"), 100); return err },
		func() error { _, err := b.WriteAt([]byte("theirs"), 200); return err },
		func() error { return b.Trim(ctx, 4096, 8192) },
		func() error { _, err := s.ResizeVolume(ctx, a.Info().ID, 2<<20); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []change{{200, 6}, {4096, 8192}, {1 << 20, 1 << 20}} {
		if c := <-got; c != want {
			t.Errorf("told of %+v, want %+v", c, want)
		}
	}
	cancel()

	// One who does not keep up is told of everything.
	hold, held := make(chan bool), make(chan bool, 1)
	first := true
	cancel = a.Watch(func(off, n int64) {
		if first {
			first = false
			held <- true
			<-hold
			return
		}
		got <- change{off, n}
	})
	for i := range maxVolumeChanges + 10 {
		if _, err := b.WriteAt([]byte("x"), 7); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			<-held
		}
	}
	close(hold)
	for c := range got {
		if c == (change{0, math.MaxInt64}) {
			break
		}
	}
	cancel()
}
