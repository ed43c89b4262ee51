package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	mrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// helloTime is how long a new link may take to say Hello.
const helloTime = 10 * time.Second

// codeUnknown ends a link that resumes a session which is not known (any more).
const codeUnknown = 3

// Endpoint is a node's side of all its sessions.
type Endpoint struct {
	o    Options
	life [16]byte

	mu       sync.Mutex
	sessions map[sessionKey]*Session
	closed   bool
	wg       sync.WaitGroup
}

// sessionKey names a session: the peer, as its link is authenticated, and the
// dialer's choice. A peer can reach its own sessions alone.
type sessionKey struct {
	peer   string
	id     [16]byte
	dialer bool // this node has dialed
}

// NewEndpoint returns an endpoint. Close it.
func NewEndpoint(o Options) *Endpoint {
	e := &Endpoint{o: o, sessions: map[sessionKey]*Session{}}
	rand.Read(e.life[:]) // never fails (crypto/rand.Read)
	return e
}

// Close ends all sessions.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	e.closed = true
	var all []*Session
	for _, s := range e.sessions {
		all = append(all, s)
	}
	e.mu.Unlock()
	for _, s := range all {
		s.Close()
	}
	e.wg.Wait()
	return nil
}

// Sessions returns how many sessions there are.
func (e *Endpoint) Sessions() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.sessions)
}

// add makes a session. It is taken out when it ends.
func (e *Endpoint) add(k sessionKey) (*Session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if e.sessions[k] != nil { // who names it twice at once has no need to
		return nil, fmt.Errorf("%w: the session is begun twice", frame.ErrProtocol)
	}
	s := New(k.dialer, e.o)
	s.gone = func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.sessions, k)
	}
	e.sessions[k] = s
	return s, nil
}

// meet has all sessions with a peer know which life it is in. Those that it has
// outlived end when they have no link any more, instead of waiting for one.
func (e *Endpoint) meet(peer string, life [16]byte) {
	e.mu.Lock()
	var all []*Session
	for k, s := range e.sessions {
		if k.peer == peer {
			all = append(all, s)
		}
	}
	e.mu.Unlock()
	for _, s := range all {
		if s.knows() {
			s.meet(life)
		}
	}
}

// Serve takes in a link that a peer has dialed, and gives it to its session.
// fresh is the session where it is a new one, else nil. peer is who the link's
// certificate says it is.
func (e *Endpoint) Serve(c net.Conn, peer string) (fresh *Session, err error) {
	fresh, err = e.serve(c, peer)
	if err != nil {
		c.Close()
	}
	return fresh, err
}

func (e *Endpoint) serve(c net.Conn, peer string) (fresh *Session, err error) {
	if err := c.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return nil, err
	}
	max := e.o.filled().Version
	h, flags, err := frame.ReadHello(c)
	if err != nil {
		return nil, err
	}
	refuse := func(code uint32, err error) error {
		_, werr := c.Write((&frame.GoAwayError{Code: code, Text: err.Error()}).Encode())
		return errors.Join(err, werr)
	}
	version, err := h.Agree(max)
	if err != nil {
		return nil, refuse(1, err)
	}
	e.meet(peer, h.Life)
	k := sessionKey{peer, h.Session, false}
	e.mu.Lock()
	s := e.sessions[k]
	e.mu.Unlock()
	if s == nil {
		if flags&frame.FlagResume != 0 {
			return nil, refuse(codeUnknown, errors.New("the session is not known here; this node has restarted, or given it up"))
		}
		if s, err = e.add(k); err != nil {
			return nil, err
		}
		s.meet(h.Life)
		fresh = s
	}
	_, err = c.Write(frame.HelloBody{Min: frame.MinVersion, Max: max, Session: h.Session, Life: e.life}.Encode(0))
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err == nil {
		_, err = s.addLink(c, version, h.Link == frame.LinkReserved)
	}
	if err != nil && fresh != nil {
		fresh.Close()
		return nil, err
	}
	return fresh, err
}

// Dialer makes a link to the peer, authenticated. n counts the links that a
// session has asked for, so that it can go another way when one fails.
type Dialer func(ctx context.Context, n int) (net.Conn, error)

// Rests between dials, which are of half so long at least, and of any length up to
// it, so that many who have lost the same peer do not come back at once. The first
// dial for a link that was lost comes without.
const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 2 * time.Second
	// briefLife is of a link that was as bad as none: after it comes a rest.
	briefLife = 5 * time.Second
)

// Dial makes a session of the given number of links, and keeps their number.
// It returns when the first one is there.
func (e *Endpoint) Dial(ctx context.Context, peer string, links int, dial Dialer) (*Session, error) {
	k := sessionKey{peer: peer, dialer: true}
	rand.Read(k.id[:]) // never fails (crypto/rand.Read)
	s, err := e.add(k)
	if err != nil {
		return nil, err
	}
	m := &maintainer{e: e, s: s, k: k, links: links, dial: dial, relinking: make(chan struct{}, 1)}
	if err := m.link(ctx, 0, nil); err != nil {
		s.Close()
		return nil, err
	}
	s.mu.Lock()
	s.redial = m.relink
	s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return s, nil // it is being closed
	}
	e.wg.Go(m.run)
	return s, nil
}

// maintainer keeps the number of a session's links.
type maintainer struct {
	e     *Endpoint
	s     *Session
	k     sessionKey
	links int

	relinking chan struct{} // holds one token while the links are replaced

	mu   sync.Mutex
	dial Dialer
	n    int // links that were asked for
	gen  int // grows when the links are replaced
}

// link adds one link to the session, in the place of another one if that is not
// nil. If the links were replaced meanwhile, it is one of the old ones, and
// retired.
func (m *maintainer) link(ctx context.Context, flags uint8, old *link) error {
	m.mu.Lock()
	dial, n, gen := m.dial, m.n, m.gen
	if m.n++; old != nil && old.reserved {
		n = 0 // like the first one
	}
	m.mu.Unlock()
	id, err := m.linkBy(ctx, dial, n, flags)
	if err != nil {
		return err
	}
	m.mu.Lock()
	late := m.gen != gen
	m.mu.Unlock()
	m.s.retire(func(l *link) bool { return late && l.id == id || l == old })
	return nil
}

// linkBy adds a link that dial makes, and returns its ID.
func (m *maintainer) linkBy(ctx context.Context, dial Dialer, n int, flags uint8) (id uint64, err error) {
	max := m.e.o.filled().Version
	c, err := dial(ctx, n)
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	hello := frame.HelloBody{Min: frame.MinVersion, Max: max, Session: m.k.id, Life: m.e.life}
	r, ok := c.(Reserved)
	reserved := ok && r.Reserved()
	if reserved {
		hello.Link = frame.LinkReserved
	}
	err = c.SetDeadline(time.Now().Add(helloTime))
	if err == nil {
		_, err = c.Write(hello.Encode(flags))
	}
	var h frame.HelloBody
	if err == nil {
		h, _, err = frame.ReadHello(c)
	}
	if err == nil && h.Session != m.k.id {
		err = fmt.Errorf("%w: it answers for another session", frame.ErrProtocol)
	}
	var version uint8
	if err == nil {
		version, err = h.Agree(max)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return 0, err
	}
	m.s.meet(h.Life)
	m.e.meet(m.k.peer, h.Life)
	return m.s.addLink(c, version, reserved)
}

// run dials links where there are too few, and where one is about to expire.
func (m *maintainer) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-m.s.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	backoff := firstBackoff
	rest := func() {
		t := time.NewTimer(backoff/2 + mrand.N(backoff/2))
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		backoff = min(2*backoff, lastBackoff)
	}
	brief := m.s.briefLinks()
	for {
		quiet := time.Now()
		old, err := m.s.missing(ctx, m.links)
		if err != nil {
			return
		}
		if time.Since(quiet) > briefLife {
			backoff = firstBackoff
		}
		if n := m.s.briefLinks(); n != brief {
			brief = n
			rest()
			continue
		}
		attempt, stop := context.WithTimeout(ctx, helloTime)
		err = m.link(attempt, frame.FlagResume, old)
		stop()
		if m.unknown(err) {
			return
		}
		if err != nil {
			rest()
		}
	}
}

// briefLinks returns how many links were lost soon after they had come.
func (s *Session) briefLinks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.brief
}

// unknown ends the session if the peer says that it does not know it.
func (m *maintainer) unknown(err error) bool {
	var bye *frame.GoAwayError
	if !errors.As(err, &bye) || bye.Code != codeUnknown {
		return false
	}
	m.s.end(fmt.Errorf("%w: %w", ErrLost, err), nil)
	return true
}

// relink replaces the links by ones that dial makes.
func (m *maintainer) relink(ctx context.Context, dial Dialer) error {
	select {
	case m.relinking <- struct{}{}:
		defer func() { <-m.relinking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	fresh := map[uint64]bool{}
	for n := range m.links {
		id, err := m.linkBy(ctx, dial, n, frame.FlagResume)
		if err == nil {
			fresh[id] = true
			continue
		}
		if m.unknown(err) || n == 0 {
			return err
		}
		break // one is enough to go on with; run dials the others
	}
	m.mu.Lock()
	m.dial, m.n = dial, m.links
	m.gen++
	m.mu.Unlock()
	m.s.retire(func(l *link) bool { return !fresh[l.id] })
	return nil
}

// missing returns when the session has fewer than n links, or with the one that is
// to be replaced.
func (s *Session) missing(ctx context.Context, n int) (old *link, err error) {
	for {
		wait := time.Duration(math.MaxInt64)
		s.mu.Lock()
		have, changed := s.carriers(), s.changed
		for _, l := range s.links {
			if !l.retired.IsZero() || l.renew.IsZero() {
				continue
			}
			if left := time.Until(l.renew); left < wait {
				old, wait = l, left
			}
		}
		s.mu.Unlock()
		switch {
		case have < n:
			return nil, ctx.Err()
		case wait <= 0:
			return old, ctx.Err()
		}
		due := time.NewTimer(wait)
		select {
		case <-changed:
		case <-due.C:
		case <-ctx.Done():
			due.Stop()
			return nil, ctx.Err()
		}
		due.Stop()
	}
}
