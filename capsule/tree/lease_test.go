package tree

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

// alarm is a clock whose waits end when the test says so.
type alarm struct {
	manual
	set chan chan time.Time
}

func (c *alarm) After(time.Duration) <-chan time.Time {
	ch := make(chan time.Time, 1)
	c.set <- ch
	return ch
}

func TestLeases(t *testing.T) {
	fs, _ := newTree(t)
	a, b := WithOrigin(ctx, "a"), WithOrigin(ctx, "b")
	attr := mkfile(t, fs, Root, "f", "text")
	open := func(who context.Context, flags OpenFlags) *File {
		t.Helper()
		return must(fs.Open(who, nil, attr.Ino, flags))(t)
	}
	var l *Lease
	for _, c := range []struct {
		what   string
		write  bool
		op     func(who context.Context) error
		recall bool // by b, of a's lease
	}{
		{"read beside a reader", false, func(who context.Context) error { return open(who, OpenRead).Close() }, false},
		{"write beside a reader", false, func(who context.Context) error { return open(who, OpenRead|OpenWrite).Close() }, true},
		{"read beside a writer", true, func(who context.Context) error { return open(who, OpenRead).Close() }, true},
		{"truncate", false, func(who context.Context) error {
			_, err := fs.SetAttr(who, nil, attr.Ino, SetAttr{Set: SetSize, Size: 2})
			return err
		}, true},
		{"chmod", false, func(who context.Context) error {
			_, err := fs.SetAttr(who, nil, attr.Ino, SetAttr{Set: SetMode, Mode: 0o600})
			return err
		}, true},
		{"xattr", false, func(who context.Context) error { return fs.SetXattr(who, nil, attr.Ino, "user.x", []byte("x"), 0) }, true},
		{"link", false, func(who context.Context) error { _, err := fs.Link(who, nil, attr.Ino, Root, "g"); return err }, true},
		{"rename", true, func(who context.Context) error { return fs.Rename(who, nil, Root, "g", Root, "h", 0) }, true},
		{"attributes", true, func(who context.Context) error { _, err := fs.GetAttr(who, attr.Ino); return err }, false},
		{"something else", true, func(who context.Context) error {
			_, err := fs.SetAttr(who, nil, Root, SetAttr{Set: SetMode, Mode: 0o700})
			return err
		}, false},
		{"unlink", false, func(who context.Context) error { return fs.Unlink(who, nil, Root, "h") }, true},
	} {
		f := open(a, OpenRead|OpenWrite)
		l = must(fs.Lease(f, c.write, func() { l.Return() }))(t)
		f.Close()
		if c.what != "link" && c.what != "rename" && c.what != "unlink" {
			kind(t, c.op(a), fine, c.what+" by the holder")
			select {
			case <-l.Done():
				t.Fatalf("%s: the holder's own lease was recalled", c.what)
			default:
			}
		}
		kind(t, c.op(b), fine, c.what)
		ended := false
		select {
		case <-l.Done():
			ended = true
		default:
		}
		if ended != c.recall {
			t.Errorf("%s: recalled: %v", c.what, ended)
		}
		l.Return()
		l.Return()
	}
	if fs.leases.n.Load() != 0 || len(fs.leases.all) != 0 {
		t.Error("leases are left")
	}
}

func TestLeaseRefused(t *testing.T) {
	fs, _ := newTree(t)
	a, b := WithOrigin(ctx, "a"), WithOrigin(ctx, "b")
	attr := mkfile(t, fs, Root, "f", "text")
	mine := must(fs.Open(a, nil, attr.Ino, OpenRead|OpenWrite))(t)
	defer mine.Close()
	reading := must(fs.Open(b, nil, attr.Ino, OpenRead))(t)
	_, err := fs.Lease(mine, true, nil)
	kind(t, err, capsule.WouldBlock, "to write what b reads")
	_, err = fs.Lease(reading, false, nil)
	kind(t, err, capsule.WouldBlock, "to read what a may write")
	_, err = fs.Lease(reading, true, nil)
	kind(t, err, capsule.Invalid, "to write through a file open for reading")
	reading.Close()
	l := must(fs.Lease(mine, true, nil))(t)
	_, err = fs.Lease(mine, false, nil)
	kind(t, err, capsule.WouldBlock, "a second one")
	l.Return()
	d := must(fs.Open(a, nil, Root, OpenRead))(t)
	defer d.Close()
	_, err = fs.Lease(d, false, nil)
	kind(t, err, capsule.IsDir, "of a directory")
}

// A holder that does not answer loses the lease, and who does not want to wait
// need not.
func TestLeaseExpires(t *testing.T) {
	m := newMemory()
	kind(t, Format(ctx, m, New{Mode: 0o755}, time.Unix(1e9, 5)), fine, "format")
	clk := &alarm{set: make(chan chan time.Time, 10)}
	fs := must(Open(ctx, m, Options{Clock: clk}))(t)
	attr := mkfile(t, fs, Root, "f", "text")
	f := must(fs.Open(WithOrigin(ctx, "a"), nil, attr.Ino, OpenRead|OpenWrite))(t)
	told := make(chan bool, 10)
	l := must(fs.Lease(f, true, func() { told <- true }))(t)
	f.Close()
	limited, cancel := context.WithCancel(ctx)
	opened := make(chan error)
	open := func(ctx context.Context) {
		f, err := fs.Open(ctx, nil, attr.Ino, OpenRead)
		if err == nil {
			f.Close()
		}
		opened <- err
	}
	go open(limited)
	<-told
	cancel()
	kind(t, <-opened, capsule.Canceled, "open that gives up")
	go open(ctx)
	ring := <-clk.set
	ring <- time.Time{}
	kind(t, <-opened, fine, "open")
	<-l.Done()
	select {
	case <-told:
		t.Error("recalled twice")
	default:
	}

	// The end of the tree is the end of its leases.
	f = must(fs.Open(WithOrigin(ctx, "a"), nil, attr.Ino, OpenRead|OpenWrite))(t)
	l = must(fs.Lease(f, true, nil))(t)
	f.Close()
	fs.Close()
	<-l.Done()
}

// Many clients take, recall and return leases at once; at no time do two have
// one that excludes the other.
func TestLeasesAtOnce(t *testing.T) {
	fs, _ := newTree(t)
	attr := mkfile(t, fs, Root, "f", "")
	var mu sync.Mutex
	holders := map[int]bool{} // true: to write
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			who := WithOrigin(ctx, i)
			for range 100 {
				f, err := fs.Open(who, nil, attr.Ino, OpenRead|OpenWrite)
				if err != nil {
					t.Error(err)
					return
				}
				got := make(chan *Lease, 1)
				l, err := fs.Lease(f, i%2 == 0, func() {
					l := <-got
					mu.Lock()
					delete(holders, i)
					mu.Unlock()
					l.Return()
				})
				if err == nil {
					mu.Lock()
					for j, write := range holders {
						if write || i%2 == 0 {
							t.Errorf("%d and %d have leases", i, j)
						}
					}
					holders[i] = i%2 == 0
					mu.Unlock()
					got <- l
				}
				f.WriteAt(who, []byte{byte(i)}, 0)
				f.Close()
			}
		})
	}
	wg.Wait()
	fs.leases.close()
}
