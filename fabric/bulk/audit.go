package bulk

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"
)

// What has come is held against the hashes of one mirror, the authority. A chunk
// that comes from it comes with its hash; of the others it is asked. So a mirror
// that is not the authority can't have another one blamed, and in the end what is
// there is what one mirror has, or what was asked for.

// follow makes a mirror the authority. Called with the lock held.
func (t *Transfer) follow(m *mirror) {
	if t.authority == m {
		return
	}
	old := t.authority
	t.several = old != nil
	t.authority, t.nextSum = m, 0
	for _, p := range t.chunks {
		if p != nil {
			p.asked = 0
		}
	}
	if t.o.Want != nil || old == nil {
		return
	}
	clear(t.sums) // they were the old one's
	if t.o.Trusted && m.nth < old.nth {
		t.reset() // what only the old one agreed to, too
	}
}

// left takes note that a mirror can't be asked now: another one that answers takes
// over from it. Called with the lock held.
func (t *Transfer) left(m *mirror) {
	if m != t.authority {
		return
	}
	var next *mirror
	for _, w := range t.workers {
		switch o := w.m; {
		case o.state.Out != "" || !w.opened:
		case o == m:
			return // over another stream
		case next == nil || o.nth < next.nth:
			next = o
		}
	}
	if next != nil {
		t.follow(next)
	}
}

// out has a mirror asked no more. Called with the lock held.
func (t *Transfer) out(m *mirror, why string) {
	if m.state.Out != "" {
		return
	}
	m.state.Out = why
	if m == t.authority {
		t.left(m)
		for _, o := range t.mirrors {
			if t.authority == m && o.state.Out == "" {
				t.follow(o)
			}
		}
	}
	t.wake()
}

// notice takes note of how a stream to a mirror ended. Called with the lock held.
func (t *Transfer) notice(m *mirror, err error) {
	if err == nil {
		return
	}
	m.state.Failed++
	m.last = err
	var remote *RemoteError
	if errors.As(err, &remote) && remote.Code.lasting() || errors.Is(err, errProtocol) {
		m.state.Changed = remote != nil && remote.Code == CodeChanged
		t.out(m, err.Error())
	}
	t.left(m)
}

// takeSums returns hashes to ask the authority for.
func (t *Transfer) takeSums(m *mirror) *job {
	if !t.auditing || m != t.authority || t.summing {
		return nil
	}
	for ; t.nextSum < len(t.chunks); t.nextSum++ {
		p := t.chunks[t.nextSum]
		if p == nil {
			continue
		}
		open := p.have &^ p.agreed &^ p.asked
		if open == 0 {
			continue
		}
		first := bits.TrailingZeros64(open)
		count := min(bits.TrailingZeros64(^(open >> first)), sumsAtOnce)
		p.asked |= (1<<count - 1) << first
		t.summing = true
		return &job{first: t.nextSum*pageChunks + first, count: count}
	}
	return nil
}

// unask takes back that hashes were asked for.
func (t *Transfer) unask(j *job) {
	t.summing = false
	for c := j.first; c < j.first+j.count; c++ {
		p, bit := t.page(c)
		p.asked &^= bit
		t.nextSum = min(t.nextSum, c/pageChunks)
	}
}

// summed takes note that all hashes of a request are here.
func (t *Transfer) summed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.summing = false
	t.look()
}

// learn takes in a hash.
func (t *Transfer) learn(m *mirror, c int, h Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m == t.authority && t.has(c) {
		t.sums[c] = h
		t.judge(c)
		t.look()
	}
}

// judge holds a chunk that is there against the authority's hash, if that is
// known. Called with the lock held.
func (t *Transfer) judge(c int) {
	want, known := t.sums[c]
	p, bit := t.page(c)
	if !known || p.have&bit == 0 {
		return
	}
	if p.hash[c%pageChunks] == want {
		if p.agreed&bit == 0 {
			p.agreed |= bit
			t.disputed--
		}
		delete(t.sums, c)
		return
	}
	var m *mirror // who gave it
	if by := p.by[c%pageChunks]; by > 0 {
		m = t.mirrors[by-1]
	}
	switch {
	case t.o.Want != nil && !t.proven: // it may be the authority who is wrong
		if p.agreed&bit == 0 {
			t.disputed-- // until all of them are known
		}
		p.agreed |= bit
		return
	case m == nil || m == t.authority: // it is another payload now, or was when it was begun
	case t.proven:
		t.blame(m)
	case t.o.Trusted && t.authority.nth < m.nth:
		t.out(m, fmt.Sprintf("it has another content than %s", t.authority))
	default:
		t.failLocked(fmt.Errorf("%w: what %s has is not what %s has", ErrDisputed, m, t.authority))
		return
	}
	t.drop(c)
}

// reset forgets what the authority's hashes are. Called with the lock held.
func (t *Transfer) reset() {
	t.several, t.nextSum, t.disputed = false, 0, 0
	clear(t.sums)
	for _, p := range t.chunks {
		if p != nil {
			p.agreed, p.asked = 0, 0
			t.disputed += bits.OnesCount64(p.have)
		}
	}
	t.look()
}

// maxAudits bounds how often the whole is held against hashes: each time one
// mirror less is asked, or one that gave some of them has gone.
const maxAudits = 2 * maxMirrors

// checkRoot holds the final hash of what is there against what it should be, or,
// where that is not known, against the authority's. It is to go on when the two
// differ and there is something to do about it.
func (t *Transfer) checkRoot(ctx context.Context) (again bool, _ error) {
	t.mu.Lock()
	got := t.info.root(t.hash)
	t.root = got
	t.audits++
	if t.audits > maxAudits {
		defer t.mu.Unlock()
		return false, ErrRoot
	}
	if t.o.Want != nil {
		defer t.mu.Unlock()
		if got == *t.o.Want {
			return false, nil
		}
		return t.prove()
	}
	t.mu.Unlock()
	equal, err := t.askRoot(ctx, got)
	if equal || err != nil {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.doubt("its final hash is not that of its chunks")
}

func (t *Transfer) hash(c int) Hash { return t.chunks[c/pageChunks].hash[c%pageChunks] }

// prove finds who has the payload that was asked for, where what has come is
// another one.
func (t *Transfer) prove() (again bool, _ error) {
	if !t.auditing {
		t.auditing = true
		if t.look(); !t.finished {
			return true, nil // hashes come first
		}
	}
	if *t.o.Want != t.info.root(func(c int) Hash {
		if h, ok := t.sums[c]; ok {
			return h
		}
		return t.hash(c)
	}) {
		return t.doubt("it has another payload than the one that was asked for")
	}
	t.proven = true
	for c := range t.sums {
		if by := t.chunks[c/pageChunks].by[c%pageChunks]; by > 0 {
			t.blame(t.mirrors[by-1])
		}
		t.drop(c)
	}
	t.look()
	return true, nil
}

// doubt takes the authority's word no more, unless others have had a part in it.
func (t *Transfer) doubt(why string) (again bool, _ error) {
	if !t.several {
		t.out(t.authority, why)
	}
	if t.authority.state.Out != "" {
		return false, fmt.Errorf("%w; %s", ErrRoot, t.noMirror())
	}
	t.reset()
	return true, nil
}

// hedge is how long a mirror may think before another one is asked too.
const hedge = 2 * time.Second

// askRoot asks the authority for the final hash, and when it does not answer, the
// others: whether one agrees.
func (t *Transfer) askRoot(ctx context.Context, got Hash) (equal bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, t.o.GiveUp)
	defer cancel()
	t.mu.Lock()
	var left []*mirror
	for _, m := range t.mirrors {
		switch {
		case m == t.authority:
			left = append([]*mirror{m}, left...)
		case m.state.Out == "":
			left = append(left, m)
		}
	}
	t.mu.Unlock()
	type answer struct {
		m    *mirror
		root Hash
		err  error
	}
	answers := make(chan answer, len(left))
	under := 0
	var errs error
	var other *mirror // has another root
	ask := time.NewTimer(0)
	defer ask.Stop()
	for under+len(left) > 0 {
		select {
		case <-ask.C:
			if len(left) == 0 {
				continue
			}
			m := left[0]
			left = left[1:]
			under++
			go func() {
				root, err := Root(ctx, m, t.o.Name)
				answers <- answer{m, root, err}
			}()
			ask.Reset(hedge)
		case a := <-answers:
			under--
			if a.err == nil && a.root == got {
				return true, nil
			}
			t.mu.Lock()
			authority := a.m == t.authority
			if a.err == nil && !authority && other == nil {
				other = a.m
			}
			t.notice(a.m, a.err)
			t.mu.Unlock()
			if a.err == nil && authority {
				return false, nil
			}
			if a.err != nil {
				errs = errors.Join(errs, fmt.Errorf("%s: %w", a.m, a.err))
				ask.Reset(0)
			}
		}
	}
	if other == nil {
		return false, fmt.Errorf("%w: for the final hash: %w", ErrNoMirror, errs)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.follow(other)
	return false, nil
}

// Root asks a mirror for a payload's final hash.
func Root(ctx context.Context, m Mirror, name string) (h Hash, err error) {
	err = ask(ctx, m, name, func(l *link, _ info) error {
		if err := errors.Join(l.send(msgRoot), l.flush()); err != nil {
			return err
		}
		b, err := l.expect(msgFinal, len(h))
		if err == nil && copy(h[:], b) != len(h) {
			err = errProtocol
		}
		return err
	})
	return h, err
}

// Form asks a mirror how many bytes a payload and each of its chunks have.
func Form(ctx context.Context, m Mirror, name string) (size int64, chunk int, err error) {
	err = ask(ctx, m, name, func(_ *link, i info) error {
		size, chunk = i.Size, i.Chunk
		return nil
	})
	return size, chunk, err
}

// ask has a conversation with a mirror about a payload.
func ask(ctx context.Context, m Mirror, name string, fn func(*link, info) error) error {
	s, err := m.Open(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	defer s.Close()
	l := newLink(s)
	i, err := l.open(name)
	if err != nil {
		return err
	}
	return fn(l, i)
}
