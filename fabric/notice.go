package fabric

import (
	"strings"
	"time"

	"github.com/spacestore/space/fabric/identity"
)

// What only an operator can put right is said, not found out.

const (
	rejectedEach = time.Minute      // between two words on the same
	rejectedFor  = 5 * time.Minute  // Status tells of it
	twinTime     = 30 * time.Second // two lives of a node may overlap
)

// Read implements net.Conn.
func (c *linkConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && c.rejected != nil && rejects(err) {
		c.rejected()
	}
	return n, err
}

// rejects reports whether a link has ended because the peer does not take this
// node's certificate: with TLS 1.3, that comes when the handshake is done here.
func rejects(err error) bool { return strings.Contains(err.Error(), "tls: bad certificate") }

// rejected takes note that a peer does not take this node's certificate.
func (n *Node) rejected(peer identity.NodeID) {
	now := time.Now().UnixNano()
	last := n.rejectedAt.Swap(now)
	if said := n.rejectedSaid.Load(); now-said < int64(rejectedEach) && last != 0 || !n.rejectedSaid.CompareAndSwap(said, now) {
		return
	}
	n.log.Error("other nodes do not take this node's certificate: the node was revoked, its certificate has ended, or a clock is wrong; if it was revoked, move its identity away and join again",
		"peer", peer.String(), "certificate_ends", n.o.Identity.Expires())
}

// lastRejected returns when that was last, if it was lately.
func (n *Node) lastRejected() time.Time {
	at := n.rejectedAt.Load()
	if at == 0 || time.Since(time.Unix(0, at)) > rejectedFor {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// twins watches for two processes with one identity, such as those of a machine
// and its copy: one takes from the other what is sent to both.
func (r *route) twins(life identity.Epoch) {
	for _, o := range r.p.all() {
		if o == r || !o.isReady() || o.lifeOf() == life {
			continue
		}
		r.n.run(func() {
			t := time.NewTimer(twinTime)
			defer t.Stop()
			select {
			case <-t.C:
			case <-r.s.Done():
				return
			case <-o.s.Done(): // it has restarted
				return
			case <-r.n.ctx.Done():
				return
			}
			if r.s.Stats().Links > 0 && o.s.Stats().Links > 0 {
				r.n.log.Error("two processes use the identity of one node; take one away and have it join again", "peer", r.p.id.String(), "name", r.n.nameOf(r.p.id))
			}
		})
	}
}

func (r *route) lifeOf() identity.Epoch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hello.Life
}
