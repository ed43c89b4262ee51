package session

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// link is one connection that a session has. The session's lock guards it.
type link struct {
	s      *Session
	id     uint64
	conn   net.Conn
	wakeup chan struct{} // holds one token when there may be something to send
	since  time.Time
	renew  time.Time // when another one is to take its place; zero: never

	reserved  bool // must not carry bulk, if there is another one: see Reserved
	high, low bool // carries the classes above bulk; bulk and below
	lends     bool // carries bulk and below while nothing above is active
	closed    bool
	idle      bool         // the writer waits for wake
	hung      bool         // its connection is closed, or is being
	out       [][]byte     // frames for this link alone
	heard     atomic.Int64 // when something came, in ns after since

	retired  time.Time // since when it carries nothing new; zero: it does
	asked    bool      // the peer has retired it,
	owes     bool      // and wants to know when nothing is under way from here
	answered bool      // nothing is under way from the peer

	breather     breather // the writer's
	sent, resent int64
	received     atomic.Int64
	pinged       time.Time // when the ping under way was sent; zero: none is
	measured     time.Time // when the last one was
	ping         uint64
	rtt          time.Duration // smoothed
}

const (
	readBuffer  = 4 << 10  // for heads and small frames; payloads are read to where they stay
	writeBatch  = 16 << 10 // small frames go out together up to here
	maxOut      = 4096     // answers to resets above all, of which many may come at once
	windowBatch = 128
	shutTime    = 5 * time.Second
	lastWords   = 500 * time.Millisecond // for what has come before a write has failed
	breath      = 32 << 10               // bytes of bulk between two looks at what else there is
	breathTime  = 50 * time.Microsecond
	longBreath  = 950 * time.Microsecond
	breathless  = 25 * time.Millisecond
	maxPayload  = 1 << 20 // of a Data frame; this version sends less
)

func (l *link) carries(c frame.Class) bool {
	if c >= frame.Bulk {
		return l.low || l.lends && !l.s.higherWithin(reservedFor)
	}
	return l.high
}

// wake has the writer look for something to send. One that is not idle will
// look when its write is done.
func (l *link) wake() {
	l.idle = false
	select {
	case l.wakeup <- struct{}{}:
	default:
	}
}

// shut closes the connection, and tells the peer why if it can.
func (l *link) shut(bye *frame.GoAwayError) {
	l.s.mu.Lock()
	l.closed = true
	l.wake()
	l.s.mu.Unlock()
	if bye == nil {
		l.conn.Close()
		return
	}
	l.conn.SetDeadline(time.Now().Add(shutTime))
	go func() {
		// Best effort: the peer may be gone, or the writer in the middle of a
		// frame, and then the connection's end has to do.
		_, _ = l.conn.Write(bye.Encode())
		l.conn.Close()
	}()
}

// hangUp closes the connection, once, and does not wait: closing may wait for the
// writer. The reader tells the session.
func (l *link) hangUp() {
	if !l.hung {
		l.hung = true
		go l.conn.Close()
	}
}

// read takes in frames until the link ends.
func (l *link) read() {
	err := l.frames(bufio.NewReaderSize(l.conn, readBuffer))
	l.conn.Close()
	l.s.lose(l, err)
	l.s.mu.Lock()
	l.wake() // the writer ends with it
	l.s.mu.Unlock()
}

func (l *link) frames(r *bufio.Reader) error {
	var air breather
	for {
		h, err := frame.ReadHead(r)
		if err != nil {
			return err
		}
		if err := l.frame(r, h); err != nil {
			return err
		}
		if h.Class < frame.Bulk && (h.Type == frame.Data || h.Type == frame.Packets) {
			l.s.urgent.Store(time.Now().UnixNano())
		} else if h.Length > inline {
			air.breathe(l.s, h.Length)
		}
		l.s.frames[h.Class].Add(1)
		l.heard.Store(int64(time.Since(l.since)))
		l.received.Add(int64(frame.HeadSize + h.Length))
	}
}

func (l *link) frame(r *bufio.Reader, h frame.Head) error {
	s := l.s
	switch h.Type {
	case frame.Data:
		id, off, open, n, err := frame.ReadData(r, h)
		if err != nil {
			return err
		}
		if n > maxPayload {
			return fmt.Errorf("%w: %d bytes of payload in a frame", frame.ErrProtocol, n)
		}
		p := newPiece(off, n)
		if _, err := io.ReadFull(r, p.b); err != nil {
			return err
		}
		return s.arrive(id, p, open, h.Flags&frame.FlagFin != 0, h.Class)
	case frame.Window:
		es, err := frame.ReadWindow(r, h)
		if err != nil {
			return err
		}
		return s.acknowledged(es)
	case frame.Reset:
		b, err := frame.ReadReset(r, h)
		if err != nil {
			return err
		}
		answer, err := s.wasReset(b, h.Flags&frame.FlagAnswer != 0)
		if err != nil || answer == nil {
			return err
		}
		return l.reply(answer)
	case frame.Packets:
		tunnel, packets, err := frame.ReadPackets(r, h)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.stats.Received[frame.Packet] += int64(h.Length)
		s.mu.Unlock()
		if s.o.Packets != nil {
			s.o.Packets(tunnel, packets)
		}
		return nil
	case frame.Ping:
		n, err := frame.ReadNumber(r, h)
		if err != nil {
			return err
		}
		return l.reply(frame.Number(frame.Pong, n))
	case frame.Pong:
		n, err := frame.ReadNumber(r, h)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if n == l.ping && !l.pinged.IsZero() {
			d := max(time.Since(l.pinged), time.Microsecond)
			if l.rtt == 0 {
				l.rtt = d
			} else {
				l.rtt += (d - l.rtt) / 4
			}
			l.pinged = time.Time{}
		}
		return nil
	case frame.Command:
		b, err := frame.ReadBody(r, h, frame.MaxCommand)
		if err != nil {
			return err
		}
		if s.o.Command != nil {
			s.o.Command(b)
		}
		return nil
	case frame.GoAway:
		return frame.ReadGoAway(r, h)
	case frame.Retire:
		s.mu.Lock()
		s.wasRetired(l, h.Flags&frame.FlagAnswer != 0)
		s.mu.Unlock()
	}
	_, err := r.Discard(h.Length) // of a newer node
	return err
}

// reply queues a frame for this link alone.
func (l *link) reply(b []byte) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if len(l.out) >= maxOut {
		return fmt.Errorf("%w: it asks and does not read the answers", frame.ErrProtocol)
	}
	l.out = append(l.out, b)
	l.wake()
	return nil
}

// batches keeps the memory of batches: an idle link holds none.
var batches = sync.Pool{New: func() any { return new([writeBatch + headRoom + quantum]byte) }}

// write sends what there is to send until the link ends.
func (l *link) write() {
	for range l.wakeup {
		if !l.flush() {
			return
		}
	}
}

// flush sends what there is to send now, and reports whether the link goes on.
func (l *link) flush() bool {
	memory := batches.Get().(*[writeBatch + headRoom + quantum]byte)
	defer batches.Put(memory)
	var held *block
	sent := 0
	for {
		var whole, batch []byte
		var over bool
		whole, batch, held, over = l.next(memory[:0], held, sent)
		if whole == nil && len(batch) == 0 {
			return !over
		}
		var err error
		if len(batch) > 0 {
			_, err = l.conn.Write(batch)
		}
		if whole != nil && err == nil {
			_, err = l.conn.Write(whole)
		}
		sent = len(batch) + len(whole)
		if sent > inline {
			l.breather.breathe(l.s, sent)
		}
		if err != nil {
			// The reader tells the session: the peer may have said why it has closed
			// the connection, and that has come before.
			if l.conn.SetDeadline(time.Now().Add(lastWords)) != nil {
				l.conn.Close()
			}
			if held != nil {
				l.s.mu.Lock()
				held.refs--
				l.s.mu.Unlock()
			}
			return false
		}
	}
}

// listed reports whether the session still counts on the link.
func (l *link) listed() bool {
	for _, other := range l.s.links {
		if other == l {
			return true
		}
	}
	return false
}

// next lets go of what was written last, and collects what to write now: small
// frames in batch, then perhaps a block's beginning, in place, which is held.
func (l *link) next(batch []byte, written *block, sent int) (whole, _ []byte, held *block, over bool) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	l.sent += int64(sent)
	if written != nil {
		if written.refs--; written.refs == 0 && written.done {
			written.free()
		}
	}
	if l.closed || !l.listed() {
		l.idle = true
		return nil, batch, nil, true
	}
	for _, b := range l.out {
		batch = append(batch, b...)
	}
	s.stats.SentFrames[frame.Control] += int64(len(l.out))
	l.out = l.out[:0]
	if l.high {
		batch = l.control(batch)
	}
	for len(batch) < writeBatch {
		c, ok := s.turn(l)
		if !ok {
			l.idle = len(batch) == 0
			return nil, batch, nil, false
		}
		if c == frame.Packet && len(s.packets) > 0 {
			f := s.packets[0]
			s.packets[0] = packetFrame{}
			s.packets = s.packets[1:]
			s.queued -= len(f.b)
			s.stats.SentFrames[c]++
			s.stats.Sent[c] += int64(len(f.b) - frame.HeadSize)
			s.stats.Delay[c].add(time.Since(f.at))
			batch = append(batch, f.b...)
			continue
		}
		if whole, batch, held = l.data(batch, c); whole != nil {
			return whole, batch, held, false
		}
	}
	return nil, batch, nil, false
}

// control collects the session's own frames.
func (l *link) control(batch []byte) []byte {
	s := l.s
	for _, r := range s.unsent {
		if s.resets[r.body.Stream] == r {
			r.said = true
			s.stats.SentFrames[frame.Control]++
			batch = append(batch, r.body.Encode(s.version, 0)...)
		}
	}
	s.unsent = nil
	for len(s.windows)+len(s.final) > 0 && len(batch) < writeBatch {
		var body []byte
		n := 0
		for ; len(s.final) > 0 && n < windowBatch; n++ {
			body = frame.AppendWindow(body, s.final[0])
			s.final = s.final[1:]
		}
		for ; len(s.windows) > 0 && n < windowBatch; n++ {
			st := s.windows[0]
			s.windows[0] = nil
			s.windows = s.windows[1:]
			st.toSay = false
			st.promise()
			body = frame.AppendWindow(body, st.entry())
		}
		s.stats.SentFrames[frame.Control]++
		batch = frame.Append(batch, frame.Head{Type: frame.Window, Class: frame.Control}, body)
	}
	for _, c := range s.command {
		batch = append(batch, c...)
	}
	s.stats.SentFrames[frame.Control] += int64(len(s.command))
	s.command = nil
	return batch
}

// turn says which class goes next on a link.
func (s *Session) turn(l *link) (frame.Class, bool) {
	s.turns++
	pick, found := frame.Class(0), false
	for c := range frame.Classes {
		if !l.carries(c) || len(s.ready[c]) == 0 && (c != frame.Packet || len(s.packets) == 0) {
			continue
		}
		if pick, found = c, true; s.turns%floorTurns != 0 {
			break
		}
	}
	return pick, found
}

// pick takes out the stream of a class whose turn it is. A link goes on with one
// that it sent something of before where it finds one soon, since what comes in
// order is cheaper for the other end; every few turns, it is the first one's.
func (s *Session) pick(c frame.Class, l *link) *Stream {
	ready, k := s.ready[c], 0
	if s.turns%4 != 0 {
		k = max(0, slices.IndexFunc(ready[:min(len(ready), 8)], func(st *Stream) bool { return st.last == l }))
	}
	st := ready[k]
	copy(ready[1:k+1], ready[:k])
	ready[0] = nil
	s.ready[c] = ready[1:]
	return st
}

// data collects one Data frame of a class: whole is a block's beginning, in
// place, behind its head.
func (l *link) data(batch []byte, c frame.Class) (whole, _ []byte, held *block) {
	s := l.s
	st := s.pick(c, l)
	st.queued = false
	if !st.sendable() {
		return nil, batch, nil
	}
	limit := uint64(quantum)
	if c >= frame.Bulk && s.higherActive() {
		limit = small
	}
	sp, b, fin := st.nextSpan(limit)
	h := frame.Head{Version: frame.MinVersion, Type: frame.Data, Class: st.class}
	var open []byte
	if sp.off == 0 && !st.openAcked && !st.remote() {
		h.Flags |= frame.FlagOpen
		open = st.open
		st.openSaid, st.openLink = true, l
	}
	if fin {
		h.Flags |= frame.FlagFin
		st.finSent, st.finEver, st.finLink = true, true, l
	}
	n := int(sp.end - sp.off)
	if n > 0 {
		st.flights = append(st.flights, flight{sp, l})
	}
	st.last = l
	st.wakeWriters()
	s.stats.Sent[c] += int64(n)
	s.stats.SentFrames[c]++
	s.stats.Delay[c].add(time.Since(st.queuedAt))
	h.Length = frame.DataSize + len(open) + n
	if n > inline && open == nil && sp.off == b.off && b.refs == 0 {
		b.refs++
		h.Put(b.b)
		frame.PutData(b.b[frame.HeadSize:], st.id, sp.off)
		s.enqueue(st)
		return b.b[:headRoom+n], batch, b
	}
	var head [headRoom]byte
	h.Put(head[:])
	frame.PutData(head[frame.HeadSize:], st.id, sp.off)
	batch = append(append(batch, head[:]...), open...)
	if n > 0 {
		from := headRoom + int(sp.off-b.off)
		batch = append(batch, b.b[from:from+n]...)
	}
	s.enqueue(st)
	return nil, batch, nil
}

// higherActive reports whether a class above bulk had something to send, or got
// something, lately.
func (s *Session) higherActive() bool { return s.higherWithin(activeFor) }

func (s *Session) higherWithin(d time.Duration) bool {
	return time.Now().UnixNano()-s.urgent.Load() < int64(d)
}

// breather is a goroutine's that moves bulk.
type breather struct {
	moved int       // bytes since its last breath
	never time.Time // until when it takes none
}

// breathe counts bytes of bulk that were moved, and gives the processor up for a
// moment after some, while a higher class is active. Where bulk keeps all
// processors busy, Go would look for what has come on other connections only
// after some milliseconds. Where it does not, Go sleeps for a millisecond rather
// than a moment, and there is no need to: then bulk goes on without for a while.
func (b *breather) breathe(s *Session, n int) {
	if b.moved += n; b.moved < breath {
		return
	}
	b.moved = 0
	if !s.higherActive() {
		return
	}
	start := time.Now()
	if start.Before(b.never) {
		return
	}
	t := time.NewTimer(breathTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.done:
	}
	if now := time.Now(); now.Sub(start) >= longBreath {
		b.never = now.Add(breathless)
	}
}

const (
	pingBusy = time.Second      // between two pings while something is under way
	pingIdle = 15 * time.Second // and while nothing is
	deadTime = 2 * time.Second  // and three round trips, without a word: the link is dead
)

// keep measures the links, gives up dead ones and those that do not end after
// they were retired, and the session when it has been without one for too long.
func (s *Session) keep() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		select {
		case <-s.done:
			return
		case <-s.rekeep:
		case <-timer.C:
		}
		now := time.Now()
		s.forgive(now.Sub(due))
		next := s.look(now)
		due = now.Add(next)
		timer.Reset(next)
	}
}

// forgive does not hold a time against the peers in which this process stood still,
// as while its machine is paused: their answers may be here, and nobody has read them.
func (s *Session) forgive(late time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		if late > 0 && !l.pinged.IsZero() {
			l.pinged = l.pinged.Add(late)
		}
	}
}

// look does what is due, and says when to look again.
func (s *Session) look(now time.Time) time.Duration {
	s.mu.Lock()
	if len(s.links) == 0 {
		left, outlived := s.o.Resume-now.Sub(s.alone), s.outlived
		s.mu.Unlock()
		if outlived {
			s.end(fmt.Errorf("%w: it has restarted", ErrLost), nil)
		} else if left <= 0 {
			s.end(ErrLost, nil)
		}
		return max(left, 0)
	}
	defer s.mu.Unlock()
	next := pingIdle
	busy := s.higherActive() // such as by packets, which are not acknowledged
	for _, st := range s.streams {
		if len(st.flights) > 0 || !st.openAcked && !st.remote() {
			busy = true
			break
		}
	}
	for _, l := range s.links {
		limit := deadTime + 3*max(l.rtt, time.Second/3)
		switch {
		case !l.retired.IsZero():
			left := retireTime - now.Sub(l.retired)
			if left <= 0 {
				l.hangUp()
				continue
			}
			next = min(next, left)
		case !l.pinged.IsZero():
			if quiet := min(now.Sub(l.pinged), now.Sub(l.since.Add(time.Duration(l.heard.Load())))); quiet >= limit {
				l.hangUp()
				continue
			} else {
				next = min(next, limit-quiet)
			}
		case now.Sub(l.measured) >= pingIdle || busy && now.Sub(l.measured) >= pingBusy:
			l.ping++
			l.pinged, l.measured = now, now
			l.out = append(l.out, frame.Number(frame.Ping, l.ping))
			l.wake()
			next = min(next, limit)
		default:
			next = min(next, pingIdle-now.Sub(l.measured))
		}
		if busy {
			next = min(next, pingBusy)
		}
	}
	return max(next, 10*time.Millisecond)
}
