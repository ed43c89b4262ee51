package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Exchanger sends one batch and returns the answer.
type Exchanger interface {
	Exchange(ctx context.Context, batch []byte) (answer []byte, err error)
}

// ClientOptions tune a client; the zero value is right in most networks.
type ClientOptions struct {
	Name     string        // of the server, in addresses
	MaxDepth int           // operations under way for one connection; 0: 32
	Poll     time.Duration // how long an idle connection's operation waits at the server, more or less half of it; 0: 20 s
}

const (
	baseDepth = 2         // at first, and when there is little to do
	opBytes   = 256 << 10 // written or drained by one operation at most
	pollBytes = 16 << 10  // drained by an operation that waits: many of those share an answer
	dataWait  = time.Second
	oldWait   = 250 * time.Millisecond // where only one operation may be under way

	maxExchanges = 32 // under way for new bytes
	maxWaiting   = 4  // under way for operations that only wait, and some more for thousands of connections

	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// Client makes relayed connections through one server. Its goroutines are one,
// and one for each exchange under way.
type Client struct {
	x      Exchanger
	o      ClientOptions
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one token when there may be something to send
	wg     sync.WaitGroup

	mu        sync.Mutex
	links     map[ID]*link
	ready     map[*link]struct{} // to be looked at
	exchanges int
	waiting   int
	closed    bool
	old       bool // the server has dropped a number
}

// NewClient returns a client. Close it.
func NewClient(x Exchanger, o ClientOptions) *Client {
	if o.MaxDepth == 0 {
		o.MaxDepth = 32
	}
	o.MaxDepth = min(max(o.MaxDepth, 1), maxAhead)
	if o.Poll == 0 {
		o.Poll = 20 * time.Second
	}
	c := &Client{x: x, o: o, wake: make(chan struct{}, 1), links: map[ID]*link{}, ready: map[*link]struct{}{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Go(c.schedule)
	return c
}

// Dial makes a connection. It does not try again: an exchange that fails says why.
func (c *Client) Dial(ctx context.Context) (*Conn, error) {
	var id ID
	rand.Read(id[:]) // never fails (crypto/rand.Read)
	l := &link{client: c, flights: map[uint64]*flight{}, depth: 1, connected: make(chan struct{})}
	l.conn = newConn(id, func() { c.look(l) })
	l.conn.onClose = func() {
		c.mu.Lock()
		l.userClosed, l.closeBy = true, time.Now().Add(HoldTime)
		c.mu.Unlock()
		time.AfterFunc(HoldTime, func() { c.look(l) })
		c.look(l)
	}
	l.conn.local = Addr(fmt.Sprintf("%s/%x", c.o.Name, id[:4]))
	l.conn.remote = Addr(c.o.Name)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, net.ErrClosed
	}
	c.links[id] = l
	c.mu.Unlock()
	c.look(l)
	select {
	case <-l.connected:
		c.mu.Lock()
		defer c.mu.Unlock()
		if l.err != nil {
			return nil, l.err
		}
		return l.conn, nil
	case <-ctx.Done():
		l.conn.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.end(l, net.ErrClosed)
		return nil, ctx.Err()
	}
}

// Close ends the client and its connections.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, l := range c.links {
		c.end(l, net.ErrClosed)
	}
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	return nil
}

// look has the scheduler look at a link.
func (c *Client) look(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mark(l)
}

// mark is look with the lock held.
func (c *Client) mark(l *link) {
	c.ready[l] = struct{}{}
	c.stir()
}

func (c *Client) stir() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// schedule sends what there is to send, until the client is closed.
func (c *Client) schedule() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		for c.exchanges < maxExchanges {
			if !c.send(false) {
				break
			}
		}
		if c.waiting < maxWaiting+len(c.links)/(MaxOps/2) {
			c.send(true)
		}
		c.mu.Unlock()
	}
}

// send starts one exchange, of operations that carry bytes or of those that
// only wait for them. It returns false if there is nothing to send.
func (c *Client) send(wait bool) bool {
	var batch []*flight
	var ops []Op
	drain, size, longest := 0, 0, uint32(0)
	for l := range c.ready {
		for len(batch) < MaxOps && drain < MaxBatch/2 && size < MaxBatch/2 {
			f := l.nextFlight(wait)
			if f == nil {
				break
			}
			op := f.toSend()
			drain += int(op.Drain)
			size += len(op.Data)
			longest = max(longest, op.Wait)
			batch, ops = append(batch, f), append(ops, op)
		}
		if !l.wantsMore() {
			delete(c.ready, l)
		}
	}
	if len(batch) == 0 {
		return false
	}
	if wait {
		c.waiting++
	} else {
		c.exchanges++
	}
	c.wg.Go(func() { c.exchange(batch, ops, time.Duration(longest)*time.Millisecond, wait) })
	return true
}

// exchange sends a batch and hands its replies out. The time it may take
// covers waiting for earlier operations and the operations' own waits.
func (c *Client) exchange(batch []*flight, ops []Op, longest time.Duration, wait bool) {
	ctx, cancel := context.WithTimeout(c.ctx, longest+2*c.o.Poll+HoldTime+10*time.Second)
	answer, err := c.x.Exchange(ctx, EncodeOps(ops))
	cancel()
	var replies []Reply
	if err == nil {
		if replies, err = DecodeReplies(answer); err == nil {
			err = match(ops, replies)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if wait {
		c.waiting--
	} else {
		c.exchanges--
	}
	for i, f := range batch {
		if f.link.ended {
			continue
		}
		if err != nil {
			f.failed(err)
		} else {
			f.answered(replies[i])
		}
	}
	for _, f := range batch {
		if !f.link.ended {
			f.link.collect()
			c.mark(f.link)
		}
	}
	c.stir()
}

// match reports whether the replies can be those to ops.
func match(ops []Op, replies []Reply) error {
	if len(ops) != len(replies) {
		return fmt.Errorf("relay: %d replies to %d operations", len(replies), len(ops))
	}
	for i, r := range replies {
		if r.Session != ops[i].Session || r.Numbered && (!ops[i].Numbered || r.Seq != ops[i].Seq) {
			return errors.New("relay: a reply does not belong to its operation")
		}
		if len(r.Data) > int(ops[i].Drain) && ops[i].Kind == Data {
			return errors.New("relay: a reply has more bytes than were asked for")
		}
	}
	return nil
}

// end ends a link; err is what its user is told.
func (c *Client) end(l *link, err error) {
	if l.ended {
		return
	}
	l.ended = true
	l.err = err
	select {
	case <-l.connected:
	default:
		close(l.connected)
	}
	l.conn.fail(err)
	delete(c.links, l.conn.id)
	delete(c.ready, l)
}
