package seglog

import (
	"container/list"
	"sync"

	"github.com/spacestore/space/internal/vfs"
)

// fileCache keeps at most openFiles logs open for reading, least recently used
// first out. A file in use is closed when its last user lets go.
type fileCache struct {
	open func(log uint64) (vfs.File, error)

	mu    sync.Mutex
	files map[uint64]*list.Element // of *openFile
	lru   list.List                // front: most recently used
}

type openFile struct {
	log    uint64
	f      vfs.File
	users  int
	cached bool
}

func (c *fileCache) get(log uint64) (vfs.File, func(), error) {
	c.mu.Lock()
	if e := c.files[log]; e != nil {
		c.lru.MoveToFront(e)
		o := e.Value.(*openFile)
		o.users++
		c.mu.Unlock()
		return o.f, func() { c.release(o) }, nil
	}
	c.mu.Unlock()
	f, err := c.open(log)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &openFile{log: log, f: f, users: 1}
	if c.files[log] == nil { // else someone else opened it meanwhile; ours is closed after use
		if c.files == nil {
			c.files = map[uint64]*list.Element{}
		}
		o.cached = true
		c.files[log] = c.lru.PushFront(o)
		for c.lru.Len() > openFiles {
			c.evict(c.lru.Back())
		}
	}
	return f, func() { c.release(o) }, nil
}

func (c *fileCache) release(o *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o.users--
	if o.users == 0 && !o.cached {
		o.f.Close()
	}
}

func (c *fileCache) evict(e *list.Element) {
	o := c.lru.Remove(e).(*openFile)
	delete(c.files, o.log)
	o.cached = false
	if o.users == 0 {
		o.f.Close()
	}
}

func (c *fileCache) drop(log uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.files[log]; e != nil {
		c.evict(e)
	}
}

func (c *fileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.lru.Len() > 0 {
		c.evict(c.lru.Back())
	}
}
