// Package leak has a package's tests fail where goroutines are left after them.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is for goroutines that end by themselves: a connection says goodbye first,
// and a slow machine takes its time. goleak alone waits for half a second.
const patience = 2 * time.Minute

// Main is for a package's TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := await(patience); err != nil {
			fmt.Fprintf(os.Stderr, "goroutines are left after the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// await waits until no goroutines are left but the caller's.
func await(long time.Duration) (err error) {
	for end := time.Now().Add(long); ; {
		if err = goleak.Find(); err == nil || time.Now().After(end) {
			return err
		}
	}
}
