package session

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// Stream is a reliable, ordered flow of bytes. It is a net.Conn and may be used
// from many goroutines.
type Stream struct {
	s      *Session
	id     uint64
	class  frame.Class
	header []byte // what the peer opened it with

	// Everything below is guarded by s.mu.
	err      error         // ends reads and writes
	wake     chan struct{} // closed and made anew when somebody who waits should look
	accepted bool

	// What is sent: bytes from una, which is not acknowledged, to end.
	open                 []byte // length and header, on a stream that was opened here
	openSaid, openAcked  bool
	openLink             *link
	blocks               []*block // from the one that has una on
	una, nxt, end, limit uint64
	again                []span // to be sent again
	flights              []flight
	fin, finSent         bool
	finEver              bool // it was sent once, perhaps over a link that is lost
	finLink              *link
	finAcked             bool
	noReader             bool
	queued               bool // in s.ready
	writeAt              time.Time

	// What is received: bytes to got have come, those to read are taken.
	in        []piece // to read
	early     []piece // beyond got, by offset
	earlySize int
	got, read uint64
	finAt     uint64 // MaxUint64: not known
	window    uint64
	promised  uint64 // limit that the peer knows of
	said      uint64 // what the peer knows has come
	since     time.Time
	sinceRead uint64
	discard   bool // nobody reads
	toSay     bool // in s.windows
	readAt    time.Time
}

// span is a range of a stream's bytes.
type span struct{ off, end uint64 }

// flight is a range that was sent over a link.
type flight struct {
	span
	link *link
}

// piece is bytes that came.
type piece struct {
	off uint64
	b   []byte
	mem *[quantum]byte // that b lies in, where it is to be used again
}

// payloads keeps the memory of large pieces.
var payloads = sync.Pool{New: func() any { return new([quantum]byte) }}

// newPiece returns a piece with room for n bytes.
func newPiece(off uint64, n int) piece {
	if n <= small || n > quantum {
		return piece{off, make([]byte, n), nil}
	}
	mem := payloads.Get().(*[quantum]byte)
	return piece{off, mem[:n], mem}
}

// end returns the offset behind the piece.
func (p piece) end() uint64 { return p.off + uint64(len(p.b)) }

// from returns the piece without the bytes before an offset.
func (p piece) from(off uint64) piece {
	if off > p.off {
		p.b, p.off = p.b[off-p.off:], off
	}
	return p
}

// free gives the memory back.
func (p piece) free() {
	if p.mem != nil {
		payloads.Put(p.mem)
	}
}

// block holds bytes to send, behind room for a frame's head.
type block struct {
	off  uint64
	b    []byte // headRoom bytes, then the payload
	refs int    // writes under way
}

const headRoom = frame.HeadSize + frame.DataSize

// pool keeps the memory of whole blocks, and of payloads that came.
var pool = sync.Pool{New: func() any { return new([headRoom + quantum]byte) }}

func newStream(s *Session, id uint64, class frame.Class) *Stream {
	return &Stream{s: s, id: id, class: class, wake: make(chan struct{}), limit: firstWindow,
		finAt: math.MaxUint64, window: firstWindow, promised: firstWindow, since: time.Now()}
}

// ID returns the stream's number in its session.
func (st *Stream) ID() uint64 { return st.id }

// Class returns the stream's class.
func (st *Stream) Class() frame.Class { return st.class }

// Header returns what the peer opened the stream with.
func (st *Stream) Header() []byte { return st.header }

// remote reports whether the peer has opened the stream.
func (st *Stream) remote() bool { return (st.id%2 == 1) != st.s.initiator }

func (st *Stream) wakeAll() {
	close(st.wake)
	st.wake = make(chan struct{})
}

// fail ends the stream for its users. Bytes that have come can be read still,
// unless the session was closed here.
func (st *Stream) fail(err error) {
	if st.err == nil {
		st.err = err
	}
	st.blocks, st.flights, st.again = nil, nil, nil
	st.una, st.nxt = st.end, st.end
	st.wakeAll()
}

// Write implements net.Conn. It returns when the bytes are taken in.
func (st *Stream) Write(p []byte) (n int, err error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case st.err != nil:
			return n, st.err
		case st.noReader:
			return n, ErrNoReader
		case st.fin:
			return n, io.ErrClosedPipe
		case passed(st.writeAt):
			return n, os.ErrDeadlineExceeded
		}
		room := max(st.limit-min(st.limit, st.una), firstWindow) + 2*quantum - (st.end - st.una)
		if int64(room) > 0 && len(p) > 0 {
			k := int(min(room, uint64(len(p))))
			st.put(p[:k])
			p, n = p[k:], n+k
			s.enqueue(st)
		}
		if len(p) == 0 {
			return n, nil
		}
		st.wait(st.writeAt)
	}
}

// put copies p into blocks.
func (st *Stream) put(p []byte) {
	for len(p) > 0 {
		var last *block
		if n := len(st.blocks); n > 0 {
			last = st.blocks[n-1]
		}
		if last == nil || len(last.b) == cap(last.b) {
			last = &block{off: st.end}
			if len(p) >= small || st.end-st.una >= small {
				last.b = pool.Get().(*[headRoom + quantum]byte)[:headRoom]
			} else { // a stream that says little holds little
				last.b = make([]byte, headRoom, headRoom+max(len(p), 512))
			}
			st.blocks = append(st.blocks, last)
		}
		k := min(len(p), cap(last.b)-len(last.b))
		last.b = append(last.b, p[:k]...)
		p = p[k:]
		st.end += uint64(k)
	}
}

// wait waits, without the lock, until something changes or at passes.
func (st *Stream) wait(at time.Time) {
	wake := st.wake
	st.s.mu.Unlock()
	defer st.s.mu.Lock()
	if at.IsZero() {
		<-wake
		return
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-wake:
	case <-t.C:
	}
}

func passed(at time.Time) bool { return !at.IsZero() && !time.Now().Before(at) }

// CloseWrite tells the peer that nothing follows. Reads go on.
func (st *Stream) CloseWrite() error {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	st.fin = true
	s.enqueue(st)
	st.wakeAll()
	return nil
}

// Close ends the stream. What was written before still goes out; the peer's
// writes fail.
func (st *Stream) Close() error {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.err != nil || st.discard {
		return nil
	}
	st.fin, st.discard = true, true
	st.in, st.read = nil, st.got
	st.wakeAll()
	s.enqueue(st)
	s.say(st)
	s.forget(st)
	return nil
}

// Reset ends the stream at once, at both ends. code and text are for the peer.
func (st *Stream) Reset(code uint32, text string) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset(st, frame.ResetBody{Stream: st.id, Code: code, Text: text})
}

// Read implements net.Conn.
func (st *Stream) Read(p []byte) (n int, err error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if st.discard {
			return 0, net.ErrClosed
		}
		if passed(st.readAt) {
			return 0, os.ErrDeadlineExceeded
		}
		for len(st.in) > 0 && n < len(p) {
			k := copy(p[n:], st.in[0].b)
			n += k
			if st.in[0].b = st.in[0].b[k:]; len(st.in[0].b) == 0 {
				st.in[0].free()
				st.in[0] = piece{}
				st.in = st.in[1:]
			}
		}
		switch {
		case n > 0:
			st.read += uint64(n)
			st.widen(uint64(n))
			return n, nil
		case len(p) == 0:
			return 0, nil
		case st.read == st.finAt:
			s.forget(st)
			return 0, io.EOF
		case st.err != nil:
			return 0, st.err
		}
		st.wait(st.readAt)
	}
}

// widen lets the window follow the reader, and tells the peer when there is
// much more room than it knows of.
func (st *Stream) widen(n uint64) {
	st.sinceRead += n
	if st.sinceRead >= st.window/2 {
		now := time.Now()
		if now.Sub(st.since) < 2*max(st.s.rtt(), time.Millisecond) {
			st.window = min(2*st.window, uint64(st.s.o.MaxWindow))
		}
		st.since, st.sinceRead = now, 0
	}
	if st.read+st.window-st.promised >= st.window/4 && st.got < st.finAt {
		st.s.say(st)
	}
}

// rtt returns the best link's round trip.
func (s *Session) rtt() (best time.Duration) {
	for _, l := range s.links {
		if l.rtt > 0 && (best == 0 || l.rtt < best) {
			best = l.rtt
		}
	}
	return best
}

// arrive takes in bytes; it owns the piece.
func (st *Stream) arrive(p piece, fin bool) error {
	if p.end() > st.promised {
		return fmt.Errorf("%w: stream %d: byte %d was sent, there was room up to %d", frame.ErrProtocol, st.id, p.end(), st.promised)
	}
	if fin {
		if st.finAt != math.MaxUint64 && st.finAt != p.end() || p.end() < st.got {
			return fmt.Errorf("%w: stream %d ends twice", frame.ErrProtocol, st.id)
		}
		st.finAt = p.end()
	}
	if p.end() > st.finAt {
		return fmt.Errorf("%w: stream %d goes on after its end", frame.ErrProtocol, st.id)
	}
	before := st.got
	if p.off <= st.got {
		st.take(p)
	} else {
		if uint64(st.earlySize+len(p.b)) > 2*st.window {
			return fmt.Errorf("%w: stream %d: the same bytes again and again", frame.ErrProtocol, st.id)
		}
		at, _ := slices.BinarySearchFunc(st.early, p.off, func(q piece, off uint64) int {
			return cmp.Or(cmp.Compare(q.off, off), 1)
		})
		st.early = slices.Insert(st.early, at, p)
		st.earlySize += len(p.b)
	}
	for len(st.early) > 0 && st.early[0].off <= st.got {
		p := st.early[0]
		st.early = st.early[1:]
		st.earlySize -= len(p.b)
		st.take(p)
	}
	if st.got > before || fin {
		st.wakeAll()
	}
	return nil
}

// take appends what of a piece is next; it begins where bytes have come up to,
// or before.
func (st *Stream) take(p piece) {
	old := min(st.got, p.end()) - p.off
	st.s.stats.Duplicate += int64(old)
	p = p.from(p.off + old)
	st.got = max(st.got, p.end())
	switch {
	case st.discard:
		st.read = st.got
		p.free()
	case len(p.b) == 0:
		p.free()
	default:
		st.in = append(st.in, p)
	}
}

// entry is what to tell the peer of the stream.
func (st *Stream) entry() frame.WindowEntry {
	e := frame.WindowEntry{Stream: st.id, Received: st.got, Limit: st.promised}
	if st.got == st.finAt {
		e.Received++ // the end has come, too
	}
	if st.discard {
		e.Limit = frame.NoReader
	}
	return e
}

// promise renews the limit before it is told.
func (st *Stream) promise() {
	st.said = st.got
	st.promised = max(st.promised, st.read+st.window)
}

// acknowledged takes in what the peer says of the stream.
func (st *Stream) acknowledged(e frame.WindowEntry) error {
	st.openSaid, st.openAcked = true, true
	if e.Received > st.end+1 || e.Received > st.end && !st.finEver {
		if st.err != nil {
			return nil
		}
		return fmt.Errorf("%w: stream %d: byte %d is acknowledged of %d", frame.ErrProtocol, st.id, e.Received, st.end)
	}
	if e.Received > st.end {
		st.finAcked = true
	}
	if una := min(e.Received, st.end); una > st.una {
		st.una = una
		st.nxt = max(st.nxt, una)
		for len(st.blocks) > 0 {
			b := st.blocks[0]
			if b.off+uint64(len(b.b)-headRoom) > una {
				break
			}
			st.blocks[0] = nil
			st.blocks = st.blocks[1:]
			if b.refs == 0 {
				b.free()
			}
		}
		st.flights = slices.DeleteFunc(st.flights, func(f flight) bool { return f.end <= una })
		st.wakeAll()
	}
	if e.Limit == frame.NoReader {
		if !st.noReader {
			st.noReader = true
			// Nobody wants what is left: it counts as sent and read.
			st.fin, st.finSent, st.finAcked = true, true, true
			st.una, st.nxt = st.end, st.end
			st.blocks, st.flights, st.again = nil, nil, nil
			st.wakeAll()
		}
	} else if e.Limit > st.limit {
		st.limit = e.Limit
		st.wakeAll()
	}
	return nil
}

// free gives a whole block's memory back.
func (b *block) free() {
	if cap(b.b) == headRoom+quantum {
		pool.Put((*[headRoom + quantum]byte)(b.b[:headRoom+quantum]))
	}
	b.b = nil
}

// over reports whether nothing of the stream is left to do.
func (st *Stream) over() bool {
	return st.finAcked && (st.discard || st.got == st.finAt && st.read == st.finAt)
}

// sendable reports whether there is something to send now.
func (st *Stream) sendable() bool {
	return st.err == nil && !st.noReader &&
		(len(st.again) > 0 || st.nxt < min(st.end, st.limit) || !st.openSaid || st.fin && !st.finSent && st.nxt == st.end)
}

// resend has what was sent over a link, and is not acknowledged, sent again.
func (st *Stream) resend(l *link) {
	st.flights = slices.DeleteFunc(st.flights, func(f flight) bool {
		if f.link != l {
			return false
		}
		if f.off = max(f.off, st.una); f.off < f.end {
			st.again = append(st.again, f.span)
			st.s.stats.Resent += int64(f.end - f.off)
			l.resent += int64(f.end - f.off)
		}
		return true
	})
	if st.openLink == l && !st.openAcked {
		st.openSaid = false
	}
	if !st.finAcked { // even if it went another way: its answer may be lost
		st.finSent = false
	}
	st.s.enqueue(st)
}

// nextSpan returns what to send next, of at most limit bytes and from one
// block. fin: the stream's end goes with it.
func (st *Stream) nextSpan(limit uint64) (sp span, b *block, fin bool) {
	for len(st.again) > 0 {
		sp = st.again[0]
		if sp.off = max(sp.off, st.una); sp.off >= sp.end {
			st.again = st.again[1:]
			continue
		}
		if b = st.blockAt(sp.off); b == nil {
			st.again = st.again[1:]
			continue
		}
		sp.end = min(sp.end, sp.off+limit, b.off+uint64(len(b.b)-headRoom))
		if st.again[0].off = sp.end; sp.end >= st.again[0].end {
			st.again = st.again[1:]
		}
		return sp, b, st.ends(sp.end)
	}
	sp = span{st.nxt, st.nxt}
	if st.nxt < min(st.end, st.limit) {
		b = st.blockAt(st.nxt)
		sp.end = min(st.nxt+limit, st.limit, b.off+uint64(len(b.b)-headRoom))
		st.nxt = sp.end
	}
	return sp, b, st.ends(sp.end)
}

func (st *Stream) ends(at uint64) bool {
	return st.fin && at == st.end && st.nxt == st.end && !st.finSent
}

func (st *Stream) blockAt(off uint64) *block {
	i, ok := slices.BinarySearchFunc(st.blocks, off, func(b *block, off uint64) int {
		switch {
		case b.off+uint64(len(b.b)-headRoom) <= off:
			return -1
		case b.off > off:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return st.blocks[i]
}

// LocalAddr implements net.Conn.
func (st *Stream) LocalAddr() net.Addr { return streamAddr(st.id) }

// RemoteAddr implements net.Conn.
func (st *Stream) RemoteAddr() net.Addr { return streamAddr(st.id) }

type streamAddr uint64

func (streamAddr) Network() string  { return "fabric" }
func (a streamAddr) String() string { return fmt.Sprintf("stream %d", uint64(a)) }

// SetDeadline implements net.Conn.
func (st *Stream) SetDeadline(t time.Time) error { return st.setDeadlines(&t, &t) }

// SetReadDeadline implements net.Conn.
func (st *Stream) SetReadDeadline(t time.Time) error { return st.setDeadlines(&t, nil) }

// SetWriteDeadline implements net.Conn.
func (st *Stream) SetWriteDeadline(t time.Time) error { return st.setDeadlines(nil, &t) }

func (st *Stream) setDeadlines(read, write *time.Time) error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if read != nil {
		st.readAt = *read
	}
	if write != nil {
		st.writeAt = *write
	}
	st.wakeAll()
	return nil
}
