package carrier

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/clock"
)

// A node that joins sends one message and gets one: the length in bytes (u32,
// big-endian), then JSON.

const (
	joinTries = 4                 // at one address: behind a relay another node may answer
	joinTime  = 3 * handshakeTime // at one address

	maxJoin = 64 << 10 // bytes of a message; a revocation list is the most of it
	maxList = 4 << 20  // bytes of the answer, in which that list is
)

// joinAnswer is the authority's answer.
type joinAnswer struct {
	Grant *identity.Grant `json:"grant,omitempty"`
	Error string          `json:"error,omitempty"`
	Token bool            `json:"token,omitempty"` // the token is not valid
}

// Admitter is the part of an authority that admits nodes.
type Admitter interface {
	Join(identity.JoinRequest) (identity.Grant, error)
}

// Joins says what becomes of those who come to a listener without a certificate,
// to join; with the zero value they are sent away.
type Joins struct {
	// Admit serves their connections, see [ServeJoin].
	Admit func(net.Conn)
	// Pass takes their connections elsewhere, where Admit is nil: to the authority's
	// node, which is the TLS server that they ask for. They see ciphertext alone.
	Pass func(net.Conn)
}

func (j Joins) any() bool { return j.Admit != nil || j.Pass != nil }

// Joined is how a node was admitted.
type Joined struct {
	Grant identity.Grant
	Web   bool // over HTTPS, of a server with a certificate of the web
}

// JoinVia asks a fabric's authority, at the addresses that the token names, to
// admit the node whose certificate request is csr. Addresses are host:port or
// tls://host:port, and URLs of relays: the authority's, or one that passes on.
func JoinVia(ctx context.Context, token identity.Token, csr []byte) (Joined, error) {
	return joinVia(ctx, token, csr, nil)
}

func joinVia(ctx context.Context, token identity.Token, csr []byte, roots *x509.CertPool) (j Joined, err error) {
	var errs []error
	for _, addr := range token.Addrs {
		j = Joined{}
		switch carrier, at, _ := strings.Cut(addr, "://"); {
		case at == "" || carrier == "tls":
			j.Grant, _, err = joinAt(ctx, strings.TrimPrefix(addr, "tls://"), token, csr)
		case carrier == "https":
			// The server shows a certificate of the fabric or one of the web. Neither
			// is what the token's secret is shown to: that is at the end of the link
			// inside.
			var reached bool
			if j.Grant, reached, err = joinOver(ctx, addr, token, csr, token.RelayConfig(clock.System())); !reached {
				var web error
				if j.Grant, j.Web, web = joinOver(ctx, addr, token, csr, webConfig(roots)); j.Web {
					err = web
				} else {
					err = fmt.Errorf("%w; as a server of the web: %w", err, web)
				}
			}
		default:
			continue // nobody joins over other carriers
		}
		if err == nil {
			return j, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if errors.Is(err, identity.ErrToken) {
			break // the authority has spoken
		}
	}
	if errs == nil {
		errs = []error{errors.New("carrier: the join token names no address to join at")}
	}
	return Joined{}, errors.Join(errs...)
}

// joinOver asks over a relay; reached: it let the connection through.
func joinOver(ctx context.Context, addr string, token identity.Token, csr []byte, config *tls.Config) (g identity.Grant, reached bool, err error) {
	if err := checkURL(addr); err != nil {
		return g, false, err
	}
	r := newRelayClient(addr, config, http.ProxyFromEnvironment, nil)
	defer r.close()
	return askThere(ctx, func(ctx context.Context) (net.Conn, error) { return r.Dial(ctx) }, token, csr)
}

func joinAt(ctx context.Context, addr string, token identity.Token, csr []byte) (g identity.Grant, reached bool, err error) {
	return askThere(ctx, func(ctx context.Context) (net.Conn, error) { return dialTCP(ctx, addr) }, token, csr)
}

// askThere asks over connections to one address. Where what is at the other end does not
// show that it is the authority, it asks again: a node that passes on takes another one
// each time, of those that say they are. The authority's own answer is the last word.
func askThere(ctx context.Context, dial func(context.Context) (net.Conn, error), token identity.Token, csr []byte) (g identity.Grant, reached bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	for range joinTries {
		conn, derr := dial(ctx)
		if derr != nil {
			return g, reached, cmp.Or(err, derr) // the first one says more, if there is one
		}
		reached = true
		c := tls.Client(conn, token.ClientConfig(clock.System()))
		if err = handshake(ctx, c); err == nil {
			g, err = ask(ctx, c, token, csr)
			return g, true, err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return g, reached, err
}

// ask asks the authority at the other end of a connection, which it closes.
func ask(ctx context.Context, c *tls.Conn, token identity.Token, csr []byte) (g identity.Grant, err error) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.NetConn().Close() })()
	if err := writeMessage(c, token.JoinRequest(csr)); err != nil {
		return g, err
	}
	var a joinAnswer
	if err := readMessage(c, maxList, &a); err != nil {
		return g, fmt.Errorf("the authority's answer: %w", err)
	}
	switch {
	case a.Token:
		return g, identity.ErrToken
	case a.Grant == nil:
		return g, fmt.Errorf("the authority refuses: %.200q", a.Error)
	}
	return *a.Grant, nil
}

// ServeJoin answers the one request of a node that joins. The connection is one
// that has agreed on identity.JoinProtocol; the caller closes it. The error is io.EOF
// where nothing was asked.
func ServeJoin(c net.Conn, authority Admitter) error {
	if err := c.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	var req identity.JoinRequest
	if err := readMessage(c, maxJoin, &req); err != nil {
		return fmt.Errorf("carrier: a node that joins: %w", err)
	}
	var a joinAnswer
	g, err := authority.Join(req)
	switch {
	case errors.Is(err, identity.ErrToken):
		a.Token = true
	case err != nil:
		a.Error = err.Error()
	default:
		a.Grant = &g
	}
	if werr := writeMessage(c, a); werr != nil {
		return fmt.Errorf("carrier: a node that joins: %w", werr)
	}
	return err
}

func writeMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readMessage(r io.Reader, most int, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(most) {
		return fmt.Errorf("a message of %d bytes, at most %d are allowed", n, most)
	}
	// It grows with what comes, not with what was announced.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(b) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(b, v)
}
