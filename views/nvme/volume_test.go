package nvme

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
	"github.com/spacestore/space/views/nvme/wire"
)

func openStore(t testing.TB, dir string, fsys vfs.FS) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), store.Options{Dir: dir, FS: fsys, Logger: slog.New(slog.DiscardHandler),
		Keys: keyring.Source{MasterKey: strings.Repeat("5a", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openVolume(t testing.TB, s *store.Store, id capsule.ID) *store.Volume {
	t.Helper()
	v, err := s.OpenVolume(context.Background(), id, "", store.WriteVolume)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newVolume(t testing.TB, s *store.Store, size int64) *store.Volume {
	t.Helper()
	info, err := s.Create(context.Background(), store.CreateRequest{Kind: capsule.Volume, Size: size, BlockSize: 512}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return openVolume(t, s, info.ID)
}

// What a host was told is durable is there after a power cut, whatever the
// command; and a volume takes everything a host may send, 1 MiB from the middle
// of its blocks too.
func TestVolumePowerCut(t *testing.T) {
	disk := vfstest.NewPowerCut()
	s := openStore(t, "/space", disk)
	v := newVolume(t, s, 8<<20)
	id := v.Info().ID
	r := newRig(t, Options{})
	r.add(Namespace{NSID: 1, Device: v, AtomicWrite: 1 << 20})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { v.Close() })
	_, q := r.host(settings{})
	want := make([]byte, 8<<20)
	wantAfterCut := func(what string) {
		t.Helper()
		cut := openStore(t, "/space", disk.Clone(0))
		defer cut.Close()
		v := openVolume(t, cut, id)
		defer v.Close()
		got := make([]byte, len(want))
		if _, err := v.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("after %s and a power cut something is missing", what)
		}
	}
	fua := func(sqe *wire.SQE) *wire.SQE {
		sqe.SetCDW(12, sqe.CDW(12)|wire.FUA)
		return sqe
	}
	p := pattern(1, 4096)
	copy(want[512:], p)
	q.ok(q.do(fua(ioCommand(wire.OpWrite, 1, 8)), p))
	wantAfterCut("a write with FUA")

	big := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(big)
	copy(want[3*512:], big)
	q.ok(q.writeR2T(fua(ioCommand(wire.OpWrite, 3, 2048)), big))
	wantAfterCut("a write of 1 MiB with FUA")

	clear(want[5*512 : 5*512+100*512])
	q.ok(q.do(fua(ioCommand(wire.OpWriteZeroes, 5, 100)), nil))
	wantAfterCut("write zeroes with FUA")

	copy(want[8192*512:], p)
	q.ok(q.do(ioCommand(wire.OpWrite, 8192, 8), p))
	clear(want[1<<19 : 1<<20])
	dsm := ioCommand(wire.OpDSM, 0, 0)
	dsm.SetCDW(11, wire.DSMDeallocate)
	q.ok(q.do(dsm, wire.AppendDSMRange(nil, wire.DSMRange{SLBA: 1024, Blocks: 1024})))
	q.ok(q.do(ioCommand(wire.OpFlush, 0, 0), nil))
	wantAfterCut("a flush")

	copy(want, pattern(2, 512))
	if c, w := q.fused(0, make([]byte, 512), pattern(2, 512)); c != 0 || w != 0 {
		t.Fatal(c, w)
	}
	q.ok(q.do(ioCommand(wire.OpFlush, 0, 0), nil))
	wantAfterCut("compare and write, and a flush")
	if got := q.ok(q.read(0, 2048)).data; !bytes.Equal(got, want[:1<<20]) {
		t.Fatal("what is read is not what was written")
	}
	q.ok(q.do(ioCommand(wire.OpVerify, 0, 16384), nil))
}

// BenchmarkVolume reads and writes a volume whose bytes are in memory, as
// BenchmarkRead and BenchmarkWrite do nothing.
func BenchmarkVolume(b *testing.B) {
	const span = 64 << 20
	for _, c := range []struct {
		op          uint8
		size, depth int
	}{{wire.OpRead, 4096, 1}, {wire.OpRead, 4096, 32}, {wire.OpRead, 128 << 10, 8}, {wire.OpWrite, 4096, 32}} {
		b.Run(fmt.Sprintf("%s/%dKiB/depth=%d", map[uint8]string{wire.OpRead: "read", wire.OpWrite: "write"}[c.op], c.size>>10, c.depth), func(b *testing.B) {
			s := openStore(b, b.TempDir(), nil)
			v := newVolume(b, s, span)
			p := make([]byte, 1<<20)
			for off := int64(0); off < span; off += 1 << 20 {
				_, _ = rand.NewChaCha8([32]byte{byte(off >> 20)}).Read(p)
				if _, err := v.WriteAt(p, off); err != nil {
					b.Fatal(err)
				}
			}
			for off := int64(0); off < span; off += 1 << 20 { // warm
				if _, err := v.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
			}
			r := newRig(b, Options{})
			r.add(Namespace{NSID: 1, Device: v, AtomicWrite: 1 << 20})
			b.Cleanup(func() { v.Close(); s.Close() })
			admin := r.admin(settings{cattr: wire.ConnectDisableSQFlow, sqSize: 63})
			q := r.io(admin, 1)
			b.SetBytes(int64(c.size))
			sqe := room(ioCommand(c.op, 0, uint32(c.size/512)), c.size)
			answer, pdu := wire.DataLen+c.size, q.tx.AppendCommand(nil, sqe, 0)
			if c.op == wire.OpWrite {
				sqe.SetSGL(wire.SGL{Length: uint32(c.size), Type: wire.SGLInCapsule})
				answer, pdu = wire.CapsuleRespLen, append(q.tx.AppendCommand(nil, sqe, c.size), p[:c.size]...)
			}
			b.ResetTimer()
			p50 := exchange(b, q.nc, c.depth, b.N, answer, func(i int, w *bufio.Writer) {
				sqe := (*wire.SQE)(pdu[wire.CommonLen:])
				sqe.SetCID(uint16(i))
				sqe.SetRange(rand.Uint64N(uint64(span/c.size))*uint64(c.size/512), uint32(c.size/512))
				_, _ = w.Write(pdu)
			})
			if c.depth == 1 {
				b.ReportMetric(float64(p50), "p50-ns")
			}
		})
	}
}
