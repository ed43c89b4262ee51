package store

import (
	"container/list"
	"sync"

	"github.com/spacestore/space/pipeline"
)

// segmentCache keeps decoded segments up to a number of bytes, least recently
// used first out, and lets concurrent readers of one segment decode it once.
type segmentCache struct {
	mu    sync.Mutex
	limit int64
	size  int64
	lru   list.List // of *cached; front: most recently used
	m     map[pipeline.SegmentID]*list.Element
}

type cached struct {
	id   pipeline.SegmentID
	done chan struct{} // closed when p and err are set
	p    []byte
	err  error
}

func newSegmentCache(limit int64) *segmentCache {
	return &segmentCache{limit: limit, m: map[pipeline.SegmentID]*list.Element{}}
}

// bytes is how much the cache holds.
func (c *segmentCache) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

// get returns a segment's bytes, which must not be changed, loading them if
// they are not there. Errors are not kept.
func (c *segmentCache) get(id pipeline.SegmentID, load func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	if e := c.m[id]; e != nil {
		c.lru.MoveToFront(e)
		s := e.Value.(*cached)
		c.mu.Unlock()
		<-s.done
		return s.p, s.err
	}
	s := &cached{id: id, done: make(chan struct{})}
	e := c.lru.PushFront(s)
	c.m[id] = e
	c.mu.Unlock()

	s.p, s.err = load()
	close(s.done)

	c.mu.Lock()
	defer c.mu.Unlock()
	if s.err != nil {
		c.lru.Remove(e)
		if c.m[id] == e {
			delete(c.m, id)
		}
		return nil, s.err
	}
	c.size += int64(len(s.p))
	for e := c.lru.Back(); c.size > c.limit && e != nil; {
		prev := e.Prev()
		old := e.Value.(*cached)
		select {
		case <-old.done:
			c.lru.Remove(e)
			delete(c.m, old.id)
			c.size -= int64(len(old.p))
		default: // being loaded; not counted yet
		}
		e = prev
	}
	return s.p, nil
}
