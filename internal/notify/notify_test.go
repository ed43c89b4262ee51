package notify_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/spacestore/space/internal/notify"
)

// Items come in order; a watcher that falls behind gets one overflow for what
// it missed, and then what came after it.
func TestQueue(t *testing.T) {
	q := notify.New(3, -1)
	var ran sync.WaitGroup
	ran.Go(q.Run)
	q.Notify(1) // nobody watches
	got := make(chan int)
	cancel := q.Watch(func(n int) { got <- n })
	q.Notify(2)
	q.Notify(3, 4)
	var list []int
	next := func(n int) {
		for range n {
			list = append(list, <-got)
		}
	}
	next(3)
	q.Notify(5)
	next(1)
	q.Notify(6, 7, 8, 9)
	q.Notify(10)
	next(1)
	q.Notify(11)
	for list[len(list)-1] != 11 { // 10 too, if the overflow had been taken by then
		next(1)
	}
	list = slices.DeleteFunc(list, func(n int) bool { return n == 10 })
	if want := []int{2, 3, 4, 5, -1, 11}; !slices.Equal(list, want) {
		t.Errorf("got %v, want %v", list, want)
	}
	cancel()
	q.Notify(12)
	q.Stop()
	ran.Wait()
}
