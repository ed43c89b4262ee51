package fabric

import (
	"context"
	"time"
)

// Times.
const (
	dialTime = 20 * time.Second        // for a session, whatever the way
	wayTime  = 3 * time.Second         // for a link over one way
	wayStart = 250 * time.Millisecond  // of one way over the next
	callTime = 10 * time.Second        // for a call, and its answer
	openTime = 5 * time.Second         // for the answer to a command
	tickTime = time.Second             // between two looks at everything
	lonely   = 300 * time.Millisecond  // without a link, a session is no place for what is new
	downTime = 1500 * time.Millisecond // without a link, a session is down; its tunnels move where they may

	unheardTime = 5 * time.Second // without a link, for streams that the peer has not heard of

	nodeStart = 500 * time.Millisecond // of one node over the next, when a tunnel looks for its other end

	leaseLife = 2 * time.Minute // without a renewal; longer than a session lives without a link
	holdTime  = time.Minute     // the provider's end of a tunnel waits for its opener

	closeTime = 10 * time.Second // from one stream to the next, of those that were opened before their tunnel was closed

	firstWayRest = time.Second // after a way has failed; doubles
	lastWayRest  = 2 * time.Minute

	firstClimbRest = 5 * time.Second // between two tries for a better way; doubles
	lastClimbRest  = 5 * time.Minute

	firstLeaveRest = time.Second // between two tries to leave a session that is down; doubles
	lastLeaveRest  = 8 * time.Second

	briefLife      = 2 * time.Second        // a link, or a session, that lasted no longer was none
	firstBriefRest = 100 * time.Millisecond // before the next one, from the second such one on; doubles
	lastBriefRest  = 5 * time.Second

	firstReopenRest = 100 * time.Millisecond // between two tries for a tunnel's route; doubles
	lastReopenRest  = 2 * time.Second
	reopenTime      = 30 * time.Second

	proofTime    = 3 * time.Second  // for the authority's node to show that it is that
	provenTime   = time.Minute      // for which it is not asked again
	unprovenTime = 10 * time.Second // likewise one that has not

	sessionIdle = time.Minute // a session that is of no use is closed after
	peerIdle    = 10 * time.Minute
	helloTime   = 15 * time.Second // for the peer's hello on the control stream
	drainLook   = 50 * time.Millisecond
	grumbleRest = time.Second // between two lines about what one peer does wrong
	drainPause  = time.Minute // a node that drains is left alone for
)

// Bounds.
const (
	maxPeers           = 4096
	maxSessionsPerPeer = 4
	maxSessionStreams  = 16384
	sessionBacklog     = 1024 // streams of one session that were not looked at yet
	tunnelBacklog      = 256  // streams of one tunnel that nobody has accepted
	maxServices        = 1024
	maxLinksOf         = 512 // of all sessions with one peer that it has dialed
	maxFresh           = 256 // links that have not said hello
	maxFreshOf         = 32  // of one node
	maxPending         = 1024
	maxHandshakes      = 64   // tunnels being opened at one node at a time
	maxHops            = 3    // nodes that pass a link on
	maxPassed          = 1024 // links that are passed on for one node
	maxOnward          = 16   // of them, those for which the next node is being dialed
	maxServed          = 64   // calls, and handshakes of links that were passed on, of one session
	maxJoins           = 64   // nodes that join through one node at a time
	maxAuthorities     = 8    // nodes that say that they are the authority's, and are looked at at a time
	controlQueue       = 2048
	controlBytes       = 8 << 20
)

// gate lets so many in at a time.
type gate chan struct{}

func (g gate) take(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g gate) give() { <-g }
