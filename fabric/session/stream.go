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
	header []byte // what it was opened with
	since  time.Time

	inLimit, outLimit Limiter // nil: none
	debt              int     // bytes read that inLimit has not let pass; st.reading guards it

	reading sync.Mutex // held by who reads, and is taken before s.mu
	writing sync.Mutex // likewise

	// Everything below is guarded by s.mu.
	err      error // ends reads and writes
	readers  gate
	writers  gate
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
	last                 *link // over which something was sent last
	noReader             bool
	queued               bool // in s.ready
	queuedAt             time.Time
	sendWindow           uint64 // bytes that may be held until they are acknowledged
	charged              int64  // bytes of the budget
	account              Account
	over                 bool // nothing is charged any more
	writeAt              time.Time

	// What is received: bytes to got have come, those to read are taken.
	in        []piece // to read
	early     []piece // beyond got, by offset
	earlySize int
	got, read uint64
	finAt     uint64 // MaxUint64: not known
	window    uint64
	promised  uint64    // limit that the peer knows of
	said      uint64    // what the peer knows has come
	halfAt    time.Time // when a half window was read last
	sinceRead uint64    // bytes read since
	discard   bool      // nobody reads
	toSay     bool      // in s.windows
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
	mem any // that b lies in, where it is to be used again: *[quantum]byte or *[small]byte
}

// payloads and smallPayloads keep the memory of pieces of bulk, as large as they come
// while nothing else is active, or something is: what waits for the collector then
// costs the most.
var (
	payloads      = sync.Pool{New: func() any { return new([quantum]byte) }}
	smallPayloads = sync.Pool{New: func() any { return new([small]byte) }}
)

// newPiece returns a piece with room for n bytes. Little does not hold much.
func newPiece(off uint64, n int) piece {
	switch {
	case n > small/2 && n <= small:
		mem := smallPayloads.Get().(*[small]byte)
		return piece{off, mem[:n:n], mem}
	case n > quantum/2 && n <= quantum:
		mem := payloads.Get().(*[quantum]byte)
		return piece{off, mem[:n:n], mem}
	}
	return piece{off, make([]byte, n), nil}
}

// What bounds the pieces that came before their turn, which may be far smaller than
// what it takes to hold them.
const (
	maxEarly    = 16 << 10     // of a stream
	maxAllEarly = 4 * maxEarly // of a session
)

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
	switch p.mem.(type) {
	case *[quantum]byte:
		payloads.Put(p.mem)
	case *[small]byte:
		smallPayloads.Put(p.mem)
	}
}

// block holds bytes to send, behind room for a frame's head, so that they can
// go out as they lie.
type block struct {
	off  uint64
	b    []byte // headRoom bytes, then the payload
	refs int    // who use the memory without the lock
	done bool   // acknowledged
}

func (b *block) end() uint64 { return b.off + uint64(len(b.b)-headRoom) }

const headRoom = frame.HeadSize + frame.DataSize

// pool keeps the memory of whole blocks, and of payloads that came.
var pool = sync.Pool{New: func() any { return new([headRoom + quantum]byte) }}

func newStream(s *Session, id uint64, class frame.Class) *Stream {
	now := time.Now()
	return &Stream{s: s, id: id, class: class, limit: firstWindow,
		finAt: math.MaxUint64, window: firstWindow, promised: firstWindow, sendWindow: firstWindow, since: now, halfAt: now}
}

// ID returns the stream's number in its session.
func (st *Stream) ID() uint64 { return st.id }

// Class returns the stream's class.
func (st *Stream) Class() frame.Class { return st.class }

// Header returns what the stream was opened with.
func (st *Stream) Header() []byte { return st.header }

// Heard reports whether the peer has heard of the stream, as far as is known here.
func (st *Stream) Heard() bool {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.openAcked || st.remote()
}

// remote reports whether the peer has opened the stream.
func (st *Stream) remote() bool { return (st.id%2 == 1) != st.s.initiator }

// gate is where those wait who cannot go on now. The session's lock guards it.
type gate struct {
	c chan struct{} // closed, and forgotten, when they should look; nil: nobody waits
}

func (g *gate) wake() {
	if g.c != nil {
		close(g.c)
		g.c = nil
	}
}

// wait waits, without the lock, until something changes or at passes.
func (g *gate) wait(mu *sync.Mutex, at time.Time) {
	if g.c == nil {
		g.c = make(chan struct{})
	}
	c := g.c
	mu.Unlock()
	defer mu.Lock()
	if at.IsZero() {
		<-c
		return
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-c:
	case <-t.C:
	}
}

func (st *Stream) wakeAll() {
	st.readers.wake()
	st.writers.wake()
}

// fail ends the stream for its users. Bytes that have come can be read still, and
// count as long as they are held, unless it was given up here.
func (st *Stream) fail(err error) {
	if st.err == nil {
		st.err = err
	}
	st.blocks, st.flights, st.again = nil, nil, nil
	st.una, st.nxt = st.end, st.end
	st.dropEarly()
	if st.read == st.got {
		st.uncharge()
	}
	st.wakeAll()
}

// drop lets go of what has come of a stream that has failed: nobody reads it.
func (st *Stream) drop() {
	if st.err != nil {
		st.discard = true
		st.in, st.read = nil, st.got
		st.uncharge()
		st.wakeAll()
	}
}

// dropEarly drops the pieces whose turn will not come.
func (st *Stream) dropEarly() {
	st.s.early -= len(st.early)
	st.early, st.earlySize = nil, 0
}

// Write implements net.Conn. It returns when the bytes are taken in.
func (st *Stream) Write(p []byte) (n int, err error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		room, err := st.room()
		if err != nil || len(p) == 0 {
			return n, err
		}
		if st.outLimit != nil {
			room = min(room, MaxWait)
			if err := st.held(st.outLimit, min(room, len(p)), st.writeAt); err != nil {
				return n, err
			}
			if err := st.writable(); err != nil {
				return n, err
			}
		}
		k, err := st.put(p[:min(room, len(p))])
		if err != nil {
			return n, err
		}
		p, n = p[k:], n+k
		s.enqueue(st)
	}
}

// room waits until bytes can be taken in, and returns how many.
func (st *Stream) room() (int, error) {
	for {
		if err := st.writable(); err != nil {
			return 0, err
		}
		if passed(st.writeAt) {
			return 0, os.ErrDeadlineExceeded
		}
		if room := st.space(); room > 0 {
			return room, nil
		}
		st.writers.wait(&st.s.mu, st.writeAt)
	}
}

// space returns how many bytes may be taken in: beyond what may be sent, and
// beyond what can go out soon, little is held.
func (st *Stream) space() int {
	window := min(max(st.limit-min(st.limit, st.una), firstWindow), st.sendWindow) + 2*quantum
	return int(min(int64(window)-int64(st.end-st.una), maxUnsent-int64(st.end-st.nxt)))
}

// wakeWriters has them look if there is room for more than a little.
func (st *Stream) wakeWriters() {
	if st.writers.c != nil && st.space() >= 2*quantum {
		st.writers.wake()
	}
}

// writable returns why no more can be written, or nil.
func (st *Stream) writable() error {
	switch {
	case st.err != nil:
		return st.err
	case st.noReader:
		return ErrNoReader
	case st.fin:
		return io.ErrClosedPipe
	}
	return nil
}

// inline is how many bytes are copied rather than the lock given up for it.
const inline = 4 << 10

// put copies bytes of p into one block, and returns how many. The lock is not
// held while many are copied.
func (st *Stream) put(p []byte) (int, error) {
	var b *block
	if n := len(st.blocks); n > 0 {
		b = st.blocks[n-1]
	}
	// What is sent from a block's beginning need not be copied again, so much
	// to send does not go into one of which a part has gone.
	if b == nil || len(b.b) == cap(b.b) || len(p) >= small && st.nxt > b.off {
		if len(p) >= small || st.end-st.nxt >= inline {
			b = &block{b: pool.Get().(*[headRoom + quantum]byte)[:headRoom]}
		} else { // a stream that says little holds little
			b = &block{b: make([]byte, headRoom, headRoom+max(len(p), 512))}
		}
		b.off = st.end
	}
	k := min(len(p), cap(b.b)-len(b.b))
	if to := b.b[len(b.b) : len(b.b)+k]; k > inline {
		b.refs++
		st.s.mu.Unlock()
		copy(to, p)
		st.s.mu.Lock()
		b.refs--
		if err := st.writable(); err != nil {
			return 0, err
		}
	} else {
		copy(to, p)
	}
	b.b = b.b[:len(b.b)+k]
	st.end += uint64(k)
	b.done = false
	if n := len(st.blocks); n == 0 || st.blocks[n-1] != b { // a new one, or what was in it is acknowledged
		st.blocks = append(st.blocks, b)
	}
	return k, nil
}

// ReadFrom implements io.ReaderFrom: what comes from r is sent as it lies.
func (st *Stream) ReadFrom(r io.Reader) (n int64, err error) {
	b := &block{}
	defer func() { b.free() }()
	for much := false; ; {
		if b.b == nil { // little, while little comes: a reader may wait for long
			if much {
				b.b = pool.Get().(*[headRoom + quantum]byte)[:headRoom]
			} else {
				b.b = make([]byte, headRoom, headRoom+inline)
			}
		}
		k, rerr := r.Read(b.b[headRoom:cap(b.b)])
		if k > 0 {
			full := b
			if k <= (cap(b.b)-headRoom)/2 {
				full = &block{b: make([]byte, headRoom, headRoom+k)}
				full.b = append(full.b, b.b[headRoom:headRoom+k]...)
			} else {
				b.b = b.b[:headRoom+k]
				b = &block{}
			}
			if err := st.putBlock(full); err != nil {
				return n, err
			}
			n += int64(k)
			if now := k >= inline; now != much {
				much = now
				b.free()
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// putBlock sends a whole block.
func (st *Stream) putBlock(b *block) error {
	st.writing.Lock()
	defer st.writing.Unlock()
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if _, err := st.room(); err != nil {
		return err
	}
	if st.outLimit != nil {
		if err := st.held(st.outLimit, len(b.b)-headRoom, st.writeAt); err != nil {
			return err
		}
		if err := st.writable(); err != nil {
			return err
		}
	}
	b.off = st.end
	st.end = b.end()
	st.blocks = append(st.blocks, b)
	st.s.enqueue(st)
	return nil
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
		st.drop()
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

// Refuse is Reset for want of room, which says when the peer may come back.
func (st *Stream) Refuse(code uint32, text string, retry time.Duration) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset(st, frame.ResetBody{Stream: st.id, Code: code, Text: text, Retry: retry})
}

// Read implements net.Conn.
func (st *Stream) Read(p []byte) (n int, err error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := st.payDebt(); err != nil {
		return 0, err
	}
	if err := st.readable(); err != nil {
		return 0, err
	}
	for n < len(p) && len(st.in) > 0 {
		from := st.in[0].b
		if k := min(len(from), len(p)-n); k > inline {
			st.s.mu.Unlock()
			n += copy(p[n:], from[:k])
			st.s.mu.Lock()
			if st.discard {
				return n, nil
			}
			st.in[0].b = st.in[0].b[k:]
		} else {
			n += copy(p[n:], from[:k])
			st.in[0].b = st.in[0].b[k:]
		}
		if len(st.in[0].b) == 0 {
			st.shift().free()
		}
	}
	st.taken(uint64(n))
	return n, nil
}

// WriteTo implements io.WriterTo: what has come is written as it lies.
func (st *Stream) WriteTo(w io.Writer) (n int64, err error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	for {
		if err := st.payDebt(); err != nil {
			return n, err
		}
		if err := st.readable(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		p := st.shift()
		st.s.mu.Unlock()
		k, err := w.Write(p.b)
		if err == nil && k < len(p.b) {
			err = io.ErrShortWrite
		}
		size := uint64(len(p.b))
		p.free()
		st.s.mu.Lock()
		n += int64(k)
		if !st.discard {
			st.taken(size)
		}
		if err != nil {
			return n, err
		}
	}
}

// readable waits until there is something to read.
func (st *Stream) readable() error {
	for {
		switch {
		case st.discard && st.err != nil:
			return st.err
		case st.discard:
			return net.ErrClosed
		case passed(st.readAt):
			return os.ErrDeadlineExceeded
		case len(st.in) > 0:
			return nil
		case st.read == st.finAt:
			st.s.forget(st)
			return io.EOF
		case st.err != nil:
			return st.err
		}
		st.readers.wait(&st.s.mu, st.readAt)
	}
}

// shift takes out the piece that is next to read.
func (st *Stream) shift() piece {
	p := st.in[0]
	st.in[0] = piece{}
	if st.in = st.in[1:]; len(st.in) == 0 {
		st.in = nil
	}
	return p
}

// taken counts bytes that were read.
func (st *Stream) taken(n uint64) {
	st.read += n
	if st.err != nil {
		if st.read == st.got {
			st.uncharge()
		}
		return
	}
	if st.inLimit != nil {
		st.debt += int(n)
	}
	st.widen(n)
}

// widen lets the window follow the reader, and tells the peer when there is
// much more room than it knows of.
func (st *Stream) widen(n uint64) {
	st.sinceRead += n
	if st.sinceRead >= st.window/2 {
		now := time.Now()
		if now.Sub(st.halfAt) < 2*max(st.s.rtt(), time.Millisecond) {
			wider := 2 * st.window
			if st.window < fastWindow {
				wider = 4 * st.window
			}
			if wider = min(wider, uint64(st.s.o.MaxWindow)); wider > st.window && st.grow(wider-st.window) {
				st.window = wider
			}
		}
		st.halfAt, st.sinceRead = now, 0
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
		if uint64(st.earlySize+len(p.b)) > 2*st.window || len(st.early) >= maxEarly || st.s.early >= maxAllEarly {
			return fmt.Errorf("%w: stream %d: the same bytes again and again", frame.ErrProtocol, st.id)
		}
		at, _ := slices.BinarySearchFunc(st.early, p.off, func(q piece, off uint64) int {
			return cmp.Or(cmp.Compare(q.off, off), 1)
		})
		st.early = slices.Insert(st.early, at, p)
		st.earlySize += len(p.b)
		st.s.early++
	}
	for len(st.early) > 0 && st.early[0].off <= st.got {
		p := st.early[0]
		st.early = st.early[1:]
		st.earlySize -= len(p.b)
		st.s.early--
		st.take(p)
	}
	if st.got > before || fin {
		st.readers.wake()
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
	case len(st.in) > 0 && len(p.b) <= inline:
		// Many small pieces that nobody reads would be more than their bytes.
		last := &st.in[len(st.in)-1]
		if cap(last.b)-len(last.b) < len(p.b) {
			st.in = append(st.in, piece{p.off, make([]byte, 0, 2*inline), nil})
			last = &st.in[len(st.in)-1]
		}
		last.b = append(last.b, p.b...)
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
	if e.Received > st.nxt+1 || e.Received > st.nxt && !st.finEver {
		if st.err != nil {
			return nil
		}
		return fmt.Errorf("%w: stream %d: byte %d is acknowledged of %d that were sent", frame.ErrProtocol, st.id, e.Received, st.nxt)
	}
	if e.Received > st.end {
		st.finAcked = true
	}
	if una := min(e.Received, st.end); una > st.una {
		st.una = una
		st.nxt = max(st.nxt, una)
		for len(st.blocks) > 0 {
			b := st.blocks[0]
			if b.end() > una {
				break
			}
			st.blocks[0] = nil
			st.blocks = st.blocks[1:]
			if b.done = true; b.refs == 0 {
				b.free()
			}
		}
		st.flights = slices.DeleteFunc(st.flights, func(f flight) bool { return f.end <= una })
		st.wakeWriters()
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
		// What is held until it is acknowledged is bounded here, whatever the peer says.
		if w := min(st.limit-min(st.limit, st.una), uint64(st.s.o.MaxWindow)); w > st.sendWindow && st.grow(w-st.sendWindow) {
			st.sendWindow = w
		}
		st.wakeWriters()
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

// unsent returns how many bytes no link has taken.
func (st *Stream) unsent() uint64 {
	n := st.end - st.nxt
	for _, sp := range st.again {
		n += sp.end - min(sp.end, max(sp.off, st.una))
	}
	return n
}

// complete reports whether nothing of the stream is left to do.
func (st *Stream) complete() bool {
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
		sp.end = min(sp.end, sp.off+limit, b.end())
		if st.again[0].off = sp.end; sp.end >= st.again[0].end {
			st.again = st.again[1:]
		}
		return sp, b, st.ends(sp.end)
	}
	sp = span{st.nxt, st.nxt}
	if st.nxt < min(st.end, st.limit) {
		b = st.blockAt(st.nxt)
		sp.end = min(st.nxt+limit, st.limit, b.end())
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
		case b.end() <= off:
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
