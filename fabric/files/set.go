package files

import (
	"iter"
	"math/bits"
)

// set is some of a manifest's entries, a bit for each that there is.
type set struct {
	words []uint64
	n     int // how many are in it
}

func newSet(entries int) set { return set{words: make([]uint64, (entries+63)/64)} }

func (s *set) has(i int) bool { return s.words[i/64]&(1<<(i%64)) != 0 }

// put has entry i be in the set, or not.
func (s *set) put(i int, in bool) {
	if s.has(i) == in {
		return
	}
	s.words[i/64] ^= 1 << (i % 64)
	if in {
		s.n++
	} else {
		s.n--
	}
}

// all returns those that are in the set, in order.
func (s *set) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for k, w := range s.words {
			for ; w != 0; w &= w - 1 {
				if !yield(64*k + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}
