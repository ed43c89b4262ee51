package nvme

import (
	"testing"

	"go.uber.org/goleak"
)

// Every goroutine of a target ends with it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
