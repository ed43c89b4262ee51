package nvme

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/spacestore/space/views/nvme/wire"
)

// What is written is read, in the capsule and asked for, with all digests and
// alignments, with one and several R2Ts, with and without the SUCCESS flag.
func TestReadWrite(t *testing.T) {
	for _, s := range []settings{{}, {header: true}, {data: true}, {header: true, data: true, hpda: 7}, {maxR2T: 3}, {cattr: wire.ConnectDisableSQFlow}} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			o := Options{MaxH2CData: 8192}
			if s.maxR2T > 0 {
				o.R2TSize = 4096
			}
			r := newRig(t, o)
			m := r.disk()
			_, q := r.host(s)
			for i, n := range []int{512, 4096, 8192, 16384, 16896, 131072, 1 << 19} {
				data := pattern(byte(i), n)
				w := ioCommand(wire.OpWrite, uint64(i), uint32(n/512))
				if n <= 16<<10 {
					q.ok(q.do(w, data))
				} else {
					q.ok(q.writeR2T(w, data))
				}
				if !bytes.Equal(m.data[512*i:][:n], data) {
					t.Fatalf("%d bytes were written wrong", n)
				}
				a := q.read(uint64(i), uint32(n/512))
				q.ok(a)
				if !bytes.Equal(a.data, data) {
					t.Fatalf("%d bytes were read wrong", n)
				}
				if a.implied != (s.cattr != 0) {
					t.Fatalf("success implied by data: %t", a.implied)
				}
			}
			q.ok(q.do(ioCommand(wire.OpFlush, 0, 0), nil))
			if !bytes.Equal(m.flushed, m.data) {
				t.Fatal("the flush did not reach the device")
			}
		})
	}
}
