package admit

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spacestore/space/internal/testenv/manualclock"
	"github.com/spacestore/space/internal/testenv/seed"
)

func init() { seed.Rapid() }

func group(t testing.TB, c *Controller, keys ...Key) *Group {
	t.Helper()
	g, refused := c.Group(keys...)
	if refused != nil {
		t.Fatal(refused)
	}
	return g
}

func usage(c *Controller, k Key) Usage {
	for _, u := range c.Usage(1 << 20) {
		if u.Scope == k.Scope && u.Name == k.Name {
			return u
		}
	}
	return Usage{}
}

var (
	build = Key{Pool, "build"}
	acme  = Key{Organization, "acme"}
)

func TestAllOrNone(t *testing.T) {
	c := New(Config{Each: [Scopes]Limit{NodeScope: {Streams: 10}, Organization: {Streams: 2}}, Named: map[Key]Limit{build: {Streams: 1}}}, manualclock.New())
	a, b := group(t, c, Node(), acme, build), group(t, c, Node(), acme, Key{Pool, "other"})
	first, refused := a.Acquire(Streams, 1)
	if refused != nil {
		t.Fatal(refused)
	}
	_, refused = a.Acquire(Streams, 1)
	if refused == nil || refused.Limit != "1 streams of pool build" || refused.Retry != time.Second || refused.Key != build || refused.What != Streams {
		t.Fatalf("%+v", refused)
	}
	if n := usage(c, Node()).Used.Streams; n != 1 {
		t.Errorf("what was refused counts: %d", n)
	}
	second, refused := b.Acquire(Streams, 1)
	if refused != nil {
		t.Fatal(refused)
	}
	if _, refused := b.Acquire(Streams, 1); refused == nil || refused.Limit != "2 streams of organization acme" {
		t.Errorf("%+v", refused)
	}
	if _, refused := b.Acquire(Streams, 3); refused == nil || refused.Retry != 0 {
		t.Errorf("what can never be had is promised for later: %+v", refused)
	}
	if _, refused := b.Acquire(Tunnels, 1<<40); refused != nil {
		t.Errorf("no limit is a limit: %v", refused)
	}
	for range 3 {
		first.Release()
	}
	second.Release()
	if n := usage(c, Node()).Used.Streams; n != 0 {
		t.Errorf("%d streams are left", n)
	}
	if n := usage(c, acme).Refused; n != 2 {
		t.Errorf("refused %d times", n)
	}
	if n := c.Totals()[Pool].Refused["streams"]; n != 1 {
		t.Errorf("pools have refused %d times", n)
	}
}

func TestLimitsChangeWhileInUse(t *testing.T) {
	c := New(Config{Each: [Scopes]Limit{Pool: {Streams: 3}}}, manualclock.New())
	g := group(t, c, build)
	var leases []*Lease
	acquire := func() bool {
		l, refused := g.Acquire(Streams, 1)
		if refused == nil {
			leases = append(leases, l)
		}
		return refused == nil
	}
	for range 3 {
		acquire()
	}
	c.Configure(Config{Each: [Scopes]Limit{Pool: {Streams: 2}}})
	leases[0].Release()
	if acquire() {
		t.Error("a third one came in under a limit of two")
	}
	leases[1].Release()
	if !acquire() || acquire() {
		t.Error("the new limit is not two")
	}
	c.Configure(Config{Named: map[Key]Limit{build: {Streams: 3}}})
	if !acquire() || acquire() {
		t.Error("the named limit is not three")
	}
}

func TestLeasesGrowAndShrink(t *testing.T) {
	c := New(Config{Each: [Scopes]Limit{NodeScope: {Window: 100}}}, manualclock.New())
	g := group(t, c, Node(), build)
	l, refused := g.Acquire(Window, 60)
	if refused != nil {
		t.Fatal(refused)
	}
	if refused := l.Resize(101); refused == nil || usage(c, build).Used.Window != 60 {
		t.Errorf("%+v", refused)
	}
	if refused := l.Resize(100); refused != nil {
		t.Error(refused)
	}
	if refused := l.Resize(10); refused != nil || usage(c, build).Used.Window != 10 {
		t.Error(refused)
	}
	g.Close()
	if u := usage(c, Node()); u.Used.Window != 10 {
		t.Error("closing the group has taken the lease")
	}
	if _, refused := g.Acquire(Window, 1); refused == nil || usage(c, Node()).Used.Window != 10 {
		t.Error("a group that was closed acquires")
	}
	l.Release()
	if refused := l.Resize(50); refused != nil || usage(c, Node()).Used.Window != 0 {
		t.Error("a lease that was given back counts")
	}
}

// TestForgetting: however many names there were, few are kept, and none that
// is in use; the totals stay.
func TestForgetting(t *testing.T) {
	c := New(Config{Each: [Scopes]Limit{Pool: {Streams: 1}}, Idle: 10, Held: 20}, manualclock.New())
	kept := group(t, c, build)
	held, refused := kept.Acquire(Streams, 1)
	if refused != nil {
		t.Fatal(refused)
	}
	kept.Close() // the lease holds it
	for i := range 1000 {
		g := group(t, c, Key{Pool, fmt.Sprint(i)})
		l, refused := g.Acquire(Streams, 1)
		if refused != nil {
			t.Fatal(refused)
		}
		if _, refused := g.Acquire(Streams, 1); refused == nil {
			t.Fatal("not refused")
		}
		if refused := g.Take(7); refused != nil {
			t.Fatal(refused)
		}
		l.Release()
		g.Close()
		g.Close()
	}
	total := c.Totals()[Pool]
	if total.Accounts != 11 || total.Passed != 7000 || total.Refused["streams"] != 1000 {
		t.Errorf("%+v", total)
	}
	if usage(c, build).Used.Streams != 1 {
		t.Error("what is in use was forgotten")
	}
	held.Release()
	if total := c.Totals()[Pool]; total.Accounts != 10 {
		t.Errorf("%+v", total)
	}
	var groups []*Group
	for i := range 20 {
		groups = append(groups, group(t, c, Node(), Key{Pool, fmt.Sprint("held", i)}))
	}
	if _, refused := c.Group(Node(), Key{Pool, "one more"}); refused == nil || refused.Limit != "20 different ones, of each pool" {
		t.Errorf("%+v", refused)
	}
	for _, g := range groups {
		g.Close()
	}
	if total := c.Totals()[Pool]; total.Accounts != 10 {
		t.Errorf("%+v", total)
	}
	if c.accounts[NodeScope][""].held != 0 {
		t.Error("a group that was refused holds the node's account")
	}
}

func TestNamesOfPeersArePrintable(t *testing.T) {
	if s := (Key{Pool, "a\x1b[2J\n"}).String(); s != `pool a\x1b[2J\n` {
		t.Errorf("%q", s)
	}
}

func TestRates(t *testing.T) {
	clk := manualclock.New()
	c := New(Config{Each: [Scopes]Limit{NodeScope: {Rate: 1000, Burst: 500}, Pool: {Rate: 100, Burst: 300}}}, clk)
	g := group(t, c, Node(), build)
	if refused := g.Take(300); refused != nil {
		t.Fatal(refused)
	}
	refused := g.Take(100)
	if refused == nil || refused.Limit != "100 bytes a second of pool build" || refused.Retry != time.Second {
		t.Fatalf("%+v", refused)
	}
	if n := usage(c, Node()).Used.Passed; n != 300 {
		t.Errorf("what was refused counts: %d", n)
	}
	if refused := group(t, c, Node()).Take(200); refused != nil {
		t.Errorf("what was refused is missing elsewhere: %v", refused)
	}
	clk.Advance(refused.Retry)
	if refused := g.Take(100); refused != nil {
		t.Error(refused)
	}
	// A message longer than the burst goes when the bucket is full, and is owed.
	clk.Advance(time.Hour)
	if refused := g.Take(400); refused != nil {
		t.Error(refused)
	}
	if refused := g.Take(1); refused == nil || refused.Retry != 1010*time.Millisecond {
		t.Errorf("%+v", refused)
	}
	clk.Advance(time.Hour)
	if wait := g.Pace(300); wait != 0 {
		t.Error(wait)
	}
	if wait := g.Pace(50); wait != 500*time.Millisecond {
		t.Error(wait)
	}
	clk.Advance(500 * time.Millisecond)
	if wait := g.Pace(50); wait != 500*time.Millisecond {
		t.Error(wait)
	}
}

// TestRateIsNeverExceeded takes at random and compares with what a bucket
// lets through in any stretch of time.
func TestRateIsNeverExceeded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clk := manualclock.New()
		rate, burst := rapid.Int64Range(1, 1<<40).Draw(t, "rate"), rapid.Int64Range(1, 1<<30).Draw(t, "burst")
		c := New(Config{Each: [Scopes]Limit{NodeScope: {Rate: 1 << 41, Burst: 1 << 31}, Pool: {Rate: rate, Burst: burst}}}, clk)
		g, _ := c.Group(Node(), build)
		// level is what a bucket that is counted in bytes holds.
		level, last := float64(burst), clk.Now()
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			n := rapid.Int64Range(0, burst).Draw(t, "n")
			clk.Advance(time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause")))
			level = min(float64(burst), level+clk.Now().Sub(last).Seconds()*float64(rate))
			last = clk.Now()
			refused := g.Take(n)
			if refused == nil {
				level -= float64(n)
				// A nanosecond's worth is lost to rounding.
				if slack := 1 + float64(rate)/1e9; level < -slack {
					t.Fatalf("%f bytes too many went through", -level)
				}
				continue
			}
			clk.Advance(refused.Retry)
			level = min(float64(burst), level+clk.Now().Sub(last).Seconds()*float64(rate))
			last = clk.Now()
			if refused := g.Take(n); refused != nil {
				t.Fatalf("refused again at the time that was named: %v", refused)
			}
			level -= float64(n)
		}
	})
}

// TestModel acquires, resizes and releases at random, and compares every
// account with a plain sum.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := []Key{Node(), build, {Pool, "b"}, acme, {Route, "r"}, {Service, "s"}}
		conf := Config{Named: map[Key]Limit{}, Idle: 2}
		for _, k := range keys {
			conf.Named[k] = Limit{Streams: rapid.Int64Range(0, 8).Draw(t, "limit")}
		}
		c := New(conf, manualclock.New())
		type held struct {
			l    *Lease
			keys []Key
			n    int64
		}
		var leases []held
		sum := func(k Key) (n int64) {
			for _, h := range leases {
				for _, x := range h.keys {
					if x == k {
						n += h.n
					}
				}
			}
			return n
		}
		fits := func(keys []Key, n int64) bool {
			for _, k := range keys {
				if l := conf.Named[k].Streams; l > 0 && n > 0 && sum(k)+n > l {
					return false
				}
			}
			return true
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch op := rapid.IntRange(0, 3).Draw(t, "op"); {
			case op == 0 || len(leases) == 0:
				mine := rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, len(keys), rapid.ID[Key]).Draw(t, "keys")
				n := rapid.Int64Range(1, 4).Draw(t, "n")
				g, refused := c.Group(mine...)
				if refused != nil {
					t.Fatal(refused)
				}
				want := fits(mine, n)
				l, refused := g.Acquire(Streams, n)
				if want != (refused == nil) {
					t.Fatalf("%d for %v: %v", n, mine, refused)
				}
				if refused == nil {
					leases = append(leases, held{l, mine, n})
				}
				g.Close()
			case op == 1:
				i := rapid.IntRange(0, len(leases)-1).Draw(t, "lease")
				n := rapid.Int64Range(0, 6).Draw(t, "n")
				want := fits(leases[i].keys, n-leases[i].n)
				refused := leases[i].l.Resize(n)
				if want != (refused == nil) {
					t.Fatalf("resize to %d: %v", n, refused)
				}
				if refused == nil {
					leases[i].n = n
				}
			case op == 2:
				i := rapid.IntRange(0, len(leases)-1).Draw(t, "lease")
				leases[i].l.Release()
				leases[i].l.Release()
				leases = append(leases[:i], leases[i+1:]...)
			default:
				for _, k := range keys {
					conf.Named[k] = Limit{Streams: max(conf.Named[k].Streams, rapid.Int64Range(0, 8).Draw(t, "limit"))}
				}
				c.Configure(conf)
			}
			for _, k := range keys {
				if got := usage(c, k).Used.Streams; got != sum(k) {
					t.Fatalf("%v has %d, its leases %d", k, got, sum(k))
				}
			}
		}
		for _, h := range leases {
			h.l.Release()
		}
		for _, u := range c.Usage(100) {
			if u.Used != (Numbers{}) {
				t.Fatalf("left over: %+v", u)
			}
		}
		for s := range Scopes {
			if n := c.Totals()[s].Accounts; n > conf.Idle {
				t.Fatalf("%d accounts of scope %v are kept", n, s)
			}
		}
	})
}

// TestManyAtOnce: no account is ever above its limit, and nothing is left.
func TestManyAtOnce(t *testing.T) {
	c := New(Config{Each: [Scopes]Limit{NodeScope: {Streams: 20}, Pool: {Streams: 8}, Route: {Streams: 5}}, Idle: 1}, manualclock.New())
	stop := make(chan struct{})
	var watcher, wg sync.WaitGroup
	watcher.Go(func() {
		for {
			for _, u := range c.Usage(100) {
				if u.Limit.Streams > 0 && u.Used.Streams > u.Limit.Streams {
					t.Errorf("%+v", u)
					return
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for i := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for range 500 {
				g, refused := c.Group(Node(), Key{Pool, fmt.Sprint(rng.IntN(3))}, Key{Route, fmt.Sprint(rng.IntN(5))})
				if refused != nil {
					t.Error(refused)
					return
				}
				var leases []*Lease
				for range rng.IntN(6) {
					if l, refused := g.Acquire(Streams, 1+rng.Int64N(2)); refused == nil {
						leases = append(leases, l)
						l.Resize(rng.Int64N(4))
					}
				}
				if rng.IntN(2) == 0 {
					g.Close()
				}
				for _, l := range leases {
					l.Release()
				}
				g.Close()
			}
		})
	}
	wg.Wait()
	close(stop)
	watcher.Wait()
	for _, u := range c.Usage(100) {
		if u.Used != (Numbers{}) {
			t.Errorf("left over: %+v", u)
		}
	}
	for s := range Scopes {
		for _, a := range c.accounts[s] {
			if a.held != 0 {
				t.Errorf("%v is held %d times by nobody", a.key, a.held)
			}
		}
	}
}

func BenchmarkAcquire(b *testing.B) {
	c := New(Config{Each: [Scopes]Limit{{Streams: 1 << 40}, {Streams: 1 << 40}, {Streams: 1 << 40}, {Streams: 1 << 40}, {Streams: 1 << 40}}}, nil)
	g := group(b, c, Node(), Key{Route, "r"}, build, acme, Key{Service, "s"})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l, _ := g.Acquire(Streams, 1)
			l.Release()
		}
	})
}

func BenchmarkTake(b *testing.B) {
	limit := Limit{Rate: 1 << 50}
	c := New(Config{Each: [Scopes]Limit{limit, limit, limit, limit, limit}}, nil)
	g := group(b, c, Node(), Key{Route, "r"}, build, acme, Key{Service, "s"})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			g.Take(1400)
		}
	})
}

func BenchmarkTakeUnlimited(b *testing.B) {
	c := New(Config{}, nil)
	g := group(b, c, Node(), Key{Route, "r"}, build, acme, Key{Service, "s"})
	b.ReportAllocs()
	for b.Loop() {
		g.Take(1400)
	}
}

// TestRetryFollowsWhatIsGivenBack has places come free every three seconds: who is
// refused is told to come back then, not earlier, and not at a fixed time.
func TestRetryFollowsWhatIsGivenBack(t *testing.T) {
	clk := manualclock.New()
	pool := Key{Pool, "build"}
	c := New(Config{Named: map[Key]Limit{pool: {Streams: 2, Rate: 1000, Burst: 1000}}}, clk)
	g, refused := c.Group(pool)
	if refused != nil {
		t.Fatal(refused)
	}
	defer g.Close()
	take := func(n int64) *Lease {
		t.Helper()
		l, refused := g.Acquire(Streams, n)
		if refused != nil {
			t.Fatal(refused)
		}
		return l
	}
	retry := func(n int64) time.Duration {
		t.Helper()
		l, refused := g.Acquire(Streams, n)
		if refused == nil {
			l.Release()
			t.Fatal("not refused")
		}
		return refused.Retry
	}
	a, b := take(1), take(1)
	if got := retry(1); got != time.Second {
		t.Errorf("before anything was given back: %v", got)
	}
	for range 20 {
		clk.Advance(3 * time.Second)
		a.Release()
		a = take(1)
	}
	if got := retry(1); got != 3*time.Second {
		t.Errorf("one place: %v", got)
	}
	if got := retry(2); got != 6*time.Second {
		t.Errorf("two places: %v", got)
	}
	if got := retry(3); got != 0 {
		t.Errorf("more than there are: %v", got)
	}
	clk.Advance(10 * time.Second)
	if got := retry(1); got != 10*time.Second {
		t.Errorf("when it takes longer than it did: %v", got)
	}
	clk.Advance(time.Hour)
	if got := retry(1); got != time.Minute {
		t.Errorf("after an hour: %v", got)
	}
	a.Release()
	a = take(1)
	for range 200 {
		clk.Advance(time.Microsecond)
		a.Release()
		a = take(1)
	}
	if got := retry(1); got != 10*time.Millisecond {
		t.Errorf("places that are free at once: %v", got)
	}
	g.Pace(21_000) // the bucket owes 20 s
	if got := retry(1); got != 20*time.Second {
		t.Errorf("with an empty bucket: %v", got)
	}
	a.Release()
	b.Release()
}

// TestGrow has leases grow up to a part of the limit, whoever else has some.
func TestGrow(t *testing.T) {
	c := New(Config{Each: [Scopes]Limit{Pool: {Window: 100}, Organization: {Window: 1000}}}, manualclock.New())
	g, refused := c.Group(Key{Pool, "p"}, Key{Organization, "o"})
	if refused != nil {
		t.Fatal(refused)
	}
	defer g.Close()
	l, refused := g.Acquire(Window, 60)
	if refused != nil {
		t.Fatal(refused)
	}
	if !l.Grow(15, 0.75) || l.Grow(1, 0.75) {
		t.Error("not 75 of 100")
	}
	used := func(want int64) {
		t.Helper()
		for _, u := range c.Usage(10) {
			if u.Scope == Pool || u.Scope == Organization {
				if u.Used.Window != want || u.Refused != 0 {
					t.Errorf("%s has %d, and %d refusals; want %d", u.Scope, u.Used.Window, u.Refused, want)
				}
			}
		}
	}
	used(75)
	if other, refused := g.Acquire(Window, 25); refused != nil {
		t.Errorf("the rest is for those who come: %v", refused)
	} else {
		other.Release()
	}
	l.Shrink(15)
	used(60)
	l.Release()
	used(0)
	if l.Grow(1, 1) {
		t.Error("it grows after its end")
	}
	l.Shrink(1)
	used(0)
}
