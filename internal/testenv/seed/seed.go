// Package seed is where tests get their random choices from. A test makes the
// same choices each time, so that a change that it refuses is one that breaks it;
// TEST_SEED=random makes it choose anew (make nightly), TEST_SEED=N repeats what
// such a run has logged.
package seed

import (
	"flag"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Of returns the seed of a test's choices, and logs it.
func Of(tb testing.TB) uint64 {
	tb.Helper()
	n, err := choose(os.Getenv("TEST_SEED"), tb.Name())
	if err != nil {
		tb.Fatalf("TEST_SEED: %v", err)
	}
	tb.Logf("choices follow from TEST_SEED=%d", n)
	return n
}

// Rand returns a source of a test's choices.
func Rand(tb testing.TB) *rand.Rand {
	tb.Helper()
	return rand.New(rand.NewPCG(Of(tb), 0))
}

// Rapid makes the property tests of a package begin with the same choices each
// time. Call it from an init function of the package's tests.
func Rapid() {
	if f := flag.Lookup("rapid.seed"); f != nil && os.Getenv("TEST_SEED") != "random" {
		if err := f.Value.Set("1"); err != nil {
			panic(err) // it is a number
		}
	}
}

func choose(env, name string) (uint64, error) {
	switch env {
	case "":
		h := fnv.New64a()
		h.Write([]byte(name))
		return h.Sum64(), nil
	case "random":
		return rand.Uint64(), nil
	}
	return strconv.ParseUint(env, 10, 64)
}
