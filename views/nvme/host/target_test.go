package host

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

const realNQN = "nqn.2026-11.org.example:disk"

// disk is a device in memory.
type disk struct {
	mu      sync.RWMutex
	b       []byte
	block   int
	flushes int
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return copy(p, d.b[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.b[off:], p), nil
}

func (d *disk) Trim(_ context.Context, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.b[off : off+n])
	return nil
}

func (d *disk) Flush(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	return nil
}

func (d *disk) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.b))
}

func (d *disk) BlockSize() int { return d.block }
func (d *disk) ReadOnly() bool { return false }

func (d *disk) NextData(_ context.Context, off int64) (start, end int64, err error) {
	if size := d.Size(); off < size {
		return off, size, nil
	}
	return 0, 0, io.EOF
}

// serve starts the project's own target with one namespace.
func serve(t testing.TB, d nvme.Device, sub nvme.Subsystem) (*nvme.Target, string) {
	t.Helper()
	target, err := nvme.New(nvme.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- target.Serve(l, nvme.Port{ID: 1}) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := target.Close(ctx); err != nil {
			t.Error(err)
		}
		<-served
	})
	sub.NQN, sub.Serial = realNQN, "S1"
	if err := target.AddSubsystem(sub); err != nil {
		t.Fatal(err)
	}
	if err := target.AddNamespace(realNQN, nvme.Namespace{NSID: 1, NGUID: [16]byte{1}, UUID: [16]byte{2}, Device: d}); err != nil {
		t.Fatal(err)
	}
	return target, l.Addr().String()
}

func dial(t testing.TB, address string, o Options) *Controller {
	t.Helper()
	c, err := Connect(t.Context(), address, realNQN, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func openReal(t testing.TB, address string, o Options, queues, depth int) ([]*Queue, *Namespace, *Controller) {
	t.Helper()
	c := dial(t, address, o)
	n, err := c.Namespace(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	qs, err := c.OpenQueues(t.Context(), queues, depth)
	if err != nil {
		t.Fatal(err)
	}
	return qs, n, c
}

// The two ends agree on every size, both block sizes, digests or none, over
// several queues at once.
func TestHostOnTarget(t *testing.T) {
	for i, o := range []Options{{}, {HeaderDigest: true}, {DataDigest: true}, {HeaderDigest: true, DataDigest: true}} {
		block := []int{512, 4096}[i%2]
		d := &disk{b: make([]byte, 12<<20), block: block}
		_, address := serve(t, d, nvme.Subsystem{AllowAnyHost: true})
		qs, n, _ := openReal(t, address, o, 3, 16)
		var wg sync.WaitGroup
		part := len(d.b) / 6
		for g := range 6 { // two goroutines to a queue
			q := qs[g%len(qs)]
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(g), uint64(block)))
				for i := range 12 {
					size := (1 + rng.IntN(n.MaxTransfer()/block)) * block
					if i%2 == 0 {
						size = (1 + rng.IntN(32768/block)) * block
					}
					lba := uint64(g*part/block + rng.IntN((part-size)/block))
					want := pattern(size, byte(g*31+i))
					if err := n.Write(t.Context(), q, lba, want, i%5 == 0); err != nil {
						t.Error(err)
						return
					}
					got := make([]byte, size)
					if err := n.Read(t.Context(), q, lba, got); err != nil {
						t.Error(err)
						return
					}
					if !bytes.Equal(got, want) {
						t.Errorf("%d bytes at %d come back changed", size, lba)
						return
					}
					if err := n.Compare(t.Context(), q, lba, want[:block]); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		within(t, wg.Wait)
	}
}

func TestTargetsAnswersAreUnderstood(t *testing.T) {
	d := &disk{b: make([]byte, 8<<20), block: 512}
	_, address := serve(t, d, nvme.Subsystem{AllowAnyHost: true})
	qs, n, c := openReal(t, address, Options{}, 1, 8)
	q, ctx := qs[0], t.Context()

	if list, err := c.Namespaces(ctx); err != nil || len(list) != 1 || list[0] != 1 {
		t.Errorf("namespaces %v, %v", list, err)
	}
	if c.Info().Serial != "S1" || n.Size() != 8<<20 || n.BlockSize != 512 {
		t.Errorf("%+v, %+v", c.Info(), n)
	}
	found := false
	list, err := c.Descriptors(ctx, 1)
	for _, x := range list {
		found = found || x.Type == wire.DescriptorUUID && bytes.Equal(x.Value, append([]byte{2}, make([]byte, 15)...))
	}
	if err != nil || !found {
		t.Errorf("descriptors %v, %v", list, err)
	}
	if err := n.Write(ctx, q, 0, pattern(1<<20, 1), false); err != nil {
		t.Fatal(err)
	}
	if err := n.Flush(ctx, q); err != nil || d.flushes == 0 {
		t.Errorf("%d flushes, %v", d.flushes, err)
	}
	if err := n.WriteZeroes(ctx, q, 0, 8, true); err != nil {
		t.Error(err)
	}
	if err := n.Trim(ctx, q, wire.DSMRange{SLBA: 8, Blocks: 8}); err != nil {
		t.Error(err)
	}
	got := make([]byte, 8192)
	if err := n.Read(ctx, q, 0, got); err != nil || !bytes.Equal(got, make([]byte, 8192)) {
		t.Errorf("what was zeroed and trimmed is not zero: %v", err)
	}
	if err := n.Verify(ctx, q, 0, 100); err != nil {
		t.Error(err)
	}
	if err := n.Read(ctx, q, n.Blocks, make([]byte, 512)); capsule.KindOf(err) != capsule.OutOfRange {
		t.Errorf("beyond the end: %v", err)
	}
	errs, err := c.Errors(ctx)
	if err != nil || len(errs) == 0 || errs[0].Status.Code() != wire.LBARange {
		t.Errorf("error log %+v, %v", errs, err)
	}
	if s, err := c.SMART(ctx); err != nil || s.Writes == 0 {
		t.Errorf("health %+v, %v", s, err)
	}
	if _, err := c.ANA(ctx); err != nil {
		t.Error(err)
	}
	if _, err := c.Feature(ctx, wire.FeatWriteCache, 0); err != nil {
		t.Error(err)
	}
	if _, err := c.Namespace(ctx, 77); capsule.KindOf(err) != capsule.NotFound {
		t.Errorf("namespace 77: %v", err)
	}
}

func TestGrowthIsSeen(t *testing.T) {
	d := &disk{b: make([]byte, 8<<20), block: 4096}
	target, address := serve(t, d, nvme.Subsystem{AllowAnyHost: true})
	_, _, c := openReal(t, address, Options{}, 1, 8)
	events, err := c.Events(t.Context(), wire.EventsNamespace)
	if err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.b = append(d.b, make([]byte, 8<<20)...)
	d.mu.Unlock()
	if err := target.Resized(realNQN, 1); err != nil {
		t.Fatal(err)
	}
	within(t, func() {
		if e := <-events; e.LogPage != wire.LogChangedNS {
			t.Errorf("event %+v", e)
		}
		changed := make([]byte, 4096)
		if err := c.LogPage(t.Context(), wire.LogChangedNS, 0, 0, changed); err != nil || len(wire.ParseNamespaceList(changed)) != 1 {
			t.Errorf("changed namespaces: %v", err)
		}
		if n, err := c.Namespace(t.Context(), 1); err != nil || n.Size() != 16<<20 {
			t.Errorf("after the growth: %+v, %v", n, err)
		}
	})
}

func TestReservationsFenceOtherHosts(t *testing.T) {
	d := &disk{b: make([]byte, 1<<20), block: 512}
	_, address := serve(t, d, nvme.Subsystem{AllowAnyHost: true})
	one, n1, _ := openReal(t, address, Options{}, 1, 4)
	two, n2, _ := openReal(t, address, Options{}, 1, 4)
	ctx := t.Context()
	do := func(q *Queue, c *Command) {
		t.Helper()
		if err := q.Do(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	do(one[0], n1.Register(wire.ReservActRegister, wire.ReservPersistNoChange, 0, 0x11))
	do(one[0], n1.Acquire(wire.ReservActAcquire, wire.ReservWriteExclusive, 0x11, 0))
	if err := n2.Write(ctx, two[0], 0, make([]byte, 512), false); capsule.KindOf(err) != capsule.Denied {
		t.Errorf("another host writes: %v", err)
	}
	if err := n2.Read(ctx, two[0], 0, make([]byte, 512)); err != nil {
		t.Errorf("another host cannot read: %v", err)
	}
	r, err := n2.ReservationReport(ctx, two[0])
	if err != nil || r.Type != wire.ReservWriteExclusive || len(r.Registrants) != 1 || r.Registrants[0].Key != 0x11 || !r.Registrants[0].Holder {
		t.Errorf("%+v, %v", r, err)
	}
	do(one[0], n1.Release(wire.ReservActRelease, wire.ReservWriteExclusive, 0x11))
	if err := n2.Write(ctx, two[0], 0, make([]byte, 512), false); err != nil {
		t.Errorf("after the release: %v", err)
	}
}

func TestOnlyHostsWithTheSecretComeIn(t *testing.T) {
	mine, err := dhchap.GenerateSecret(dhchap.SHA512, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := dhchap.GenerateSecret(dhchap.SHA384, 0)
	if err != nil {
		t.Fatal(err)
	}
	id := [16]byte{1, 2, 3}
	d := &disk{b: make([]byte, 1<<20), block: 512}
	_, address := serve(t, d, nvme.Subsystem{Hosts: []nvme.Host{{NQN: HostNQN(id), Secret: mine.Text(), CtrlSecret: theirs.Text()}}})
	for _, g := range []dhchap.Group{dhchap.Null, dhchap.FFDHE2048, dhchap.FFDHE3072} {
		qs, n, _ := openReal(t, address, Options{HostID: id, Secret: mine, ControllerSecret: theirs, Groups: []dhchap.Group{g}}, 2, 4)
		if err := n.Read(t.Context(), qs[1], 0, make([]byte, 512)); err != nil {
			t.Errorf("%v: %v", g, err)
		}
	}
	for name, o := range map[string]Options{
		"another host": {Secret: mine}, "no secret": {HostID: id}, "a wrong secret": {HostID: id, Secret: theirs},
		"a target that cannot prove itself": {HostID: id, Secret: mine, ControllerSecret: mine},
	} {
		c, err := Connect(t.Context(), address, realNQN, o)
		if err == nil {
			c.Close()
		}
		if capsule.KindOf(err) != capsule.Denied {
			t.Errorf("%s: %v, of kind %v", name, err, capsule.KindOf(err))
		}
	}
}

func TestTargetIsDiscovered(t *testing.T) {
	d := &disk{b: make([]byte, 1<<20), block: 512}
	_, address := serve(t, d, nvme.Subsystem{AllowAnyHost: true})
	c, err := Connect(t.Context(), address, wire.DiscoveryNQN, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	entries, _, err := c.Discover(t.Context())
	found := false
	for _, e := range entries {
		found = found || e.SubNQN == realNQN && net.JoinHostPort(e.TrAddr, e.TrSvcID) == address
	}
	if err != nil || !found {
		t.Errorf("%+v, %v", entries, err)
	}
}

func TestTargetThatCloses(t *testing.T) {
	d := &disk{b: make([]byte, 1<<20), block: 512}
	target, address := serve(t, d, nvme.Subsystem{AllowAnyHost: true})
	qs, n, c := openReal(t, address, Options{}, 1, 4)
	c.Close() // so that the end of the test does not complain
	c = dialAgain(t, address)
	qs, err := c.OpenQueues(t.Context(), 1, 4)
	if err != nil {
		t.Fatal(err)
	}
	within(t, func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // at once
		target.Close(ctx)
		for err == nil {
			err = n.Read(t.Context(), qs[0], 0, make([]byte, 512))
		}
		var s *CommandError
		if capsule.KindOf(err) != capsule.Unavailable && !errors.As(err, &s) {
			t.Errorf("%v of kind %v", err, capsule.KindOf(err))
		}
	})
	c.Close()
}

func dialAgain(t *testing.T, address string) *Controller {
	t.Helper()
	c, err := Connect(t.Context(), address, realNQN, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
