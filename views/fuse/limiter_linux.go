package fuse

import (
	"sync"
	"time"
)

// A reader that retries must not flood the log: each message appears once in
// logEvery. At most logKeys messages are remembered.
const (
	logEvery = time.Minute
	logKeys  = 1024
)

// limiter says which messages are due for logging.
type limiter struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (l *limiter) allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if t, ok := l.last[key]; ok && now.Sub(t) < logEvery {
		return false
	}
	if l.last == nil || len(l.last) >= logKeys {
		l.last = map[string]time.Time{}
	}
	l.last[key] = now
	return true
}
