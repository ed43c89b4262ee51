package wire

import (
	"errors"
	"fmt"
	"io"
)

// ErrDataDigest says that data arrived whole and its digest does not match.
// The connection is still in step: the command fails, others go on (TCP 3.3.1.2).
var ErrDataDigest = errors.New("data digest error")

// Reader takes PDUs from a stream. It is for one goroutine.
type Reader struct {
	// HeaderDigest and DataDigest are what was agreed on with ICReq and ICResp.
	HeaderDigest, DataDigest bool
	// PDA is this side's own: the alignment that data in PDUs must have.
	PDA uint8
	// MaxData bounds the data of one PDU.
	MaxData int

	r    io.Reader
	buf  []byte
	i, n int // what is buffered: buf[i:n]

	header   [ICLen]byte // the present PDU's
	data     int         // bytes of its data
	left     int         // of which are not yet read
	digested bool        // a digest follows them
	crc      uint32
}

// NewReader returns a Reader that buffers up to size bytes.
func NewReader(r io.Reader, size int) *Reader {
	return &Reader{r: r, buf: make([]byte, max(size, 2*ICLen))}
}

// Grow makes the buffer at least size bytes large.
func (r *Reader) Grow(size int) {
	if size <= len(r.buf) {
		return
	}
	buf := make([]byte, size)
	r.n = copy(buf, r.buf[r.i:r.n])
	r.buf, r.i = buf, 0
}

// Buffered reports whether the next PDU's header is there without waiting.
func (r *Reader) Buffered() bool {
	at := r.i + r.unread()
	return r.n-at >= CommonLen && r.n-at >= int(r.buf[at+2])
}

// unread returns how much is left of the present PDU.
func (r *Reader) unread() int {
	if r.digested {
		return r.left + DigestLen
	}
	return r.left
}

// fill waits until n bytes are buffered.
func (r *Reader) fill(n int) error {
	if r.n-r.i >= n {
		return nil
	}
	if r.i > 0 {
		r.n = copy(r.buf, r.buf[r.i:r.n])
		r.i = 0
	}
	for r.n < n {
		m, err := r.r.Read(r.buf[r.n:])
		if r.n += m; r.n >= n {
			return nil
		}
		if err != nil {
			if err == io.EOF && r.n > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// Next reads the next PDU up to its data. The header it returns is valid until
// the next call. Data of the PDU before that was not read is skipped. It
// returns io.EOF at the end between PDUs, and a *[ProtocolError] where the
// peer broke the rules.
func (r *Reader) Next() (PDUType, []byte, error) {
	if err := r.skip(); err != nil {
		return 0, nil, err
	}
	if err := r.fill(CommonLen); err != nil {
		return 0, nil, err
	}
	c := r.buf[r.i : r.i+CommonLen]
	t, flags, hlen, pdo, plen := PDUType(c[0]), c[1], int(c[2]), int(c[3]), le.Uint32(c[4:])
	bad := func(offset uint32, format string, args ...any) (PDUType, []byte, error) {
		h := append([]byte(nil), r.buf[r.i:min(r.n, r.i+max(hlen, CommonLen))]...)
		return t, nil, &ProtocolError{FES: FESInvalidHeader, FEI: offset, Header: h, Msg: fmt.Sprintf("%s: %s", t, fmt.Sprintf(format, args...))}
	}
	want := headerLen(t)
	switch {
	case want == 0:
		return bad(0, "no such PDU")
	case hlen != want:
		return bad(2, "header length %d, not %d", hlen, want)
	}
	hdgst := r.HeaderDigest && hasDigests(t)
	if hdgst != (flags&FlagHeaderDigest != 0) {
		return bad(1, "header digest flag is %t, agreed was %t", flags&FlagHeaderDigest != 0, hdgst)
	}
	head := hlen
	if hdgst {
		head += DigestLen
	}
	if uint64(plen) < uint64(head) {
		return bad(4, "PDU length %d", plen)
	}
	// What is after the header: nothing, or data at its offset and its digest.
	ddgst := false
	gap, data := 0, uint64(plen)-uint64(head)
	if data > 0 && !hasData(t) {
		return bad(4, "PDU length %d", plen)
	}
	if data > 0 && hasDigests(t) {
		ddgst = r.DataDigest
		if ddgst != (flags&FlagDataDigest != 0) {
			return bad(1, "data digest flag is %t, agreed was %t", flags&FlagDataDigest != 0, ddgst)
		}
		if pdo < head || pdo%4 != 0 || pdo%((int(r.PDA)+1)*4) != 0 {
			return bad(3, "data offset %d", pdo)
		}
		gap = pdo - head
		tail := uint64(gap)
		if ddgst {
			tail += DigestLen
		}
		if data <= tail {
			return bad(4, "PDU length %d", plen)
		}
		data -= tail
	}
	limit := r.MaxData
	if t == TypeH2CTermReq || t == TypeC2HTermReq {
		limit = MaxTermReqLen - TermReqLen
	}
	if data > uint64(limit) {
		_, _, err := bad(4, "%d bytes of data, the limit is %d", data, limit)
		if t == TypeH2CData {
			err.(*ProtocolError).FES, err.(*ProtocolError).FEI = FESLimitExceeded, 0
		}
		return t, nil, err
	}
	if err := r.fill(head); err != nil {
		return t, nil, noEOF(err)
	}
	h := r.header[:hlen]
	copy(h, r.buf[r.i:])
	if hdgst {
		if got := le.Uint32(r.buf[r.i+hlen:]); got != Digest(0, h) {
			return t, nil, &ProtocolError{FES: FESHeaderDigest, FEI: got, Header: append([]byte(nil), h...), Msg: t.String()}
		}
	}
	r.i += head
	r.data, r.left, r.digested, r.crc = int(data), int(data), ddgst, 0
	if err := r.discard(gap); err != nil {
		return t, nil, err
	}
	return t, h, nil
}

// DataLen returns how many bytes of data the present PDU has.
func (r *Reader) DataLen() int { return r.data }

// ReadData fills p with the next bytes of the PDU's data. With the last of
// them it verifies the digest: [ErrDataDigest].
func (r *Reader) ReadData(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if len(p) > r.left {
		return fmt.Errorf("%d bytes of data asked for, the PDU has %d", len(p), r.left)
	}
	n := copy(p, r.buf[r.i:r.n])
	r.i += n
	if rest := p[n:]; len(rest) >= len(r.buf) {
		if _, err := io.ReadFull(r.r, rest); err != nil {
			return noEOF(err)
		}
	} else if len(rest) > 0 {
		if err := r.fill(len(rest)); err != nil {
			return noEOF(err)
		}
		r.i += copy(rest, r.buf[r.i:r.n])
	}
	r.left -= len(p)
	if !r.digested {
		return nil
	}
	r.crc = Digest(r.crc, p)
	if r.left > 0 {
		return nil
	}
	r.digested = false
	if err := r.fill(DigestLen); err != nil {
		return noEOF(err)
	}
	got := le.Uint32(r.buf[r.i:])
	r.i += DigestLen
	if got != r.crc {
		return ErrDataDigest
	}
	return nil
}

// skip leaves out what was not read of the present PDU.
func (r *Reader) skip() error {
	n := r.unread()
	r.left, r.digested = 0, false
	return r.discard(n)
}

func (r *Reader) discard(n int) error {
	for n > 0 {
		if err := r.fill(1); err != nil {
			return noEOF(err)
		}
		m := min(n, r.n-r.i)
		r.i += m
		n -= m
	}
	return nil
}

// noEOF is for places where the stream must not end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
