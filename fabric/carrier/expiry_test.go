package carrier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/identity/identitytest"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/internal/clock"
)

// offset is a clock that is late.
type offset struct {
	clock.Clock
	late time.Duration
}

func (o offset) Now() time.Time { return o.Clock.Now().Add(-o.late) }

// TestExpiryCutsLinks over each carrier, with certificates that have some seconds
// left. Who has renewed his makes links on.
func TestExpiryCutsLinks(t *testing.T) {
	t.Parallel()
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFabric(t)
			b := f.node()
			l := listen(t, carrier(b))
			var a *identity.Node
			var ca Carrier
			var near, far Link
			for life := 2 * time.Second; near == nil; life *= 2 { // a busy machine may need more
				a = (&fabric{t, openLate(t, f, identity.CertLife-life)}).node()
				ca = carrier(a)
				near, far = brief(t, ca, l, b.ID(), a.Expires())
			}
			for _, link := range []Link{far, near} {
				link.SetReadDeadline(time.Now().Add(hung))
				if _, err := io.Copy(io.Discard, link); isTimeout(err) {
					t.Errorf("a link outlives the certificate: %v", err)
				}
			}
			if err := useless(timeout(t), ca, l.Addr(), b.ID()); err == nil {
				t.Error("a link was made with a certificate that has expired")
			}
			renew(t, f, a)
			connect(t, ca, l, l.Addr(), b.ID())
		})
	}
}

// brief makes a link with a certificate that expires at a time before long. It
// returns none if that was too short.
func brief(t *testing.T, c Carrier, l Listener, to identity.NodeID, end time.Time) (near, far Link) {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), end)
	defer cancel()
	near, err := c.Dial(ctx, l.Addr(), to)
	if err == nil {
		t.Cleanup(func() { near.Close() })
		_, err = near.Write([]byte("x"))
	}
	if err == nil {
		far, err = l.Accept(ctx)
	}
	if err != nil {
		if time.Now().Before(end) {
			t.Fatal(err)
		}
		return nil, nil
	}
	t.Cleanup(func() { far.Close() })
	for what, link := range map[string]Link{"dialed": near, "accepted": far} {
		if at := link.(session.Expiring).Expires(); at.After(end.Add(time.Minute)) { // it is told as a time that is left
			t.Errorf("the link that was %s says it lasts until %s, and its certificate until %s", what, at, end)
		}
	}
	return near, far
}

func renew(t *testing.T, f *fabric, n *identity.Node) {
	t.Helper()
	csr, err := n.RenewRequest()
	if err != nil {
		t.Error(err)
		return
	}
	g, err := f.Renew(n.ID(), n.Organization(), csr)
	if err == nil {
		err = n.Renewed(g)
	}
	if err != nil {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// openLate opens the authority of a fabric once more, with a clock that is late:
// its certificates expire so much earlier.
func openLate(t *testing.T, f *fabric, late time.Duration) *identitytest.Authority {
	t.Helper()
	return f.At(t, offset{clock.System(), late})
}

// TestSessionOutlivesCertificates: a node renews its certificate, and before the
// old ones expire its sessions have links that were made with the new one. No link
// is cut, and no byte is lost or sent twice. In virtual time.
func TestSessionOutlivesCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		late := &fabric{t, openLate(t, f, identity.CertLife-4*time.Hour)}
		a, b := late.node(), f.node()
		here, there := session.NewEndpoint(session.Options{}), session.NewEndpoint(session.Options{})
		defer there.Close()
		defer here.Close()
		fresh := make(chan *session.Session, 16)
		dialed := 0
		near, err := here.Dial(t.Context(), b.ID().String(), 2, func(ctx context.Context, _ int) (net.Conn, error) {
			dialed++
			x, y := net.Pipe()
			go func() {
				l, err := Wrap(context.Background(), y, b, identity.NodeID{}, true)
				if err != nil {
					return // the dialer says why
				}
				if s, err := there.Serve(l, a.ID().String()); err == nil && s != nil {
					fresh <- s
				}
			}()
			return Wrap(ctx, x, a, b.ID(), false)
		})
		if err != nil {
			t.Fatal(err)
		}
		far := <-fresh
		w, err := near.Open(frame.Bulk, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := far.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(5 * time.Hour)
		var g sync.WaitGroup
		var sent, got bytes.Buffer
		g.Go(func() {
			for i := byte(0); time.Now().Before(end); i++ {
				b := bytes.Repeat([]byte{i}, 1000)
				sent.Write(b)
				if _, err := w.Write(b); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Minute)
			}
			w.CloseWrite()
		})
		time.Sleep(time.Hour)
		renew(t, f, a)
		if _, err := io.Copy(&got, r); err != nil {
			t.Error(err)
		}
		g.Wait()
		if !bytes.Equal(got.Bytes(), sent.Bytes()) {
			t.Errorf("%d bytes came of %d, or others", got.Len(), sent.Len())
		}
		for _, s := range []*session.Session{near, far} {
			if st := s.Stats(); st.LostLinks != 0 || st.Resent != 0 || st.Duplicate != 0 {
				t.Errorf("%+v", st)
			}
		}
		if dialed != 4 {
			t.Errorf("%d links were dialed", dialed)
		}
		for _, l := range near.Links() {
			if left := time.Until(l.Conn.(session.Expiring).Expires()); left < 5*24*time.Hour {
				t.Errorf("a link ends in %s", left)
			}
		}
	})
}

// TestQUICAges: a connection that is about to expire gets no new links.
func TestQUICAges(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a, b := f.node(), f.node()
	l := listen(t, NewQUIC(b))
	c := newQUIC(a, bindAny)
	first, _ := connect(t, c, l, l.Addr(), b.ID())
	same, _ := connect(t, c, l, l.Addr(), b.ID())
	c.mu.Lock()
	for _, conn := range c.conns {
		<-conn.up
		conn.old = time.Now()
	}
	c.mu.Unlock()
	next, _ := connect(t, c, l, l.Addr(), b.ID())
	again, _ := connect(t, c, l, l.Addr(), b.ID())
	conn := func(l Link) string { return l.LocalAddr().String() }
	if conn(first) != conn(same) || conn(next) != conn(again) || conn(first) == conn(next) {
		t.Errorf("links are on %s, %s; then on %s, %s", conn(first), conn(same), conn(next), conn(again))
	}
	first.Close()
	same.Close() // the old one goes, and takes none with it
	far, err := c.Dial(timeout(t), l.Addr(), b.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if conn(far) != conn(next) {
		t.Errorf("a link is on %s, after the old ones went", conn(far))
	}
}
