package relay

import (
	"errors"
	"fmt"
	"time"
)

// link is the client's end of a connection. The client's lock guards it.
type link struct {
	client    *Client
	conn      *Conn
	connected chan struct{} // closed when the server has answered Connect, or the link ended
	err       error
	ended     bool

	pipelined  bool // operations are numbered
	userClosed bool
	closeBy    time.Time // when to close without having sent all
	remoteEOF  bool      // nothing follows what was drained
	finSent    bool
	closeSent  bool
	refused    bool // the far end takes no more bytes

	next    uint64             // number of the next operation
	taken   uint64             // lowest number whose reply has not been taken
	flights map[uint64]*flight // from taken to next
	dialing *flight

	depth  int // operations that may be under way
	full   int // replies in a row that show there is more to do than depth allows
	more   bool
	credit int // bytes that the server has room for, beyond those under way
	asked  int // bytes that operations under way may drain
}

// flight is an operation under way.
type flight struct {
	link  *link
	op    Op
	state flightState
	reply Reply
	again time.Time     // when to send it again
	wait  time.Duration // before the time after that
	until time.Time     // when to give up
}

type flightState uint8

const (
	unsent   flightState = iota // or to be sent again, whole
	toResume                    // to be asked for again
	sent
	replied
)

// idleOnly reports whether a flight only waits for bytes to come.
func (f *flight) idleOnly() bool {
	return f.state == toResume || f.op.Kind == Data && len(f.op.Data) == 0 && !f.op.Fin && f.op.Wait > 0
}

// toSend returns what to send of a flight now.
func (f *flight) toSend() Op {
	op := f.op
	if f.state == toResume {
		op.Kind, op.Data, op.Fin = Resume, nil, false
	}
	if op.Numbered {
		op.Ack = f.link.taken
	}
	f.state = sent
	return op
}

// nextFlight returns a flight that is to be sent now, an old one or a new one;
// nil: there is none of the kind that is asked for.
func (l *link) nextFlight(wait bool) *flight {
	if l.ended {
		return nil
	}
	if f := l.dialing; f != nil || l.next == 0 && !l.isConnected() {
		if f == nil {
			f = l.newFlight(Op{Kind: Connect, Session: l.conn.id})
			l.dialing = f
		}
		if f.due() && !wait {
			return f
		}
		return nil
	}
	for seq := l.taken; seq < l.next; seq++ {
		if f := l.flights[seq]; f != nil && f.due() && f.idleOnly() == wait {
			return f
		}
	}
	if len(l.flights) >= l.depth || l.closeSent {
		return nil
	}
	op := Op{Kind: Data, Session: l.conn.id, Numbered: l.pipelined, Seq: l.next}
	bytesOut, _, outClosed := l.conn.out.state()
	_, room, _ := l.conn.in.state()
	drain := 0
	if !l.remoteEOF {
		drain = max(min(opBytes, room-l.asked), 0)
	}
	carries := !l.refused && (min(bytesOut, l.credit) > 0 || bytesOut == 0 && outClosed && !l.finSent)
	switch {
	case l.userClosed && (l.refused || bytesOut == 0 && l.finSent || !time.Now().Before(l.closeBy)):
		op.Kind = Close
		if wait {
			return nil
		}
		l.closeSent = true
	case carries:
		if wait {
			return nil
		}
		data, eof := l.conn.out.tryTake(min(l.credit, opBytes))
		op.Data, op.Fin = data, eof
		l.finSent = l.finSent || eof
		if left, _, _ := l.conn.out.state(); left == 0 && !l.more {
			op.Wait = l.wait(dataWait)
			if l.depth == 1 {
				op.Wait = 0 // the next bytes could not go before it is back
			}
		}
	case l.more && drain > 0:
		if wait {
			return nil
		}
	case len(l.flights) == 0 || l.asked == 0 && drain > 0:
		if !wait {
			return nil
		}
		op.Wait = l.wait(untilNextPoll(time.Now(), l.client.o.Poll))
		drain = min(drain, pollBytes)
	default:
		return nil
	}
	op.Drain = uint32(drain)
	f := l.newFlight(op)
	l.flights[l.next] = f
	l.next++
	l.credit -= len(op.Data)
	l.asked += drain
	return f
}

func (l *link) isConnected() bool {
	select {
	case <-l.connected:
		return true
	default:
		return false
	}
}

// untilNextPoll has the waits of all idle connections end at the same moments,
// one poll apart, so that they go on in one exchange.
func untilNextPoll(now time.Time, poll time.Duration) time.Duration {
	d := now.Truncate(poll).Add(poll).Sub(now)
	if d < poll/2 {
		d += poll
	}
	return d
}

// wait returns an operation's Wait in milliseconds.
func (l *link) wait(d time.Duration) uint32 {
	if l.depth == 1 {
		d = min(d, oldWait)
	}
	return uint32(max(d.Milliseconds(), 1))
}

func (l *link) newFlight(op Op) *flight {
	return &flight{link: l, op: op, until: time.Now().Add(HoldTime)}
}

func (f *flight) due() bool {
	return f.state <= toResume && !time.Now().Before(f.again)
}

// wantsMore reports whether the link has something to send at once that found
// no place.
func (l *link) wantsMore() bool {
	if l.ended {
		return false
	}
	for _, f := range l.flights {
		if f.due() {
			return true
		}
	}
	bytesOut, _, outClosed := l.conn.out.state()
	return len(l.flights) < l.depth && !l.closeSent &&
		(l.more || l.asked == 0 || min(bytesOut, l.credit) > 0 || outClosed && !l.finSent)
}

// failed takes note that a flight's exchange failed: it may have been run or
// not. A numbered one is sent again, after a pause; it runs once.
func (f *flight) failed(err error) {
	l := f.link
	now := time.Now()
	if f.op.Kind == Connect { // nothing is lost with it, and there may be another way to try
		l.client.end(l, err)
		return
	}
	if !l.pipelined || now.After(f.until) || errors.Is(err, ErrRefused) {
		l.client.end(l, fmt.Errorf("%w: %w", ErrReset, err))
		return
	}
	f.wait = min(max(2*f.wait, firstRetry), lastRetry)
	f.state, f.again = unsent, now.Add(f.wait)
	time.AfterFunc(f.wait, func() { l.client.look(l) })
}

// answered takes a flight's reply.
func (f *flight) answered(r Reply) {
	l := f.link
	switch {
	case f.op.Kind == Connect:
		l.begin(r)
		return
	case r.Status == Pending && f.op.Numbered:
		f.state = toResume
		f.until = time.Now().Add(HoldTime)
		return
	case r.Status == Missing && time.Now().Before(f.until):
		f.state = unsent
		return
	case r.Status == Gone && f.op.Kind == Close:
		r.Status = OK
	}
	f.state, f.reply = replied, r
	if f.op.Numbered && !r.Numbered && l.pipelined {
		l.downgrade()
	}
}

// downgrade has operations go one at a time from now on, because the server
// runs them as they come.
func (l *link) downgrade() {
	l.client.old, l.pipelined, l.depth = true, false, 1
	writing := 0
	for _, f := range l.flights {
		if len(f.op.Data) > 0 {
			writing++
		}
	}
	if writing > 1 { // nobody knows in which order they were written
		l.client.end(l, fmt.Errorf("%w: the server does not number operations as it promised", ErrReset))
	}
}

// begin takes the reply to Connect.
func (l *link) begin(r Reply) {
	l.dialing = nil
	switch r.Status {
	case OK:
		l.pipelined = r.Caps&CapPipelineSeq != 0 && !l.client.old
		if l.depth = 1; l.pipelined {
			l.depth = min(baseDepth, l.client.o.MaxDepth)
		}
		l.credit = int(min(r.Window, windowBytes))
		if !l.isConnected() {
			close(l.connected)
		}
	case Busy:
		l.client.end(l, ErrBusy)
	default:
		l.client.end(l, fmt.Errorf("%w: the server refuses to connect: %s", ErrReset, r.Message))
	}
}

// collect takes the replies that are next, in the order of their numbers.
func (l *link) collect() {
	for !l.ended {
		f := l.flights[l.taken]
		if f == nil || f.state != replied {
			return
		}
		delete(l.flights, l.taken)
		l.taken++
		l.asked -= int(f.op.Drain)
		l.take(f)
	}
}

// take acts on one reply.
func (l *link) take(f *flight) {
	r := &f.reply
	l.conn.in.tryPut(r.Data) // there is room: it was asked for
	if r.EOF && !l.remoteEOF {
		l.remoteEOF = true
		l.conn.in.finish()
	}
	switch r.Status {
	case OK:
	case Gone:
		l.client.end(l, fmt.Errorf("%w: the server no longer knows it", ErrReset))
		return
	default: // the bytes that this operation wrote are lost, and so the stream
		l.refused = true
		l.conn.out.fail(fmt.Errorf("%w: %s", ErrReset, r.Message))
	}
	if f.op.Kind == Close {
		l.client.end(l, ErrReset)
		return
	}
	under := 0
	for _, other := range l.flights {
		under += len(other.op.Data)
	}
	l.credit = max(int(min(r.Window, windowBytes))-under, 0)
	l.adapt(f)
}

// adapt lets depth follow the load: it doubles when as many replies in a row
// as may be under way were full, and falls back when one was empty.
func (l *link) adapt(f *flight) {
	got, wrote := len(f.reply.Data), len(f.op.Data)
	l.more = got > 0 && got == int(f.op.Drain)
	switch {
	case l.more || wrote == opBytes:
		l.full++
		if l.full >= l.depth && l.pipelined {
			l.full, l.depth = 0, min(2*l.depth, l.client.o.MaxDepth)
		}
	case got == 0 && wrote == 0:
		l.full = 0
		if l.pipelined {
			l.depth = min(baseDepth, l.client.o.MaxDepth)
		}
	}
}
