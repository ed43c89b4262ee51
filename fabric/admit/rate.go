package admit

import (
	"fmt"
	"math"
	"math/bits"
	"time"
)

// An account's bucket is one number: when it will be full again (the generic
// cell rate algorithm, as ITU-T I.371 has it). A message moves that on by the
// time that the rate needs for it.

// bucket returns the time that n bytes take at the limit's rate, and the time
// that fills the bucket.
func (l *Limit) bucket(n int64) (cost, burst int64) {
	b := l.Burst
	if b <= 0 {
		b = max(l.Rate/10, 1)
	}
	return timeOf(n, l.Rate), timeOf(b, l.Rate)
}

// timeOf returns how long n bytes take, in nanoseconds, rounded up.
func timeOf(n, rate int64) int64 {
	if n < 0 {
		panic(fmt.Sprintf("admit: %d bytes", n))
	}
	hi, lo := bits.Mul64(uint64(n), uint64(time.Second))
	lo, carry := bits.Add64(lo, uint64(rate-1), 0)
	hi += carry
	if hi >= uint64(rate) {
		return math.MaxInt64 / 4
	}
	q, _ := bits.Div64(hi, lo, uint64(rate))
	return int64(min(q, math.MaxInt64/4))
}

// now returns the time since the controller's start.
func (c *Controller) now() int64 { return int64(c.clock.Now().Sub(c.start)) }

// Take lets n bytes through all accounts, or none.
func (g *Group) Take(n int64) *Refusal {
	now := int64(-1)
	costs := make([]int64, 0, 2*Scopes) // on the stack
	for _, a := range g.accounts {
		l := a.limit.Load()
		cost := int64(0)
		if l.Rate > 0 {
			if now < 0 {
				now = g.c.now()
			}
			var wait int64
			if cost, wait = a.take(l, n, now); wait > 0 {
				a.refused[Rate].Add(1)
				for i, c := range costs {
					g.accounts[i].full.Add(-c)
					g.accounts[i].passed.Add(-n)
				}
				return &Refusal{Key: a.key, What: Rate, Limit: fmt.Sprintf("%d %s of %s", l.Rate, Rate, a.key), Retry: time.Duration(wait)}
			}
		}
		a.passed.Add(n)
		costs = append(costs, cost)
	}
	return nil
}

// take moves the bucket on by cost, or returns when it could be.
func (a *account) take(l *Limit, n, now int64) (cost, wait int64) {
	cost, burst := l.bucket(n)
	for {
		full := a.full.Load()
		from := max(full, now)
		if wait := from - now + min(cost, burst) - burst; wait > 0 {
			return cost, wait
		}
		if a.full.CompareAndSwap(full, from+cost) {
			return cost, 0
		}
	}
}

// owes returns how long the bucket takes until a message of its burst passes.
func (a *account) owes(l *Limit, now int64) time.Duration {
	_, burst := l.bucket(0)
	return time.Duration(max(a.full.Load()-now-burst, 0))
}

// Pace lets n bytes through all accounts and returns how long to wait before
// the next ones: 0 as long as the bursts last. The caller waits, so that no
// account owes more than what those who wait have sent.
func (g *Group) Pace(n int64) (wait time.Duration) {
	now := int64(-1)
	for _, a := range g.accounts {
		a.passed.Add(n)
		l := a.limit.Load()
		if l.Rate <= 0 {
			continue
		}
		if now < 0 {
			now = g.c.now()
		}
		cost, burst := l.bucket(n)
		for {
			full := a.full.Load()
			next := max(full, now) + cost
			if next < 0 { // it owes more than time can tell
				next = math.MaxInt64
			}
			if a.full.CompareAndSwap(full, next) {
				wait = max(wait, time.Duration(next-now-burst))
				break
			}
		}
	}
	return wait
}
