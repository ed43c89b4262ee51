package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ServerOptions bound a server. Each session holds at most four windows of 4 MiB.
type ServerOptions struct {
	Name        string        // in addresses
	MaxSessions int           // of those that the user knows ([Conn.Know]); 0: 1024
	MaxStrange  int           // likewise of others; where there is one more, another one makes way; 0: 512
	Idle        time.Duration // a client not heard of for so long is given up, and so is what it does not take of a connection closed here; 0: two minutes
	// Heard is told of each exchange, with its context, before the answer; known: it is
	// for a session that the user knows. nil: nobody wants to hear of it.
	Heard func(ctx context.Context, known bool)
}

// Server is the far end of relayed connections and a net.Listener for them.
type Server struct {
	o    ServerOptions
	come chan struct{} // holds one token when there may be something in fresh
	done chan struct{}

	mu       sync.Mutex
	sessions map[ID]*session
	strange  []*session // of these, those that the user does not know, the oldest first
	fresh    []*session // that nobody has accepted, likewise; they may have ended
	closed   bool

	coming atomic.Int64 // bytes of batches that have come in part
}

// linger is how long an answer waits for more of its operations to be done
// when the first one is.
const linger = 2 * time.Millisecond

// NewServer returns a server. Close it.
func NewServer(o ServerOptions) *Server {
	if o.MaxSessions == 0 {
		o.MaxSessions = 1024
	}
	if o.MaxStrange == 0 {
		o.MaxStrange = 512
	}
	if o.Heard == nil {
		o.Heard = func(context.Context, bool) {}
	}
	if o.Idle == 0 {
		o.Idle = 2 * time.Minute
	}
	s := &Server{o: o, come: make(chan struct{}, 1), done: make(chan struct{}), sessions: map[ID]*session{}}
	go s.sweep()
	return s
}

// Accept implements net.Listener.
func (s *Server) Accept() (net.Conn, error) {
	for {
		s.mu.Lock()
		closed := s.closed
		var next *session
		if len(s.fresh) > 0 {
			next, s.fresh = s.fresh[0], s.fresh[1:]
		}
		if len(s.fresh) > 0 {
			s.tellFresh() // another one may wait for it
		}
		s.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		if next != nil {
			return next.conn, nil
		}
		select {
		case <-s.come:
		case <-s.done:
		}
	}
}

// tellFresh has somebody look who waits for a connection.
func (s *Server) tellFresh() {
	select {
	case s.come <- struct{}{}:
	default:
	}
}

// Addr implements net.Listener.
func (s *Server) Addr() net.Addr { return Addr(s.o.Name) }

// Close ends the server and its connections.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	for _, se := range s.all() {
		se.mu.Lock()
		se.end(net.ErrClosed)
		se.mu.Unlock()
	}
	return nil
}

// Sessions returns how many connections there are.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

func (s *Server) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*session, 0, len(s.sessions))
	for _, se := range s.sessions {
		all = append(all, se)
	}
	return all
}

// sweep gives up sessions whose client has gone, and those whose user has long gone.
func (s *Server) sweep() {
	t := time.NewTicker(s.o.Idle / 4)
	defer t.Stop()
	for {
		select {
		case <-s.done:
			return
		case now := <-t.C:
			for _, se := range s.all() {
				se.sweep(now, s.o.Idle)
			}
		}
	}
}

// connect makes a session; one that is there already is the same client's,
// asking again.
func (s *Server) connect(op Op, from netip.Addr) Reply {
	r := Reply{Session: op.Session, Window: windowBytes, Caps: CapPipelineSeq}
	s.mu.Lock()
	if s.sessions[op.Session] != nil {
		s.mu.Unlock()
		return r
	}
	if s.closed || len(s.sessions)-len(s.strange) >= s.o.MaxSessions {
		s.mu.Unlock()
		return Reply{Session: op.Session, Status: Busy}
	}
	id := op.Session
	se := newSession(id, nil)
	se.gone = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(se)
	}
	se.from = from
	se.conn.local = Addr(s.o.Name)
	se.conn.remote = clientAddr{Addr(fmt.Sprintf("%s/%x", s.o.Name, id[:4])), from}
	se.conn.onKnown = func() { s.know(se) }
	var ways []*session
	if len(s.strange) >= s.o.MaxStrange {
		ways = append(ways, s.excess())
	}
	if len(s.fresh) >= s.o.MaxStrange { // some have ended already
		ways = append(ways, s.fresh[0])
	}
	for _, way := range ways {
		s.drop(way)
		s.fresh = without(s.fresh, way)
	}
	s.sessions[id] = se
	s.strange, s.fresh = append(s.strange, se), append(s.fresh, se)
	s.tellFresh()
	s.mu.Unlock()
	for _, way := range ways {
		way.mu.Lock()
		way.end(fmt.Errorf("%w: too many others have come since", ErrReset))
		way.mu.Unlock()
	}
	return r
}

// drop forgets a session, but what it has for who accepts it. s.mu is held.
func (s *Server) drop(se *session) {
	if s.sessions[se.conn.id] != se {
		return
	}
	delete(s.sessions, se.conn.id)
	s.strange = without(s.strange, se)
}

// without takes a session from a list, if it is there.
func without(list []*session, se *session) []*session {
	if i := slices.Index(list, se); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// know takes a session from among the strangers'.
func (s *Server) know(se *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[se.conn.id] == se {
		s.strange = without(s.strange, se)
		se.known.Store(true)
	}
}

// excess returns which stranger's session makes room for another one: the oldest of
// the source that has the most. s.mu is held.
func (s *Server) excess() *session {
	count, first := map[netip.Addr]int{}, map[netip.Addr]*session{}
	most := s.strange[0].from
	for _, se := range slices.Backward(s.strange) {
		count[se.from]++
		first[se.from] = se
		if count[se.from] >= count[most] { // of equal ones the one with the oldest
			most = se.from
		}
	}
	return first[most]
}

func (s *Server) session(id ID) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

// Exchange runs a batch of operations and returns the replies, in the
// operations' order.
func (s *Server) Exchange(ctx context.Context, body []byte) ([]byte, error) {
	return s.exchange(ctx, body, netip.Addr{})
}

// exchange is Exchange for a client at an address.
func (s *Server) exchange(ctx context.Context, body []byte, from netip.Addr) ([]byte, error) {
	ops, err := DecodeOps(body)
	if err != nil {
		return nil, err
	}
	type pending struct {
		se *session
		c  *call
	}
	replies := make([]Reply, len(ops))
	waiting := map[int]pending{}
	news := make(chan struct{}, 1)
	done, known := false, false
	for i, op := range ops {
		if op.Kind == Connect {
			replies[i] = s.connect(op, from)
			done = true
			continue
		}
		se := s.session(op.Session)
		if se == nil {
			replies[i] = answered(op, Gone, "").reply
			done = true
			continue
		}
		known = known || se.known.Load()
		c := se.submit(op, news)
		if replies[i] = se.result(c); replies[i].Status == Pending {
			waiting[i] = pending{se, c}
		} else {
			done = true
		}
	}
	s.o.Heard(ctx, known)
	if !done && len(waiting) > 0 {
		select {
		case <-news:
			if len(waiting) > 1 { // others are often done at the same moment
				time.Sleep(linger)
			}
		case <-ctx.Done(): // the client has gone; it may ask again
		case <-s.done:
		}
	}
	size := 0
	for i := range replies {
		if p, ok := waiting[i]; ok {
			p.se.forget(p.c, news)
			replies[i] = p.se.result(p.c)
		}
		// What does not fit is asked for again.
		if size += len(replies[i].Data) + maxMessage; size > MaxBatch {
			replies[i] = Reply{Session: ops[i].Session, Numbered: ops[i].Numbered, Seq: ops[i].Seq, Status: Pending}
		}
	}
	return EncodeReplies(replies), nil
}

// ServeHTTP implements http.Handler: a POST is one exchange.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "an exchange is a POST", http.StatusMethodNotAllowed)
		return
	}
	in := &metered{r: http.MaxBytesReader(w, r.Body, MaxBatch), all: &s.coming}
	body, err := io.ReadAll(in)
	in.done()
	if errors.Is(err, errFull) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if err != nil {
		http.Error(w, "the batch could not be read", http.StatusBadRequest)
		return
	}
	from, _ := netip.ParseAddrPort(r.RemoteAddr) // none: not a TCP connection
	out, err := s.exchange(r.Context(), body, from.Addr().Unmap().WithZone(""))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.Write(out) // a client that is gone asks again
}

// maxComing bounds the bytes of all batches that have come in part.
const maxComing = 32 * MaxBatch

var errFull = errors.New("relay: too much is coming in at once; try again")

// metered counts what is read of a batch among the bytes of all.
type metered struct {
	r   io.Reader
	all *atomic.Int64
	n   int64
}

// Read implements io.Reader.
func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.all.Add(int64(n)) > maxComing {
		return n, errFull
	}
	return n, err
}

// done ends the count: what has come whole is bounded by the connections it is for.
func (m *metered) done() { m.all.Add(-m.n) }

const contentType = "application/octet-stream"
