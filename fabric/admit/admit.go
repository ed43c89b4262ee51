package admit

import (
	"cmp"
	"container/list"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/internal/clock"
)

// Scope is what an account is of.
type Scope uint8

// Scopes.
const (
	NodeScope Scope = iota // the node as a whole
	Route                  // by the peer's ID
	Pool
	Organization
	Service
	Scopes // how many there are
)

var scopeNames = [Scopes]string{"node", "route", "pool", "organization", "service"}

// String returns the scope's name.
func (s Scope) String() string { return scopeNames[s] }

// MarshalText implements encoding.TextMarshaler.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// What is something that is counted.
type What uint8

// What is counted. Rate is metered instead, see [Group.Take].
const (
	Sessions What = iota
	Tunnels
	Streams
	Window // bytes
	counted
	Rate  = counted // bytes a second
	whats = counted + 1
)

var whatNames = [whats]string{"sessions", "tunnels", "streams", "window bytes", "bytes a second"}

// String returns what it is, in words.
func (w What) String() string { return whatNames[w] }

// Key names an account.
type Key struct {
	Scope Scope
	Name  string
}

// Node returns the key of the node's account.
func Node() Key { return Key{} }

// String returns the key in words.
func (k Key) String() string {
	if k.Scope == NodeScope {
		return "this node"
	}
	name := strconv.Quote(k.Name) // it may be a peer's choice
	return k.Scope.String() + " " + name[1:len(name)-1]
}

// Limit is what an account may have at a time; 0: no limit.
type Limit struct {
	Sessions int64 `json:"sessions,omitempty"`
	Tunnels  int64 `json:"tunnels,omitempty"`
	Streams  int64 `json:"streams,omitempty"`
	Window   int64 `json:"window_bytes,omitempty"`
	Rate     int64 `json:"rate_bytes,omitempty"`  // a second
	Burst    int64 `json:"burst_bytes,omitempty"` // at once; 0: what Rate gives in a tenth of a second
}

func (l *Limit) of(w What) int64 {
	return [...]int64{l.Sessions, l.Tunnels, l.Streams, l.Window, l.Rate}[w]
}

// Config is all limits.
type Config struct {
	// Each is the limit of every account of a scope, unless it is in Named.
	Each  [Scopes]Limit
	Named map[Key]Limit
	// Idle is how many accounts of each scope are kept that nobody holds; 0: 1024.
	Idle int
	// Held is how many accounts of each scope there can be that somebody holds;
	// 0: 65536.
	Held int
}

func (c *Config) limit(k Key) Limit {
	if l, ok := c.Named[k]; ok {
		return l
	}
	return c.Each[k.Scope]
}

// Refusal says that something is beyond a limit.
type Refusal struct {
	Key   Key
	What  What
	Limit string        // in words, such as "1000 streams of pool build"
	Retry time.Duration // when to come back; 0: not at all, as long as the limit is what it is
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.Retry <= 0 {
		return "refused: " + r.Limit
	}
	return fmt.Sprintf("refused: %s; try again in %v", r.Limit, r.Retry)
}

// When to come back for something that others must give back first: as soon as
// enough of it will be, if they go on as they did lately.
const (
	countRetry = time.Second // where nobody has given anything back yet
	minRetry   = 10 * time.Millisecond
	maxRetry   = time.Minute
)

// account counts for a key.
type account struct {
	key     Key
	limit   atomic.Pointer[Limit]
	used    [counted]atomic.Int64
	back    [counted]flow
	refused [whats]atomic.Int64
	passed  atomic.Int64 // bytes
	full    atomic.Int64 // when the bucket is full again, since the controller's start

	// The controller's lock guards these.
	held int
	idle *list.Element
}

// Controller has all accounts of a node. It may be used from many goroutines.
type Controller struct {
	clock clock.Clock
	start time.Time

	mu       sync.Mutex
	config   Config
	accounts [Scopes]map[string]*account
	idle     [Scopes]*list.List // of those that nobody holds, the longest idle first
	past     [Scopes]Total      // of accounts that were forgotten
}

// New returns a controller. A nil clock is the machine's.
func New(c Config, clk clock.Clock) *Controller {
	if clk == nil {
		clk = clock.System()
	}
	x := &Controller{clock: clk, start: clk.Now()}
	for s := range Scopes {
		x.accounts[s], x.idle[s] = map[string]*account{}, list.New()
	}
	x.Configure(c)
	return x
}

// Configure makes the limits what c says, for what is held too.
func (c *Controller) Configure(conf Config) {
	conf.Named = maps.Clone(conf.Named)
	conf.Idle, conf.Held = cmp.Or(conf.Idle, 1024), cmp.Or(conf.Held, 65536)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.config = conf
	for s := range Scopes {
		for _, a := range c.accounts[s] {
			l := conf.limit(a.key)
			a.limit.Store(&l)
		}
		c.forget(s)
	}
}

// Limit returns an account's limit, whether it is there or not.
func (c *Controller) Limit(k Key) Limit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config.limit(k)
}

// forget forgets the accounts that were idle longest, if there are too many.
func (c *Controller) forget(s Scope) {
	for c.idle[s].Len() > c.config.Idle {
		a := c.idle[s].Remove(c.idle[s].Front()).(*account)
		delete(c.accounts[s], a.key.Name)
		c.past[s].add(a)
	}
}

// Group returns the accounts of keys, each of which counts once; those of a
// scope other than the node's without a name are left out. Close it.
func (c *Controller) Group(keys ...Key) (*Group, *Refusal) {
	g := &Group{c: c, accounts: make([]*account, 0, len(keys))}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		if k.Scope != NodeScope && k.Name == "" || slices.ContainsFunc(g.accounts, func(a *account) bool { return a.key == k }) {
			continue
		}
		a := c.accounts[k.Scope][k.Name]
		if a == nil || a.held == 0 {
			if held := len(c.accounts[k.Scope]) - c.idle[k.Scope].Len(); held >= c.config.Held {
				c.drop(g)
				return nil, &Refusal{Key: k, Limit: fmt.Sprintf("%d different ones, of each %s", held, k.Scope), Retry: countRetry}
			}
		}
		if a == nil {
			a = &account{key: k}
			l := c.config.limit(k)
			a.limit.Store(&l)
			c.accounts[k.Scope][k.Name] = a
		}
		if a.held++; a.idle != nil {
			c.idle[k.Scope].Remove(a.idle)
			a.idle = nil
		}
		g.accounts = append(g.accounts, a)
	}
	return g, nil
}

// drop gives a group's accounts back.
func (c *Controller) drop(g *Group) {
	for _, a := range g.accounts {
		if a.held--; a.held == 0 {
			a.idle = c.idle[a.key.Scope].PushBack(a)
			c.forget(a.key.Scope)
		}
	}
}

// Group is the accounts that something counts for. It may be used from many
// goroutines.
type Group struct {
	c        *Controller
	accounts []*account

	mu     sync.Mutex
	closed bool
	leases int
}

// Close says that nothing new will be acquired. Leases stay what they are, and
// keep the accounts.
func (g *Group) Close() {
	g.mu.Lock()
	drop := !g.closed && g.leases == 0
	g.closed = true
	g.mu.Unlock()
	if drop {
		g.drop()
	}
}

func (g *Group) drop() {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	g.c.drop(g)
}

// Lease is something that was acquired.
type Lease struct {
	g    *Group
	what What

	mu   sync.Mutex
	n    int64
	done bool
}

// Acquire takes n of something, or says whose limit is in the way. After Close
// it refuses.
func (g *Group) Acquire(w What, n int64) (*Lease, *Refusal) {
	if w >= counted || n < 0 {
		panic(fmt.Sprintf("admit: %d of %v can't be acquired", n, w))
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, &Refusal{What: w, Limit: "nothing more for what was closed"}
	}
	g.leases++
	g.mu.Unlock()
	if r := g.add(w, n); r != nil {
		g.returned()
		return nil, r
	}
	return &Lease{g: g, what: w, n: n}, nil
}

// returned takes note that a lease is gone.
func (g *Group) returned() {
	g.mu.Lock()
	g.leases--
	drop := g.closed && g.leases == 0
	g.mu.Unlock()
	if drop {
		g.drop()
	}
}

// add counts n more in all accounts, or in none.
func (g *Group) add(w What, n int64) *Refusal {
	for i, a := range g.accounts {
		if over := a.add(w, n, 1); over > 0 {
			g.undo(i, w, n)
			return g.c.refuse(a, w, n, over)
		}
	}
	return nil
}

// undo takes back what add counted in the first accounts.
func (g *Group) undo(first int, w What, n int64) {
	for _, a := range g.accounts[:first] {
		a.used[w].Add(-n)
	}
}

// refuse says that n of something is more than an account may have, by over.
func (c *Controller) refuse(a *account, w What, n, over int64) *Refusal {
	a.refused[w].Add(1)
	limit := a.limit.Load()
	r := &Refusal{Key: a.key, What: w, Limit: fmt.Sprintf("%d %s of %s", limit.of(w), w, a.key)}
	if n <= limit.of(w) {
		r.Retry = a.back[w].wait(over, c.now())
		if limit.Rate > 0 { // those who have places wait for the bucket
			r.Retry = max(r.Retry, a.owes(limit, c.now()))
		}
		r.Retry = min(max(r.Retry, minRetry), maxRetry)
	}
	return r
}

// add counts n more, as long as no more than a part of the limit is used then;
// over is by how much it would be.
func (a *account) add(w What, n int64, part float64) (over int64) {
	for {
		used, limit := a.used[w].Load(), a.limit.Load().of(w)
		if limit > 0 {
			if part < 1 {
				limit = int64(float64(limit) * part)
			}
			if over := n - (limit - used); over > 0 {
				return over
			}
		}
		if a.used[w].CompareAndSwap(used, used+n) {
			return 0
		}
	}
}

// flow is how fast something is given back.
type flow struct {
	mu   sync.Mutex
	last int64         // when, since the controller's start
	each time.Duration // between two that are given back, smoothed; 0: not known
	seen bool
}

// gave takes note of n that were given back.
func (f *flow) gave(n, now int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen {
		each := time.Duration((now - f.last) / n)
		if f.each == 0 {
			f.each = each
		}
		f.each += (each - f.each) / 8
		f.each = max(f.each, 1)
	}
	f.last, f.seen = now, true
}

// wait returns when n will have been given back.
func (f *flow) wait(n, now int64) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.each == 0 {
		return countRetry
	}
	// If it takes longer than it did, it takes longer.
	each := max(f.each, time.Duration((now-f.last)/n))
	if each > maxRetry/time.Duration(n) {
		return maxRetry
	}
	return each * time.Duration(n)
}

// Resize makes a lease one of n. More may be refused, and the lease stays as
// it was.
func (l *Lease) Resize(n int64) *Refusal {
	if n < 0 {
		panic(fmt.Sprintf("admit: a lease of %d", n))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return nil
	}
	if n > l.n {
		if r := l.g.add(l.what, n-l.n); r != nil {
			return r
		}
	} else {
		l.g.sub(l.what, l.n-n)
	}
	l.n = n
	return nil
}

// Grow makes a lease larger by n, as long as no more than a part of each account's
// limit is used then: who can do without leaves the rest to those who come. That
// there is no room is no refusal.
func (l *Lease) Grow(n int64, part float64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done || n < 0 {
		return false
	}
	for i, a := range l.g.accounts {
		if a.add(l.what, n, part) > 0 {
			l.g.undo(i, l.what, n)
			return false
		}
	}
	l.n += n
	return true
}

// Shrink undoes Grow.
func (l *Lease) Shrink(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.done && n >= 0 {
		n = min(n, l.n)
		l.g.undo(len(l.g.accounts), l.what, n)
		l.n -= n
	}
}

func (g *Group) sub(w What, n int64) {
	if n == 0 {
		return
	}
	now := int64(-1)
	for _, a := range g.accounts {
		a.used[w].Add(-n)
		if a.limit.Load().of(w) > 0 {
			if now < 0 {
				now = g.c.now()
			}
			a.back[w].gave(n, now)
		}
	}
}

// Release gives everything back. Only the first call counts.
func (l *Lease) Release() {
	l.mu.Lock()
	done := l.done
	if !done {
		l.done = true
		l.g.sub(l.what, l.n)
	}
	l.mu.Unlock()
	if !done {
		l.g.returned()
	}
}
