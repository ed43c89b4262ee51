package control

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec for everything but content
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/spacestore/space/capsule"
)

// dataField is the number of the field "data" in the messages of content:
// PutRequest, GetResponse, ImportRequest and ExportResponse.
const dataField = 2

// maxHead bounds all fields of a chunk but its data.
const maxHead = 256 << 10

// chunk is a message of content whose data field stays in gRPC's own buffers
// instead of being copied into the message. On the wire it is the same message.
type chunk struct {
	head proto.Message   // without data
	data mem.BufferSlice // owned: Free it when done
}

func (c *chunk) free() {
	c.data.Free()
	c.data = nil
}

// codec is protobuf, with chunks taken past it.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Name is that of the plain codec, because the wire form is plain protobuf.
func (codec) Name() string { return "proto" }

// Marshal implements encoding.CodecV2. It takes over a chunk's data.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	ch, ok := v.(*chunk)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	out, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 0, 64), ch.head)
	if err != nil {
		ch.free()
		return nil, err
	}
	if n := ch.data.Len(); n > 0 {
		out = protowire.AppendTag(out, dataField, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(n))
	}
	bufs := append(mem.BufferSlice{mem.SliceBuffer(out)}, ch.data...)
	ch.data = nil
	return bufs, nil
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(in mem.BufferSlice, v any) error {
	ch, ok := v.(*chunk)
	if !ok {
		return c.CodecV2.Unmarshal(in, v)
	}
	return ch.unmarshal(in)
}

// unmarshal walks the top-level fields, keeps views of the data field's bytes
// and gives all others to proto.Unmarshal.
func (c *chunk) unmarshal(in mem.BufferSlice) error {
	bad := func(why string) error {
		c.free()
		return capsule.Errorf(capsule.Invalid, "content message: %s", why)
	}
	var head []byte
	cur := cursor{bufs: in, left: in.Len()}
	for cur.left > 0 {
		var scratch [2 * 10]byte // a tag and a length
		peek := scratch[:cur.peek(scratch[:])]
		num, typ, n := protowire.ConsumeTag(peek)
		if n < 0 {
			return bad("broken tag")
		}
		value, vn := protowire.ConsumeVarint(peek[n:])
		if vn < 0 {
			return bad("broken length")
		}
		n += vn
		if typ == protowire.VarintType { // the value is in peek
			head = append(head, peek[:n]...)
			cur.skip(n)
			continue
		}
		if typ != protowire.BytesType {
			return bad("unexpected wire type")
		}
		if value > uint64(cur.left-n) {
			return bad("length beyond its end")
		}
		if num == dataField {
			if c.data != nil {
				return bad("two data fields")
			}
			cur.skip(n)
			c.data = cur.take(int(value))
			continue
		}
		field := n + int(value)
		if len(head)+field > maxHead {
			return bad("header too large")
		}
		at := len(head)
		head = append(head, make([]byte, field)...)
		cur.peek(head[at:])
		cur.skip(field)
	}
	if len(head) > maxHead {
		return bad("header too large")
	}
	if err := proto.Unmarshal(head, c.head); err != nil {
		return bad(err.Error())
	}
	return nil
}

// cursor walks a BufferSlice without joining its pieces.
type cursor struct {
	bufs mem.BufferSlice
	off  int // in bufs[0]
	left int // bytes from here to the end
}

// peek copies as many of the next bytes as there are into p.
func (c *cursor) peek(p []byte) int {
	n, off := 0, c.off
	for _, b := range c.bufs {
		if n == len(p) {
			break
		}
		n += copy(p[n:], b.ReadOnlyData()[off:])
		off = 0
	}
	return n
}

// skip moves n bytes on; the caller knows that there are as many.
func (c *cursor) skip(n int) {
	c.left -= n
	for n > 0 {
		have := c.bufs[0].Len() - c.off
		if n < have {
			c.off += n
			return
		}
		n -= have
		c.bufs, c.off = c.bufs[1:], 0
	}
}

// take moves n bytes on and returns them as views with references of their
// own. The result is not nil even when n is zero.
func (c *cursor) take(n int) mem.BufferSlice {
	out := make(mem.BufferSlice, 0, 1+n/(16<<10))
	for n > 0 {
		b := c.bufs[0]
		m := min(n, b.Len()-c.off)
		if m > 0 {
			out = append(out, b.Slice(c.off, c.off+m))
			c.skip(m)
			n -= m
		} else {
			c.bufs, c.off = c.bufs[1:], 0
		}
	}
	return out
}
