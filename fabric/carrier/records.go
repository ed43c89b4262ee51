package carrier

import (
	"net"
	"sync"
)

// recordSize is what a TLS record carries at most.
const recordSize = 16 << 10

// recordBuffer holds four TLS records with their heads and tags, and some more.
const recordBuffer = 4*(recordSize+22) + 1<<10

// recordBuffers keeps their memory: a connection has one only while much passes.
var recordBuffers = sync.Pool{New: func() any { return new([recordBuffer]byte) }}

// records is the connection under a link's TLS, which writes each record by
// itself and reads hardly more than one at a time. With it, what belongs together
// is written at once, and while much comes as much is read as there is: fewer
// calls of the system, and fewer and larger segments for it to handle.
type records struct {
	net.Conn

	mu   sync.Mutex // of what is written
	held int        // writers that will flush
	out  *[recordBuffer]byte
	n    int
	err  error // of a flush: TLS must not go on after it

	// What was read ahead. TLS reads by one goroutine at a time.
	in       *[recordBuffer]byte
	from, to int
	much     bool // the last read got all that it asked for
}

// Read implements net.Conn.
func (r *records) Read(p []byte) (int, error) {
	if r.in == nil {
		if !r.much || len(p) >= recordBuffer/2 {
			n, err := r.Conn.Read(p)
			r.much = n == len(p) && n >= 1<<10
			return n, err
		}
		r.in = recordBuffers.Get().(*[recordBuffer]byte)
		n, err := r.Conn.Read(r.in[:])
		if r.from, r.to = 0, n; n == 0 { // an error after some bytes comes again
			r.drop()
			return 0, err
		}
		r.much = n >= recordBuffer/2
	}
	n := copy(p, r.in[r.from:r.to])
	if r.from += n; r.from == r.to {
		r.drop()
	}
	return n, nil
}

func (r *records) drop() {
	recordBuffers.Put(r.in)
	r.in, r.from, r.to = nil, 0, 0
}

// Write implements net.Conn.
func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	if r.held == 0 && r.n == 0 {
		return r.Conn.Write(p)
	}
	if r.n+len(p) > recordBuffer {
		if err := r.flush(); err != nil {
			return 0, err
		}
		if len(p) > recordBuffer {
			return r.Conn.Write(p)
		}
	}
	if r.out == nil {
		r.out = recordBuffers.Get().(*[recordBuffer]byte)
	}
	r.n += copy(r.out[r.n:], p)
	return len(p), nil
}

// flush writes what is held.
func (r *records) flush() error {
	if r.n > 0 && r.err == nil {
		_, r.err = r.Conn.Write(r.out[:r.n])
	}
	r.n = 0
	if r.out != nil {
		recordBuffers.Put(r.out)
		r.out = nil
	}
	return r.err
}

// hold has what is written kept, until release.
func (r *records) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held++
}

// release has what was kept written, when nobody holds it any more.
func (r *records) release() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held--; r.held > 0 {
		return r.err
	}
	return r.flush()
}
