package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

// Codes of the resets that end streams of this package; the text says more.
const (
	CodeBroken      = 0x100 + iota // the connection was reset, or failed
	CodeRefused                    // the service refuses connections
	CodeUnreachable                // it can't be reached
	CodeTimeout                    // it does not answer
	CodeDenied                     // the exposer's rules do not allow it
	CodeBusy                       // the exposer has as many connections as it may
	CodeMalformed                  // the stream's header makes no sense
	CodeStopped                    // the exposer or forwarder was stopped
)

// ExposeOptions are for an Exposer. Target or Allow is needed.
type ExposeOptions struct {
	// Target is what streams are connected to that ask for nothing else:
	// host:port, or unix:PATH. "": all must ask.
	Target string
	// Allow is what else streams may ask for.
	Allow Rules
	// Peers may use it; none: every node of the fabric.
	Peers []identity.NodeID
	// ProxyProtocol tells the service who is calling, by a header of the PROXY
	// protocol, version 2, before the first byte. The service must expect it.
	ProxyProtocol bool

	MaxConns    int           // at a time, of all tunnels; 0: 1024
	DialTimeout time.Duration // 0: 10 s
	Log         *slog.Logger  // nil: nothing is logged
}

// Exposer connects streams to a service. It may serve many tunnels.
type Exposer struct {
	o     ExposeOptions
	slots chan struct{}
	counters
}

// NewExposer returns an exposer.
func NewExposer(o ExposeOptions) (*Exposer, error) {
	if o.Target == "" && len(o.Allow) == 0 {
		return nil, errors.New("forward: neither a target nor anything that is allowed")
	}
	if o.Target != "" {
		if _, _, err := parseTarget(o.Target); err != nil {
			return nil, err
		}
	}
	if o.MaxConns <= 0 {
		o.MaxConns = 1024
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Exposer{o: o, slots: make(chan struct{}, o.MaxConns)}, nil
}

// Serve takes in the streams of a tunnel that peer has asked for, until the
// tunnel ends, which it returns, or ctx, which resets all connections. It
// returns when the last connection has ended.
func (e *Exposer) Serve(ctx context.Context, t fabric.Accepter, peer identity.NodeID) error {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		st, err := t.Accept(ctx)
		if err != nil {
			return err
		}
		if len(e.o.Peers) > 0 && !slices.Contains(e.o.Peers, peer) {
			e.refuse(st, peer, &refusal{CodeDenied, "this node may not use the service"})
			continue
		}
		select {
		case e.slots <- struct{}{}:
		default:
			e.refuse(st, peer, &refusal{CodeBusy, fmt.Sprintf("the service has %d connections, which is the limit", e.o.MaxConns)})
			continue
		}
		all.Go(func() {
			defer func() { <-e.slots }()
			e.serve(ctx, st, peer)
		})
	}
}

func (e *Exposer) refuse(st fabric.Stream, peer identity.NodeID, r *refusal) {
	e.total.Add(1)
	e.failed.Add(1)
	st.Reset(r.code, r.text)
	e.o.Log.Warn("a connection over the fabric was refused", "peer", peer, "reason", r.text)
}

func (e *Exposer) serve(ctx context.Context, st fabric.Stream, peer identity.NodeID) {
	var h header
	if err := h.decode(st.Header()); err != nil {
		e.refuse(st, peer, &refusal{CodeMalformed, err.Error()})
		return
	}
	conn, err := e.dial(ctx, h.target)
	if err == nil && e.o.ProxyProtocol {
		if err = announce(conn, h.source); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		e.refuse(st, peer, asRefusal(err))
		return
	}
	e.o.Log.Debug("a connection over the fabric begins", "peer", peer, "target", conn.RemoteAddr(), "from", h.source)
	e.begin()
	err = join(ctx, conn, st, &e.counters)
	e.end(err)
	e.o.Log.Debug("a connection over the fabric has ended", "peer", peer, "target", conn.RemoteAddr(), "err", err)
}

// dial connects to what a stream asks for.
func (e *Exposer) dial(ctx context.Context, target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, e.o.DialTimeout)
	defer cancel()
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if target == "" {
		target = e.o.Target
	}
	if target == "" {
		return nil, &refusal{CodeDenied, "the forwarder must say what to connect to"}
	}
	network, addr, err := parseTarget(target)
	if err != nil {
		return nil, &refusal{CodeMalformed, err.Error()}
	}
	if target != e.o.Target {
		check, ok := e.o.Allow.match(network, addr)
		if !ok {
			return nil, &refusal{CodeDenied, fmt.Sprintf("%s is not among what is allowed", target)}
		}
		d.Control = check
	}
	return d.DialContext(ctx, network, addr)
}

// refusal is why a stream is not connected.
type refusal struct {
	code uint32
	text string
}

func (r *refusal) Error() string { return r.text }

// asRefusal makes of a failed dial what the forwarder is told. Addresses that
// names stand for are nobody else's, so texts do not have them.
func asRefusal(err error) *refusal {
	var r *refusal
	var dns *net.DNSError
	switch {
	case errors.As(err, &r):
		return r
	case errors.Is(err, context.Canceled):
		return &refusal{CodeStopped, "the service is not exposed any more"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return &refusal{CodeTimeout, "the service does not answer"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &refusal{CodeRefused, "the service refuses connections; it may not be running"}
	case errors.As(err, &dns):
		return &refusal{CodeUnreachable, "the service's name is not known"}
	case errors.Is(err, os.ErrNotExist):
		return &refusal{CodeUnreachable, "the service's socket does not exist"}
	}
	return &refusal{CodeUnreachable, "the service can't be reached"}
}

// parseTarget splits host:port or unix:PATH into what net.Dial takes.
func parseTarget(s string) (network, addr string, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" || strings.ContainsRune(path, 0) {
			return "", "", fmt.Errorf("forward: %q names no socket", s)
		}
		return "unix", path, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", "", fmt.Errorf("forward: %q is neither host:port nor unix:PATH", s)
	}
	if _, err := parsePort(port); err != nil {
		return "", "", err
	}
	return "tcp", net.JoinHostPort(host, port), nil
}
