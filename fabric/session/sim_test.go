package session

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/internal/testenv/simnet"
)

// pair is two nodes with a session between them.
type pair struct {
	t      *testing.T
	line   simnet.Line
	client *Endpoint
	server *Endpoint
	near   *Session
	far    *Session

	mu    sync.Mutex
	wires []*simnet.Conn // all that were ever dialed, the client's ends
	fresh chan *Session
	dials int
	down  bool // dials fail
	brief bool // links die as soon as they are there
}

func (p *pair) dial(context.Context, int) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dials++
	if p.down {
		return nil, errors.New("no way there")
	}
	a, b := p.line.Connect()
	p.wires = append(p.wires, a)
	if p.brief {
		time.AfterFunc(3*p.line.Delay, func() { a.Cut(io.ErrUnexpectedEOF) })
	}
	server := p.server
	go func() {
		if s, err := server.Serve(b, "client"); err == nil && s != nil {
			p.fresh <- s
		}
	}()
	return a, nil
}

// cutAll cuts the connections there are.
func (p *pair) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wires {
		w.Cut(io.ErrUnexpectedEOF)
	}
	p.wires = nil
}

// swallow makes the connections there are lose all that is sent from now on.
func (p *pair) swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wires {
		w.Swallow(true)
	}
	p.wires = nil
}

// inPair runs fn in a bubble of virtual time.
func inPair(t *testing.T, l simnet.Line, links int, o Options, fn func(t *testing.T, p *pair)) {
	t.Helper()
	inMixedPair(t, l, links, o, o, fn)
}

func inMixedPair(t *testing.T, l simnet.Line, links int, client, server Options, fn func(t *testing.T, p *pair)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &pair{t: t, line: l, client: NewEndpoint(client), server: NewEndpoint(server), fresh: make(chan *Session, 16)}
		var err error
		if p.near, err = p.client.Dial(t.Context(), "server", links, p.dial); err != nil {
			t.Fatal(err)
		}
		p.far = <-p.fresh
		fn(t, p)
		p.client.Close()
		p.server.Close()
		p.cutAll()
	})
}

// stream opens a stream and returns both of its ends.
func (p *pair) stream(from, to *Session) (near, far *Stream) {
	p.t.Helper()
	near, err := from.Open(4, []byte("header"))
	if err != nil {
		p.t.Fatal(err)
	}
	far, err = to.Accept(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return near, far
}
