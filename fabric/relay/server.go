package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// ServerOptions bound a server. Each session holds at most four windows of 4 MiB.
type ServerOptions struct {
	Name        string        // in addresses
	MaxSessions int           // 0: 1024
	Backlog     int           // connections made that nobody has accepted; 0: 64
	Idle        time.Duration // a client not heard of for so long is given up, and so is what it does not take of a connection closed here; 0: two minutes
}

// Server is the far end of relayed connections and a net.Listener for them.
type Server struct {
	o      ServerOptions
	accept chan *Conn
	done   chan struct{}

	mu       sync.Mutex
	sessions map[ID]*session
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
	if o.Backlog == 0 {
		o.Backlog = 64
	}
	if o.Idle == 0 {
		o.Idle = 2 * time.Minute
	}
	s := &Server{o: o, accept: make(chan *Conn, o.Backlog), done: make(chan struct{}), sessions: map[ID]*session{}}
	go s.sweep()
	return s
}

// Accept implements net.Listener.
func (s *Server) Accept() (net.Conn, error) {
	select {
	case <-s.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-s.accept:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
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
func (s *Server) connect(op Op) Reply {
	r := Reply{Session: op.Session, Window: windowBytes, Caps: CapPipelineSeq}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[op.Session] != nil {
		return r
	}
	if s.closed || len(s.sessions) >= s.o.MaxSessions {
		return Reply{Session: op.Session, Status: Busy}
	}
	id := op.Session
	se := newSession(id, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.sessions, id)
	})
	se.conn.local = Addr(s.o.Name)
	se.conn.remote = Addr(fmt.Sprintf("%s/%x", s.o.Name, id[:4]))
	select {
	case s.accept <- se.conn:
		s.sessions[id] = se
		return r
	default:
		return Reply{Session: op.Session, Status: Busy}
	}
}

func (s *Server) session(id ID) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

// Exchange runs a batch of operations and returns the replies, in the
// operations' order.
func (s *Server) Exchange(ctx context.Context, body []byte) ([]byte, error) {
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
	done := false
	for i, op := range ops {
		if op.Kind == Connect {
			replies[i] = s.connect(op)
			done = true
			continue
		}
		se := s.session(op.Session)
		if se == nil {
			replies[i] = answered(op, Gone, "").reply
			done = true
			continue
		}
		c := se.submit(op, news)
		if replies[i] = se.result(c); replies[i].Status == Pending {
			waiting[i] = pending{se, c}
		} else {
			done = true
		}
	}
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
	out, err := s.Exchange(r.Context(), body)
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
