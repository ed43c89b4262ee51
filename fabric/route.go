package fabric

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
)

// route is a session with a peer and how its links go. It has a control stream,
// over which both ends send messages, and a lease that the dialer renews.
type route struct {
	n      *Node
	p      *peer
	dialed bool
	s      *session.Session // set by start, before anybody else has the route
	ready  chan struct{}    // closed when the peer has said hello
	out    chan message     // to the control stream
	grant  *grant           // set by start
	served gate
	moves  gate          // one at a time makes the links anew
	queued atomic.Int64  // bytes in out
	notice chan struct{} // holds one token when there is something in closed or moved
	began  time.Time

	mu       sync.Mutex
	hello    hello // the peer's
	isHello  bool
	control  *session.Stream
	ended    bool
	draining bool // the peer is about to go
	tunnels  map[tunnelKey]*Tunnel
	pending  map[uint64]chan<- any // requests that wait for an answer
	nextID   uint64
	closed   []closedTunnel      // that have ended here, of which the peer is to know
	moved    map[TunnelID]uint64 // generations that the peer is to know
	used     time.Time           // when it last was of use
	digestAt time.Time           // when to exchange digests again
	mark     uint64              // of the directory's news: the peer was told those before

	// The lease, and how the links go.
	lease     string
	epoch     uint64
	gen       uint64
	expires   time.Time
	renewAt   time.Time
	how       wayKey    // of the best link, as both ends know it
	spare     *linkConn // to be the session's next link
	climbing  bool
	climbAt   time.Time
	climbRest time.Duration

	alone     time.Time // since when the session has had no link; zero: it has one
	leaveAt   time.Time // when its tunnels may try again to leave it
	leaveRest time.Duration
	brief     brief // links

	health health
}

func newRoute(p *peer, dialed bool) *route {
	now := time.Now()
	r := &route{n: p.n, p: p, dialed: dialed, ready: make(chan struct{}), out: make(chan message, controlQueue), served: make(gate, maxServed), moves: make(gate, 1), notice: make(chan struct{}, 1), began: now,
		tunnels: map[tunnelKey]*Tunnel{}, moved: map[TunnelID]uint64{}, pending: map[uint64]chan<- any{}, used: now,
		climbAt: now.Add(firstClimbRest), expires: now.Add(leaseLife), renewAt: now.Add(leaseLife / 3)}
	if dialed {
		var id [8]byte
		rand.Read(id[:]) // never fails (crypto/rand.Read)
		r.lease, r.epoch, r.gen = hex.EncodeToString(id[:]), p.n.epoch, 1
	}
	return r
}

// start begins to serve the session.
func (r *route) start(s *session.Session) {
	r.mu.Lock()
	r.s = s
	r.mu.Unlock()
	if best, ok := r.bestNow(); ok && r.dialed {
		r.mu.Lock()
		r.how = best
		r.mu.Unlock()
	}
	grant, refused := r.n.admitSession(r)
	r.grant = grant
	if refused != nil || !r.p.add(r) {
		s.Close()
		if refused == nil {
			grant.release()
		} else {
			r.p.grumble(slog.LevelWarn, "session refused", "limit", refused.Limit)
		}
		return
	}
	r.n.run(func() {
		<-s.Done()
		r.end()
		grant.release()
	})
	r.n.run(r.accept)
	r.n.run(r.watch)
	r.n.run(r.write)
	if r.dialed {
		st, err := s.Open(frame.Control, []byte{streamControl})
		if err != nil {
			s.Close()
			return
		}
		r.setControl(st)
	}
}

// setControl takes in the control stream. There is one.
func (r *route) setControl(st *session.Stream) {
	r.mu.Lock()
	second := r.control != nil
	if !second {
		r.control = st
	}
	r.mu.Unlock()
	if second {
		st.Reset(codeGarbage, "a second control stream")
		return
	}
	h := hello{Life: r.n.verifier.Life(), Epoch: r.n.epoch, Name: r.n.o.Name, Area: r.n.o.Area, Organization: r.n.o.Identity.Organization(), Relay: r.n.o.Relay, Revoked: r.n.revocation()}
	if r.dialed {
		route := r.routeBody()
		h.Route = &route
	}
	b, err := json.Marshal(h)
	if err != nil {
		panic(err) // it has no values that JSON lacks
	}
	// Its writer has what others have queued before: hello overtakes them.
	if _, err := st.Write(message{msgHello, b}.encode()); err != nil {
		r.s.Close()
		return
	}
	r.n.run(func() {
		defer st.Close()
		err := r.read(st)
		if r.s.Err() == nil {
			r.p.grumble(slog.LevelWarn, "control stream ended", "error", err)
		}
		r.s.Close()
	})
}

// write sends what is queued for the control stream, once both ends have said
// hello.
func (r *route) write() {
	select {
	case <-r.ready:
	case <-r.s.Done():
		return
	}
	for {
		var err error
		select {
		case m := <-r.out:
			err = r.writeQueued(m)
		case <-r.notice:
			err = r.writeNotices()
		case <-r.s.Done():
			return
		}
		if err != nil {
			r.s.Close()
			return
		}
	}
}

// writeNotices sends what the peer is to know of tunnels, behind all that was
// queued before.
func (r *route) writeNotices() error {
	for n := len(r.out); n > 0; n-- {
		if err := r.writeQueued(<-r.out); err != nil {
			return err
		}
	}
	r.mu.Lock()
	closed := r.closed
	moved := make([]movedTunnel, 0, len(r.moved))
	for id, gen := range r.moved {
		moved = append(moved, movedTunnel{id, gen})
	}
	r.closed, r.moved = nil, map[TunnelID]uint64{}
	r.mu.Unlock()
	for batch := range slices.Chunk(moved, maxBatch) {
		if err := r.writeCommand(cmdMoved, movedBody{batch}); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(closed, maxBatch) {
		var b closeBody
		for _, t := range batch {
			b.Tunnels, b.Generations, b.Streams = append(b.Tunnels, t.id), append(b.Generations, t.gen), append(b.Streams, t.streams)
		}
		if err := r.writeCommand(cmdClose, b); err != nil {
			return err
		}
	}
	return nil
}

func (r *route) writeQueued(m message) error {
	_, err := r.control.Write(m.encode())
	r.queued.Add(-int64(len(m.body)))
	return err
}

func (r *route) writeCommand(kind string, body any) error {
	m, err := r.sign(kind, body)
	if err == nil {
		_, err = r.control.Write(m.encode())
	}
	return err
}

// closedTunnel is a tunnel that has ended here: in which generation, and how many
// streams were opened in it over the session.
type closedTunnel struct {
	id           TunnelID
	gen, streams uint64
}

// noteClosed has the peer told that a tunnel has ended here.
func (r *route) noteClosed(t *Tunnel) {
	t.mu.Lock()
	c := closedTunnel{sided(t.id, t.opener), max(t.gen, t.contract.RouteGeneration), t.over(r).opened}
	t.anew(r)
	t.mu.Unlock()
	r.mu.Lock()
	if !r.ended {
		r.closed = append(r.closed, c)
	}
	r.mu.Unlock()
	r.noteAll()
}

// noteMoved has the peer told a tunnel's generation.
func (r *route) noteMoved(t *Tunnel, gen uint64) {
	r.mu.Lock()
	r.moved[t.id] = gen
	r.mu.Unlock()
	r.noteAll()
}

// noteAll has the writer look for notices.
func (r *route) noteAll() {
	select {
	case r.notice <- struct{}{}:
	default:
	}
}

// send queues a message for the peer.
func (r *route) send(m message) error {
	if r.queued.Add(int64(len(m.body))) <= controlBytes {
		select {
		case r.out <- m:
			return nil
		default:
		}
	}
	r.queued.Add(-int64(len(m.body)))
	return errors.New("fabric: the peer does not read its control stream")
}

// command sends a signed command.
func (r *route) command(kind string, body any) error {
	m, err := r.sign(kind, body)
	if err != nil {
		return err
	}
	return r.send(m)
}

// sign makes a command for the peer.
func (r *route) sign(kind string, body any) (m message, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return m, err
	}
	r.mu.Lock()
	life, ok := r.hello.Life, r.isHello
	r.mu.Unlock()
	if !ok {
		return m, errors.New("fabric: the peer has not said hello")
	}
	signed, err := r.n.signer.Sign(r.p.id, life, kind, b)
	return message{msgCommand, signed}, err
}

// tell is command for what is no harm if it is lost.
func (r *route) tell(kind string, body any) {
	if err := r.command(kind, body); err != nil {
		r.n.log.Debug("command not sent", "peer", r.p.id.String(), "kind", kind, "error", err)
	}
}

// read takes in the control stream's messages until it ends.
func (r *route) read(st io.Reader) error {
	m, err := readMessage(st)
	if err != nil {
		return err
	}
	var h hello
	if m.kind != msgHello {
		return fmt.Errorf("%w: message %d before hello", frame.ErrProtocol, m.kind)
	}
	if err := json.Unmarshal(m.body, &h); err != nil || len(h.Name) > maxName || len(h.Area) > maxName {
		return fmt.Errorf("%w: hello: %v", frame.ErrProtocol, err)
	}
	if h.Route == nil == !r.dialed {
		return fmt.Errorf("%w: the session's dialer, and it alone, begins with a lease", frame.ErrProtocol)
	}
	if !r.dialed {
		if err := r.lets(*h.Route); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.hello, r.isHello = h, true
	r.mu.Unlock()
	close(r.ready)
	r.twins(h.Life)
	r.n.met(r, h)
	for {
		m, err := readMessage(st)
		if err != nil {
			return err
		}
		if err := r.message(m); err != nil {
			return err
		}
	}
}

// message takes in one message. An error ends the session.
func (r *route) message(m message) error {
	switch m.kind {
	case msgCommand:
		c, err := r.n.verifier.Verify(m.body)
		if err != nil {
			return err
		}
		if c.From != r.p.id {
			return fmt.Errorf("fabric: node %s sends a command of node %s", r.p.id, c.From)
		}
		return r.obey(c)
	case msgDigest:
		return r.n.digest(r, m.body)
	case msgRecords:
		return r.n.records(r, m.body)
	case msgRevocations:
		return r.n.revocations(r, m.body)
	}
	return nil // of a newer node
}

// obey does what a command says. An error ends the session.
func (r *route) obey(c identity.Command) error {
	decode := func(v any) error {
		if err := json.Unmarshal(c.Body, v); err != nil {
			return fmt.Errorf("%w: command %s: %w", frame.ErrProtocol, c.Kind, err)
		}
		return nil
	}
	switch c.Kind {
	case cmdOpen:
		var o openBody
		if err := decode(&o); err != nil {
			return err
		}
		if err := o.check(); err != nil {
			return err
		}
		return r.command(cmdOpened, r.n.opened(r, &o))
	case cmdOpened:
		var o openedBody
		if err := decode(&o); err != nil {
			return err
		}
		r.answer(o.ID, o)
	case cmdClose:
		var b closeBody
		if err := decode(&b); err != nil {
			return err
		}
		b.each(func(id TunnelID, gen, streams uint64) { r.n.closedByPeer(r, id, gen, streams) })
	case cmdRoute:
		var b routeBody
		if err := decode(&b); err != nil {
			return err
		}
		return r.leased(b)
	case cmdLeased:
		var b routeBody
		if err := decode(&b); err != nil {
			return err
		}
		r.mu.Lock()
		if r.dialed && b.Lease == r.lease {
			r.expires = time.Now().Add(leaseLife)
		}
		r.mu.Unlock()
	case cmdMoved:
		var b movedBody
		if err := decode(&b); err != nil {
			return err
		}
		r.wereMoved(b)
	case cmdDrain:
		r.n.peerDrains(r)
	}
	return nil // commands that are unknown are of a newer node
}

// call sends a command and waits for its answer. make is given the number that
// the answer will repeat.
func (r *route) call(ctx context.Context, kind string, body func(id uint64) any) (any, error) {
	c := make(chan any, 1)
	r.mu.Lock()
	if len(r.pending) >= maxPending {
		r.mu.Unlock()
		return nil, &RefusedError{Limit: fmt.Sprintf("%d requests under way to one node", maxPending), Retry: time.Second}
	}
	r.nextID++
	id := r.nextID
	r.pending[id] = c
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.pending, id)
		r.mu.Unlock()
	}()
	if err := r.command(kind, body(id)); err != nil {
		return nil, err
	}
	t := time.NewTimer(openTime)
	defer t.Stop()
	alone := time.NewTimer(lonely) // looks whether there is a link to wait for
	defer alone.Stop()
	for {
		select {
		case v := <-c:
			return v, nil
		case <-r.s.Done():
			return nil, r.s.Err()
		case <-t.C:
			return nil, fmt.Errorf("fabric: node %s does not answer", r.n.nameOf(r.p.id))
		case <-alone.C:
			if r.aloneFor(lonely, time.Now()) {
				return nil, fmt.Errorf("%w: %s", errAlone, r.n.nameOf(r.p.id))
			}
			alone.Reset(lonely)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (r *route) answer(id uint64, v any) {
	r.mu.Lock()
	c := r.pending[id]
	delete(r.pending, id)
	r.mu.Unlock()
	if c != nil {
		c <- v // it has room for the one answer
	}
}

// accept takes in the streams that the peer opens.
func (r *route) accept() {
	for {
		st, err := r.s.Accept(r.n.ctx)
		if err != nil {
			return
		}
		h, err := parseHead(st.Header())
		if err != nil {
			st.Reset(codeGarbage, err.Error())
			continue
		}
		switch h.what {
		case streamControl:
			if r.dialed {
				st.Reset(codeGarbage, "the control stream is the dialer's to open")
				continue
			}
			r.setControl(st)
		case streamTunnel:
			r.n.incoming(r, h, st)
		case streamPass:
			switch {
			case h.to != r.n.id:
				r.n.passOn(r, h, st)
			case h.joins:
				r.n.run(func() { r.n.joinHere(r, h, st) })
			default:
				r.serve(st, func() { r.n.passedHere(r, st) })
			}
		case streamCall:
			r.serve(st, func() { r.n.serveCall(r, string(h.rest), st) })
		}
	}
}

// serve runs fn for a stream, if not too many are being served.
func (r *route) serve(st *session.Stream, fn func()) {
	select {
	case r.served <- struct{}{}:
	default:
		st.Reset(codeRefused, fmt.Sprintf("%d requests of one session are under way", maxServed))
		return
	}
	r.n.run(func() {
		defer r.served.give()
		fn()
	})
}

// isReady reports whether the session can be used.
func (r *route) isReady() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isHello && !r.ended
}

// end takes out a session that has ended: its tunnels look for another one.
func (r *route) end() {
	r.dropSpare()
	r.p.remove(r)
	r.mu.Lock()
	r.ended = true
	tunnels := r.tunnels
	r.tunnels = map[tunnelKey]*Tunnel{}
	r.mu.Unlock()
	if r.dialed {
		r.p.mu.Lock()
		r.p.brief.ended(r.began, time.Now())
		r.p.mu.Unlock()
	}
	r.n.count(r.s.Stats())
	why := r.s.Err()
	r.n.log.Info("session ended", "peer", r.p.id.String(), "why", why)
	var bye *frame.GoAwayError
	for _, t := range tunnels {
		if !t.opener && errors.As(why, &bye) {
			t.end(errPeerClosed, false) // its node ends, and the tunnel's opener with it
		} else {
			t.lost(r)
		}
	}
	r.n.poke()
}

// attach gives the route a tunnel. It returns false if the route has ended.
func (r *route) attach(t *Tunnel) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return false
	}
	r.tunnels[tunnelKey{t.id, t.opener}] = t
	r.used = time.Now()
	return true
}

// detach takes a tunnel from the route.
func (r *route) detach(t *Tunnel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := (tunnelKey{t.id, t.opener}); r.tunnels[k] == t {
		delete(r.tunnels, k)
	}
	r.used = time.Now()
}

// changedWay takes note of how the links go, on the dialer's side, and has both
// ends and the tunnels know if that is another way than before.
func (r *route) changedWay() {
	best, ok := r.bestNow()
	r.mu.Lock()
	if !ok || !r.dialed || r.ended || best == r.how {
		r.mu.Unlock()
		return
	}
	from := r.how
	r.how = best
	r.gen++
	r.mu.Unlock()
	r.n.log.Info("route changed", "peer", r.p.id.String(), "from", from.String(), "to", best.String())
	r.renew()
	r.bump()
}

// routeBody is the lease, and how the links go, for the peer.
func (r *route) routeBody() routeBody {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := routeBody{Lease: r.lease, Epoch: r.epoch, Generation: r.gen, Life: leaseLife, Carrier: r.how.carrier}
	if !r.how.via.IsZero() {
		b.Via = r.how.via.String()
	}
	return b
}

// watch follows the session's links.
func (r *route) watch() {
	for {
		changed := r.s.Changed()
		r.linked()
		r.changedWay()
		if !r.dialed && r.aloneFor(0, time.Now()) {
			r.probe()
		}
		select {
		case <-changed:
		case <-r.s.Done():
			return
		}
	}
}

// renew renews the lease, which the dialer does.
func (r *route) renew() {
	r.mu.Lock()
	r.renewAt = time.Now().Add(leaseLife / 3)
	r.mu.Unlock()
	r.tell(cmdRoute, r.routeBody())
}

// leased takes in the dialer's renewal of the lease.
func (r *route) leased(b routeBody) error {
	if r.dialed {
		return fmt.Errorf("%w: a lease from the end that was dialed", frame.ErrProtocol)
	}
	r.mu.Lock()
	before := r.gen
	r.mu.Unlock()
	if err := r.lets(b); err != nil {
		return err
	}
	if b.Generation != before {
		r.bump()
	}
	return r.command(cmdLeased, b)
}

// lets makes the dialer's lease the session's.
func (r *route) lets(b routeBody) error {
	if len(b.Lease) > maxName || len(b.Carrier) > maxName || len(b.Via) > maxName {
		return fmt.Errorf("%w: a lease that can't be", frame.ErrProtocol)
	}
	how := wayKey{carrier: b.Carrier}
	if b.Via != "" {
		via, err := identity.ParseNodeID(b.Via)
		if err != nil {
			return fmt.Errorf("%w: %w", frame.ErrProtocol, err)
		}
		how.via = via
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lease, r.epoch, r.gen, r.how = b.Lease, b.Epoch, b.Generation, how
	r.expires = time.Now().Add(leaseLife)
	return nil
}

// bump has the tunnels that were opened at this end know that the route has
// changed, and through them their other ends.
func (r *route) bump() {
	r.mu.Lock()
	tunnels := make([]*Tunnel, 0, len(r.tunnels))
	for _, t := range r.tunnels {
		if t.opener {
			tunnels = append(tunnels, t)
		}
	}
	r.mu.Unlock()
	for _, t := range tunnels {
		if gen, ok := t.bump(r); ok {
			r.noteMoved(t, gen)
		}
	}
}

// wereMoved takes in the generations of tunnels that the peer has opened.
func (r *route) wereMoved(b movedBody) {
	for _, m := range b.Tunnels {
		r.mu.Lock()
		t := r.tunnels[tunnelKey{sided(m.ID, true), false}]
		r.mu.Unlock()
		if t != nil {
			t.setGeneration(r, m.Generation)
		}
	}
}

// leaseID returns the lease's name as contracts have it.
func (r *route) leaseID() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lease
}
