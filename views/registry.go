package views

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/spacestore/space/capsule"
)

// MaxProjections bounds a node's projections: each costs a few goroutines and
// some megabytes of buffers while it is read.
const MaxProjections = 1024

// Registry holds the running projections of a node. It is safe for
// concurrent use.
type Registry struct {
	idle func()

	mu       sync.Mutex
	running  map[string]*Projection // by ID
	starting int
	sealed   bool
}

// NewRegistry returns an empty registry. It calls idle, from a goroutine of
// its own, each time the last running projection has ended.
func NewRegistry(idle func()) *Registry {
	return &Registry{idle: idle, running: map[string]*Projection{}}
}

// Start runs start and lists the projection it returns, under its ID or a fresh
// one, until that ends. It refuses to run start when the registry is full or sealed.
func (r *Registry) Start(start func() (*Projection, error)) (*Projection, error) {
	r.mu.Lock()
	switch {
	case r.sealed:
		r.mu.Unlock()
		return nil, capsule.Errorf(capsule.Unavailable, "the node is ending and starts no more projections; try again")
	case len(r.running)+r.starting >= MaxProjections:
		r.mu.Unlock()
		return nil, capsule.Errorf(capsule.Unavailable,
			"%d projections are running, the most one node can have; end one first", MaxProjections)
	}
	r.starting++
	r.mu.Unlock()

	p, err := start()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	if err != nil {
		if len(r.running)+r.starting == 0 {
			go r.idle()
		}
		return nil, err
	}
	for p.ID == "" || r.running[p.ID] != nil {
		p.ID = NewID()
	}
	r.running[p.ID] = p
	go r.forgetWhenDone(p)
	return p, nil
}

func (r *Registry) forgetWhenDone(p *Projection) {
	<-p.Done()
	r.mu.Lock()
	delete(r.running, p.ID)
	last := len(r.running)+r.starting == 0
	r.mu.Unlock()
	if last {
		r.idle()
	}
}

// List returns the running projections, oldest first.
func (r *Registry) List() []Info {
	r.mu.Lock()
	running := slices.Collect(maps.Values(r.running))
	r.mu.Unlock()
	list := make([]Info, len(running))
	for i, p := range running {
		if list[i] = p.Info; p.Describe != nil {
			p.Describe(&list[i])
		}
	}
	slices.SortFunc(list, func(a, b Info) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Find returns the running projection with the given ID or target: of several
// with that target the newest, since those before have left it.
func (r *Registry) Find(ref string) (*Projection, error) {
	if p := r.find(ref); p != nil {
		return p, nil
	}
	// The parent alone is resolved: looking at the target itself would ask the
	// projection, which may be busy or dead.
	if dir, err := filepath.EvalSymlinks(filepath.Dir(ref)); err == nil && filepath.IsAbs(ref) {
		if p := r.find(filepath.Join(dir, filepath.Base(ref))); p != nil {
			return p, nil
		}
	}
	return nil, capsule.Errorf(capsule.NotFound,
		"no running projection has the ID or target %q; `spacectl project list` shows those there are", ref)
}

func (r *Registry) find(ref string) *Projection {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.running[ref]; p != nil {
		return p
	}
	var newest *Projection
	for _, p := range r.running {
		if p.Target == ref && (newest == nil || p.Since.After(newest.Since)) {
			newest = p
		}
	}
	return newest
}

// Seal closes the registry to new projections if none is running or starting,
// and reports whether it did: a node that ends with its last projection asks
// this before it goes, so that none can slip in between.
func (r *Registry) Seal() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.running)+r.starting > 0 {
		return false
	}
	r.sealed = true
	return true
}

// CloseAll closes the registry to new projections and ends those that run,
// lazily: open files go on until their users close them. It returns the
// errors of those that would not end.
func (r *Registry) CloseAll() []error {
	r.mu.Lock()
	r.sealed = true
	running := slices.Collect(maps.Values(r.running))
	r.mu.Unlock()
	var errs []error
	for _, p := range running {
		if err := p.Close(true); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
