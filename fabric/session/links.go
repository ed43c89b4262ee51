package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// retireTime is how long a retired link may take to end.
const retireTime = 10 * time.Second

// Reserved is what a link's connection implements where it must not be lent to
// bulk, such as one that others pass on before their own bulk. The dialer says so
// to its peer.
type Reserved interface {
	Reserved() bool
}

// Expiring is what a link's connection implements that ends by itself at a time,
// such as when a certificate expires. The end that dials has another one in its
// place before.
type Expiring interface {
	Expires() time.Time
}

const (
	// renewPart is the part of a link's life that is left when another one takes its
	// place, and renewMost the most of it.
	renewPart = 10
	renewMost = time.Hour
	// renewLeast is of a life that is not worth it. So replacing links goes not on and
	// on where certificates are not renewed.
	renewLeast = 10 * time.Second
)

// renewAt returns when a link that is made now is to be replaced; zero: never.
func renewAt(c net.Conn, now time.Time) time.Time {
	e, ok := c.(Expiring)
	if !ok || e.Expires().IsZero() {
		return time.Time{}
	}
	left := e.Expires().Sub(now)
	if left < renewLeast {
		return time.Time{}
	}
	return e.Expires().Add(-min(left/renewPart, renewMost))
}

// LinkState is what is known of one link of a session.
type LinkState struct {
	ID             uint64   // in its session, from 1 on, in the order of coming
	Conn           net.Conn // as it was given to the session; it belongs to it
	Since          time.Time
	RTT            time.Duration // smoothed; 0: not measured yet
	Sent, Received int64         // bytes, frames' heads included
	Resent         int64         // payload bytes that were sent over others in its place
	Retired        bool          // carries nothing new, and ends when nothing is under way
}

// Links returns the links there are, in the order of their coming.
func (s *Session) Links() []LinkState {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]LinkState, len(s.links))
	for i, l := range s.links {
		all[i] = LinkState{l.id, l.conn, l.since, l.rtt, l.sent, l.received.Load(), l.resent, !l.retired.IsZero()}
	}
	return all
}

// Changed returns a channel that is closed at the next change of the links: one
// comes, goes, or is retired. Take it before looking at them.
func (s *Session) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Retire takes a link out of use without loss: both ends send over the others
// from now on, and it is closed when nothing is under way over it. The last
// link that carries something cannot be retired. A session that was dialed here
// dials another one in its place; see Relink.
func (s *Session) Retire(id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	others, found := false, false
	for _, l := range s.links {
		if l.id == id {
			found = true
		} else if l.retired.IsZero() {
			others = true
		}
	}
	switch {
	case !found:
		return fmt.Errorf("fabric: the session has no link %d", id)
	case !others:
		return errors.New("fabric: the session's last link cannot be retired")
	}
	s.retireThose(func(l *link) bool { return l.id == id })
	return nil
}

// Relink moves a session that was dialed here to other links while its streams
// go on: it dials as many as it is to have, and then retires those that there
// were. From then on it dials by this dialer. If not even one link can be made,
// everything stays as it was.
func (s *Session) Relink(ctx context.Context, dial Dialer) error {
	s.mu.Lock()
	redial, err := s.redial, s.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if redial == nil {
		return errors.New("fabric: the peer has dialed this session; it alone can move it")
	}
	return redial(ctx, dial)
}

// carriers returns how many links are in use.
func (s *Session) carriers() (n int) {
	for _, l := range s.links {
		if l.retired.IsZero() {
			n++
		}
	}
	return n
}

func (s *Session) retire(which func(*link) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retireThose(which)
}

func (s *Session) retireThose(which func(*link) bool) {
	for _, l := range s.links {
		if which(l) && l.retired.IsZero() {
			l.retired = time.Now()
			l.out = append(l.out, frame.Append(nil, frame.Head{Type: frame.Retire}))
		}
	}
	s.share()
	s.progress()
}

// wasRetired takes in what the peer says of a link: that it is to end, or, with
// answer, that nothing is under way over it from there.
func (s *Session) wasRetired(l *link, answer bool) {
	if answer {
		l.answered = true
	} else if !l.asked {
		l.asked, l.owes = true, true
		if l.retired.IsZero() {
			l.retired = time.Now()
			s.share()
		}
	}
	s.progress()
}

// progress ends the retired links over which nothing is under way: the end that
// was asked says so, and the one that has asked closes it then.
func (s *Session) progress() {
	for _, l := range s.links {
		if l.retired.IsZero() || !l.owes && !l.answered || s.underWay(l) {
			continue
		}
		if l.owes {
			l.owes = false
			l.out = append(l.out, frame.Append(nil, frame.Head{Type: frame.Retire, Flags: frame.FlagAnswer}))
			l.wake()
		}
		if l.answered {
			l.hangUp()
		}
	}
}

// underWay reports whether the peer has not acknowledged all that went over a
// link.
func (s *Session) underWay(l *link) bool {
	for _, st := range s.streams {
		if st.openLink == l && st.openSaid && !st.openAcked || st.finLink == l && st.finSent && !st.finAcked {
			return true
		}
		for _, f := range st.flights {
			if f.link == l {
				return true
			}
		}
	}
	return false
}
