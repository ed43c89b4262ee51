package files

import (
	"sync"
	"time"
)

// pace holds writers back to a rate that they share.
type pace struct {
	mu   sync.Mutex
	rate int64     // bytes a second; 0: any
	free time.Time // when the next bytes may go
}

const (
	paceTurn = 50 * time.Millisecond // that one write may take at most
	minTurn  = 1 << 10               // bytes
	maxTurn  = 1 << 20
)

func (p *pace) set(rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.free = rate, time.Time{}
}

// turn waits until something may be written and returns how much at once.
func (p *pace) turn() int {
	for {
		p.mu.Lock()
		rate, wait := p.rate, time.Until(p.free)
		p.mu.Unlock()
		switch {
		case rate == 0:
			return maxTurn
		case wait <= 0:
			return int(min(max(rate*int64(paceTurn)/int64(time.Second), minTurn), maxTurn))
		}
		time.Sleep(min(wait, paceTurn)) // no longer, for the rate may change
	}
}

// spent takes note of bytes that were written.
func (p *pace) spent(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		return
	}
	if now := time.Now(); p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
}
