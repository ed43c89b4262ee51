package relay

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// HoldTime is how long a session waits for an operation whose number is the
// next but which has not arrived, and for how long a client sends one again.
const HoldTime = 30 * time.Second

// maxAhead is how far an operation's number may be ahead of the next one.
const maxAhead = 64

// maxReplies is how many replies are kept for a client that does not acknowledge
// them. One that does has far fewer operations under way.
const maxReplies = 4 * maxAhead

// session is the server's end of a connection: it runs operations in order.
// Nothing in it blocks: an operation that waits is finished by whatever it
// waits for (bytes from the user, a later operation, a timer).
type session struct {
	conn  *Conn
	from  netip.Addr // of the exchange that has begun it
	known atomic.Bool
	gone  func() // called, with the lock held, when the session has ended

	mu          sync.Mutex
	next        uint64           // lowest number that has not begun
	held        map[uint64]*call // came early
	heldBytes   int
	closing     *call // a Close without number, to run after what is held
	waiting     *call // has begun and waits for bytes to drain
	waitTimer   *time.Timer
	replies     map[uint64]*call // finished, not acknowledged
	replyBytes  int
	acked       uint64
	reported    int // room for bytes as the client knows it
	holdTimer   *time.Timer
	seen        time.Time
	ended       bool
	userDropped time.Time // when the user has closed the connection; zero: not yet
}

// call is an operation at the server.
type call struct {
	op    Op
	reply Reply
	done  bool            // guarded by the session's lock, like watch
	watch []chan struct{} // of exchanges that want to know when done
}

func newSession(id ID, gone func()) *session {
	s := &session{gone: gone, held: map[uint64]*call{}, replies: map[uint64]*call{}, reported: windowBytes, seen: time.Now()}
	s.conn = newConn(id, s.look)
	s.conn.onClose = func() {
		s.mu.Lock()
		s.userDropped = time.Now()
		s.mu.Unlock()
		s.look()
	}
	return s
}

// answered returns a call that is done.
func answered(op Op, status Status, message string) *call {
	return &call{op: op, done: true, reply: Reply{Session: op.Session, Numbered: op.Numbered, Seq: op.Seq, Status: status, Message: message}}
}

// submit begins an operation, or finds the one that was sent before. ch is
// told, without waiting for it to listen, when the call is done.
func (s *session) submit(op Op, ch chan struct{}) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = time.Now()
	if op.Numbered {
		s.acknowledge(op.Ack)
	}
	c := s.find(op)
	if c == nil {
		c = s.begin(op)
	}
	if !c.done {
		c.watch = append(c.watch, ch)
	}
	return c
}

// forget takes ch off a call's watchers.
func (s *session) forget(c *call, ch chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range c.watch {
		if w == ch {
			c.watch = append(c.watch[:i], c.watch[i+1:]...)
			return
		}
	}
}

// result returns a call's reply; Pending where it is not done.
func (s *session) result(c *call) Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.done {
		return Reply{Session: c.op.Session, Numbered: c.op.Numbered, Seq: c.op.Seq, Status: Pending}
	}
	return c.reply
}

// acknowledge drops the replies that the client has.
func (s *session) acknowledge(below uint64) {
	for ; s.acked < below && s.acked < s.next; s.acked++ {
		if c := s.replies[s.acked]; c != nil {
			s.replyBytes -= len(c.reply.Data)
			delete(s.replies, s.acked)
		}
	}
}

// find returns the answer to an operation that need not, or cannot, begin.
func (s *session) find(op Op) *call {
	if op.Numbered {
		if c := s.replies[op.Seq]; c != nil {
			return c
		}
		if c := s.held[op.Seq]; c != nil {
			return c
		}
		if s.waiting != nil && s.waiting.op.Numbered && s.waiting.op.Seq == op.Seq {
			return s.waiting
		}
	}
	switch {
	case s.ended:
		return answered(op, Gone, "")
	case op.Kind == Resume:
		return answered(op, Missing, "")
	case op.Kind != Data && op.Kind != Close:
		return answered(op, Failed, "unknown operation")
	case op.Numbered && op.Seq < s.next:
		return answered(op, Failed, "the operation was acknowledged before")
	case op.Numbered && op.Seq-s.next >= maxAhead:
		return answered(op, Failed, "the operation is too far ahead")
	case op.Numbered && op.Seq != s.next && s.heldBytes+len(op.Data) > windowBytes:
		return answered(op, Failed, "too much was sent ahead")
	}
	return nil
}

// begin runs an operation, or holds it until its turn comes.
func (s *session) begin(op Op) *call {
	if op.Kind == Close {
		op.Data = nil // it has none, and would keep its whole batch
	}
	c := &call{op: op}
	switch {
	case op.Numbered:
		if op.Seq != s.next {
			c.op.Data = bytes.Clone(op.Data) // it outlives its exchange
		}
		s.held[op.Seq] = c
		s.heldBytes += len(op.Data)
		s.advance()
	case op.Kind == Close && len(s.held) > 0 && s.closing == nil:
		s.closing = c
	default:
		s.endWait()
		s.run(c)
	}
	return c
}

// advance runs what is held as far as the numbers go on.
func (s *session) advance() {
	moved := false
	for c := s.held[s.next]; c != nil && !s.ended; c = s.held[s.next] {
		s.endWait()
		delete(s.held, s.next)
		s.heldBytes -= len(c.op.Data)
		s.next++
		moved = true
		s.run(c)
	}
	if len(s.held) == 0 && s.closing != nil && !s.ended {
		c := s.closing
		s.closing = nil
		s.endWait()
		s.run(c)
	}
	if s.holdTimer != nil && (moved || len(s.held) == 0) {
		s.holdTimer.Stop()
		s.holdTimer = nil
	}
	if s.holdTimer == nil && len(s.held) > 0 {
		var t *time.Timer
		t = time.AfterFunc(HoldTime, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.holdTimer == t {
				s.end(ErrHeld)
			}
		})
		s.holdTimer = t
	}
}

// run runs an operation: write, drain.
func (s *session) run(c *call) {
	if c.op.Kind == Close {
		s.conn.in.finish() // the user may still read what was written
		s.conn.out.fail(ErrReset)
		s.finish(c, nil, true)
		s.end(nil)
		return
	}
	if len(c.op.Data) > 0 && s.conn.in.tryPut(c.op.Data) < len(c.op.Data) {
		c.reply.Status, c.reply.Message = Failed, "the other end takes no more bytes"
		if s.userDropped.IsZero() {
			// More than there was room for: a hole would be left in the stream.
			c.reply.Message = "more was sent than there was room for"
			s.conn.in.fail(ErrReset)
		}
	}
	c.op.Data = nil
	if c.op.Fin {
		s.conn.in.finish()
	}
	if data, eof := s.drain(c); len(data) > 0 || eof || c.op.Wait == 0 || c.reply.Status != OK || s.windowNews() {
		s.finish(c, data, eof)
		return
	}
	s.waiting = c
	s.waitTimer = time.AfterFunc(time.Duration(c.op.Wait)*time.Millisecond, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.waiting == c {
			s.endWait()
		}
	})
}

// drain takes what an operation may carry back. Replies that the client has
// not acknowledged count against the window.
func (s *session) drain(c *call) (data []byte, eof bool) {
	if c.op.Drain == 0 { // the client has no room, or knows of the end
		return nil, false
	}
	return s.conn.out.tryTake(min(int(c.op.Drain), MaxData, 2*windowBytes-s.replyBytes))
}

// windowNews reports whether the client, which knows of little room, should
// hear that there is more.
func (s *session) windowNews() bool {
	_, room, _ := s.conn.in.state()
	return s.reported < windowBytes/2 && room >= windowBytes/2
}

// look finishes the waiting operation if there is something to tell.
func (s *session) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		return
	}
	if data, eof := s.drain(s.waiting); len(data) > 0 || eof || s.windowNews() {
		s.finishWaiting(data, eof)
	}
}

// endWait finishes the waiting operation, if there is one, as it is.
func (s *session) endWait() {
	if s.waiting != nil {
		s.finishWaiting(s.drain(s.waiting))
	}
}

func (s *session) finishWaiting(data []byte, eof bool) {
	c := s.waiting
	s.waiting = nil
	s.waitTimer.Stop()
	s.finish(c, data, eof)
}

func (s *session) finish(c *call, data []byte, eof bool) {
	_, room, _ := s.conn.in.state()
	s.reported = room
	c.reply.Session, c.reply.Numbered, c.reply.Seq = c.op.Session, c.op.Numbered, c.op.Seq
	c.reply.Data, c.reply.EOF, c.reply.Window = data, eof, uint32(room)
	c.done = true
	if c.op.Numbered {
		s.replies[c.op.Seq] = c
		s.replyBytes += len(data)
		if c.op.Seq >= maxReplies {
			s.acknowledge(c.op.Seq - maxReplies)
		}
	}
	for _, ch := range c.watch {
		select {
		case ch <- struct{}{}:
		default: // it has been told of another one
		}
	}
	c.watch = nil
}

// end ends the session; err, if any, is what its user is told.
func (s *session) end(err error) {
	if s.ended {
		return
	}
	s.ended = true
	if err != nil {
		s.conn.fail(err)
	}
	if s.holdTimer != nil {
		s.holdTimer.Stop()
		s.holdTimer = nil
	}
	s.endWait()
	gone := func(c *call) {
		c.reply.Status = Gone
		if err != nil {
			c.reply.Message = err.Error()
		}
		s.finish(c, nil, false)
	}
	for seq, c := range s.held {
		delete(s.held, seq)
		gone(c)
	}
	if s.closing != nil {
		gone(s.closing)
		s.closing = nil
	}
	s.gone()
}

// sweep ends the session if its client was not heard of for idle, or if it has not
// taken what the user has left it when closing the connection.
func (s *session) sweep(now time.Time, idle time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case now.Sub(s.seen) > idle:
		s.end(fmt.Errorf("%w: the client has not been heard of for %s", ErrReset, idle))
	case !s.userDropped.IsZero() && now.Sub(s.userDropped) > idle:
		s.end(ErrReset)
	}
}
