package nvme

import (
	"testing"

	"github.com/spacestore/space/internal/testenv/leak"
)

// Every goroutine of a target ends with it.
func TestMain(m *testing.M) { leak.Main(m) }
