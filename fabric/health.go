package fabric

import (
	"time"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/session"
)

// health is what was measured of a session. Its route's lock guards it.
type health struct {
	at     time.Time // of the last sample
	last   session.Stats
	rate   float64 // bytes a second, both ways, smoothed
	loss   float64 // part of the bytes that went twice, smoothed
	losses float64 // links lost, fading within minutes
}

// sample measures the session; it is called about once a second.
func (r *route) sample(now time.Time) {
	st := r.s.Stats()
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &r.health
	if d := now.Sub(h.at).Seconds(); !h.at.IsZero() && d > 0 {
		moved, sent := 0.0, 0.0
		for c := range frame.Classes {
			sent += float64(st.Sent[c] - h.last.Sent[c])
			moved += float64(st.Received[c] - h.last.Received[c])
		}
		moved += sent
		h.rate += (moved/d - h.rate) / 4
		if h.rate < 1 {
			h.rate = 0
		}
		if sent > 0 {
			h.loss += (min(float64(st.Resent-h.last.Resent)/sent, 1) - h.loss) / 4
		}
		h.losses = h.losses*0.98 + float64(st.LostLinks-h.last.LostLinks)
	}
	h.at, h.last = now, st
	if st.Streams > 1 || len(r.tunnels) > 0 { // more than the control stream
		r.used = now
	}
}

// linked takes note of whether the session has a link.
func (r *route) linked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch { // the session is asked within the lock, so that the last word is the newest
	case len(r.s.Links()) > 0:
		r.alone, r.leaveRest = time.Time{}, 0
	case r.alone.IsZero():
		r.alone = time.Now()
		time.AfterFunc(downTime, r.n.poke)
	}
}

// aloneFor reports whether the session has been without a link for so long.
func (r *route) aloneFor(d time.Duration, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.alone.IsZero() && now.Sub(r.alone) >= d
}

// isDown reports whether the session has been without a link for a while.
func (r *route) isDown(now time.Time) bool { return r.aloneFor(downTime, now) }

// score orders the sessions that a tunnel might use, and so the nodes: lower is
// better. Round trips that differ by less than half count as equal, so that
// load decides between them.
type score struct {
	down, relayed, far bool
	rtt                int // its logarithm
	load               int
	tie                uint64
}

func (a score) less(b score) bool {
	flags := func(s score) (n int) {
		for _, f := range []bool{s.down, s.relayed, s.far} {
			if n *= 2; f {
				n++
			}
		}
		return n
	}
	if fa, fb := flags(a), flags(b); fa != fb {
		return fa < fb
	}
	if a.rtt != b.rtt {
		return a.rtt < b.rtt
	}
	if a.load != b.load {
		return a.load < b.load
	}
	return a.tie < b.tie
}

// scoreOf measures a session for score.
func (r *route) scoreOf(now time.Time) (s score) {
	st := r.s.Stats()
	s.down = r.isDown(now)
	s.relayed = !r.best().direct()
	r.mu.Lock()
	defer r.mu.Unlock()
	// Loss and lost links count as a longer way: a route that loses a tenth of
	// what it sends is as one of twice the delay.
	rtt := float64(max(st.RTT, 500*time.Microsecond)) * (1 + 10*r.health.loss + r.health.losses)
	for ; rtt > float64(500*time.Microsecond); rtt /= 1.5 {
		s.rtt++
	}
	s.far = r.hello.Area != r.n.o.Area
	s.load = len(r.tunnels)
	return s
}
