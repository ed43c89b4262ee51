package session

import (
	"cmp"
	"slices"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// StreamState is what is known of one stream.
type StreamState struct {
	ID     uint64
	Class  frame.Class
	Header []byte
	Remote bool // the peer has opened it
	Opened time.Time

	Written uint64 // bytes taken in here
	Sent    uint64 // of these, up to where links took them
	Acked   uint64 // up to where the peer has them
	Limit   uint64 // up to where the peer has room

	Received uint64 // bytes that have come, without a gap
	Read     uint64 // of these, taken by the reader
	Window   uint64 // bytes that may come ahead of the reader

	WriteClosed, ReadClosed bool // nothing follows from here; from the peer
}

// State returns the stream's state.
func (st *Stream) State() StreamState {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.state()
}

func (st *Stream) state() StreamState {
	return StreamState{ID: st.id, Class: st.class, Header: st.header, Remote: st.remote(), Opened: st.since,
		Written: st.end, Sent: st.nxt, Acked: st.una, Limit: st.limit,
		Received: st.got, Read: st.read, Window: st.window,
		WriteClosed: st.fin, ReadClosed: st.got == st.finAt}
}

// Streams returns the states of all streams, by ID.
func (s *Session) Streams() []StreamState {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]StreamState, 0, len(s.streams))
	for _, st := range s.streams {
		all = append(all, st.state())
	}
	slices.SortFunc(all, func(a, b StreamState) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// DelayBounds are the upper bounds of a Delay's buckets.
var DelayBounds = [...]time.Duration{100 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond,
	100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second}

// Delay is a histogram of delays.
type Delay struct {
	Buckets  [len(DelayBounds) + 1]int64 // the last one: beyond all bounds
	Sum, Max time.Duration
}

func (d *Delay) add(t time.Duration) {
	i := 0
	for i < len(DelayBounds) && t > DelayBounds[i] {
		i++
	}
	d.Buckets[i]++
	d.Sum += t
	d.Max = max(d.Max, t)
}

// Count returns how many delays there were.
func (d Delay) Count() (n int64) {
	for _, b := range d.Buckets {
		n += b
	}
	return n
}
