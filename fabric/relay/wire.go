package relay

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Limits of what travels.
const (
	MaxOps   = 256     // operations, or replies, in a batch
	MaxData  = 1 << 20 // bytes that one operation writes or drains
	MaxBatch = 8 << 20 // bytes of an encoded batch

	maxMessage = 512 // bytes of a reply's text
)

// CapPipelineSeq is the bit of Reply.Caps that says: the server runs numbered
// operations in order and echoes their numbers.
const CapPipelineSeq = 1 << 0

// ID names a session: random bytes that the client chooses, so that nobody
// else can guess it.
type ID [16]byte

// Kind is what an operation does.
type Kind uint8

// The kinds of operations.
const (
	Connect Kind = 1 // begin the session; has no number
	Data    Kind = 2 // write Op.Data, then drain
	Close   Kind = 3 // end the session in both directions
	Resume  Kind = 4 // give the reply of an operation sent before
)

// Op is one operation on one session. On the wire it is a message in
// Protocol Buffers' encoding, field numbers as in the comments; a field that
// is zero is left out, and Seq is left out unless Numbered.
type Op struct {
	Kind     Kind   // 1
	Session  ID     // 2
	Numbered bool   //
	Seq      uint64 // 3: place in the session's order, from 0
	Data     []byte // 4
	Fin      bool   // 5: nothing follows this operation's Data
	Drain    uint32 // 6: bytes to drain at most
	Wait     uint32 // 7: milliseconds to wait for bytes to drain
	Ack      uint64 // 8: the client has the replies to all numbers below
}

// Status is how an operation went.
type Status uint8

// The statuses. One that is unknown counts as Failed.
const (
	OK      Status = 0
	Pending Status = 1 // not yet: ask again with Resume
	Missing Status = 2 // Resume of an operation that the server does not have: send it again
	Gone    Status = 3 // there is no such session (any more)
	Failed  Status = 4 // the operation failed; Message says why
	Busy    Status = 5 // no room for a new session now
)

// Reply is the answer to one operation; encoded like [Op].
type Reply struct {
	Session  ID     // 1
	Numbered bool   //
	Seq      uint64 // 2: echoed
	Status   Status // 3
	Data     []byte // 4: drained
	EOF      bool   // 5: nothing follows Data; never while bytes remain
	Window   uint32 // 6: bytes that the session has room for
	Caps     uint64 // 7: in the reply to Connect
	Message  string // 8
}

var errTruncated = errors.New("relay: truncated or malformed batch")

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return appendUintAlways(b, field, v)
}

func appendUintAlways(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendUintAlways(b, field, 1)
}

func (o *Op) append(b []byte) []byte {
	b = appendUint(b, 1, uint64(o.Kind))
	b = appendBytes(b, 2, o.Session[:])
	if o.Numbered {
		b = appendUintAlways(b, 3, o.Seq)
	}
	b = appendBytes(b, 4, o.Data)
	b = appendBool(b, 5, o.Fin)
	b = appendUint(b, 6, uint64(o.Drain))
	b = appendUint(b, 7, uint64(o.Wait))
	return appendUint(b, 8, o.Ack)
}

func (r *Reply) append(b []byte) []byte {
	b = appendBytes(b, 1, r.Session[:])
	if r.Numbered {
		b = appendUintAlways(b, 2, r.Seq)
	}
	b = appendUint(b, 3, uint64(r.Status))
	b = appendBytes(b, 4, r.Data)
	b = appendBool(b, 5, r.EOF)
	b = appendUint(b, 6, uint64(r.Window))
	b = appendUint(b, 7, r.Caps)
	return appendBytes(b, 8, []byte(r.Message))
}

// appendMessage appends m to an encoded batch.
func appendMessage(batch []byte, m interface{ append([]byte) []byte }) []byte {
	return protowire.AppendBytes(protowire.AppendTag(batch, 1, protowire.BytesType), m.append(nil))
}

// EncodeOps returns a batch of operations.
func EncodeOps(ops []Op) (b []byte) {
	for i := range ops {
		b = appendMessage(b, &ops[i])
	}
	return b
}

// EncodeReplies returns a batch of replies.
func EncodeReplies(rs []Reply) (b []byte) {
	for i := range rs {
		b = appendMessage(b, &rs[i])
	}
	return b
}

// field is one field of a message: a number or bytes.
type field struct {
	num   protowire.Number
	kind  protowire.Type
	value uint64
	bytes []byte
}

// fields calls fn for each field of a message that has a type which some field
// of ours has; others are skipped.
func fields(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errTruncated
		}
		b = b[n:]
		f := field{num: num, kind: kind}
		switch kind {
		case protowire.VarintType:
			f.value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if n < 0 {
			return errTruncated
		}
		b = b[n:]
		if kind == protowire.VarintType || kind == protowire.BytesType {
			if err := fn(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// messages calls fn for each message of a batch.
func messages(b []byte, fn func([]byte) error) error {
	if len(b) > MaxBatch {
		return fmt.Errorf("relay: batch of %d bytes; the limit is %d", len(b), MaxBatch)
	}
	n := 0
	return fields(b, func(f field) error {
		if f.num != 1 || f.kind != protowire.BytesType {
			return nil
		}
		if n++; n > MaxOps {
			return fmt.Errorf("relay: batch of more than %d messages", MaxOps)
		}
		return fn(f.bytes)
	})
}

// id reads a session's name.
func (f field) id(to *ID) error {
	if len(f.bytes) != len(to) {
		return fmt.Errorf("relay: session name of %d bytes; it has %d", len(f.bytes), len(to))
	}
	copy(to[:], f.bytes)
	return nil
}

// small reads a number that has to fit into 32 bits.
func (f field) small(to *uint32) error {
	if f.value > 1<<32-1 {
		return fmt.Errorf("relay: field %d is %d, beyond 32 bits", f.num, f.value)
	}
	*to = uint32(f.value)
	return nil
}

// data reads bytes that an operation writes or has drained. They alias the
// batch.
func (f field) data(to *[]byte) error {
	if len(f.bytes) > MaxData {
		return fmt.Errorf("relay: operation with %d bytes; the limit is %d", len(f.bytes), MaxData)
	}
	*to = f.bytes
	return nil
}

// DecodeOps reads a batch of operations. Their data aliases b.
func DecodeOps(b []byte) (ops []Op, err error) {
	err = messages(b, func(m []byte) error {
		var o Op
		if err := o.decode(m); err != nil {
			return err
		}
		ops = append(ops, o)
		return nil
	})
	return ops, err
}

func (o *Op) decode(m []byte) error {
	return fields(m, func(f field) error {
		if f.kind == protowire.BytesType {
			switch f.num {
			case 2:
				return f.id(&o.Session)
			case 4:
				return f.data(&o.Data)
			}
			return nil
		}
		switch f.num {
		case 1:
			o.Kind = Kind(min(f.value, 255))
		case 3:
			o.Numbered, o.Seq = true, f.value
		case 5:
			o.Fin = f.value != 0
		case 6:
			return f.small(&o.Drain)
		case 7:
			return f.small(&o.Wait)
		case 8:
			o.Ack = f.value
		}
		return nil
	})
}

// DecodeReplies reads a batch of replies. Their data aliases b.
func DecodeReplies(b []byte) (rs []Reply, err error) {
	err = messages(b, func(m []byte) error {
		var r Reply
		if err := r.decode(m); err != nil {
			return err
		}
		rs = append(rs, r)
		return nil
	})
	return rs, err
}

func (r *Reply) decode(m []byte) error {
	return fields(m, func(f field) error {
		if f.kind == protowire.BytesType {
			switch f.num {
			case 1:
				return f.id(&r.Session)
			case 4:
				return f.data(&r.Data)
			case 8:
				r.Message = string(f.bytes[:min(len(f.bytes), maxMessage)])
			}
			return nil
		}
		switch f.num {
		case 2:
			r.Numbered, r.Seq = true, f.value
		case 3:
			if r.Status = Status(min(f.value, 255)); r.Status > Busy {
				r.Status = Failed
			}
		case 5:
			r.EOF = f.value != 0
		case 6:
			return f.small(&r.Window)
		case 7:
			r.Caps = f.value
		}
		return nil
	})
}
