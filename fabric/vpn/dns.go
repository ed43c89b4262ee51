package vpn

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"

	"github.com/spacestore/space/fabric"
)

// dnsRoom bounds the DNS packets that wait for their stream, in bytes.
const dnsRoom = 256 << 10

// dnsFlow is one end of a stream that carries packets: each u16 length and
// bytes.
type dnsFlow struct {
	st fabric.Stream
	q  *queue
}

func newDNSFlow(st fabric.Stream) *dnsFlow {
	return &dnsFlow{st: st, q: newQueue(dnsRoom)}
}

// send takes in a packet, which it copies, if there is room.
func (f *dnsFlow) send(p []byte) bool {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(p)), uint16(len(p)))
	return f.q.put(batch{[][]byte{append(b, p...)}, cap(b)})
}

// run carries packets both ways until the stream ends, or ctx.
func (f *dnsFlow) run(ctx context.Context, in func(packets [][]byte)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { f.st.Reset(CodeStopped, "the tunnel's DNS stream was stopped") })
	defer stop()
	go func() {
		defer cancel()
		for {
			b, ok := f.q.take(ctx.Done())
			if !ok {
				return
			}
			if _, err := f.st.Write(b.packets[0]); err != nil {
				return // the reader says why
			}
		}
	}()
	for r := bufio.NewReader(f.st); ; {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		p := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(r, p); err != nil {
			return noEOF(err)
		}
		in([][]byte{p})
	}
}
