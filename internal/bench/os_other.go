//go:build !linux

package bench

import (
	"os"
	"time"
)

const canDropCache = false

func dropCache(*os.File) error { return nil }

func cpuTime() time.Duration { return 0 }

func forgetPeakRSS() {}

func peakRSS() int64 { return 0 }
