//go:build !linux

package bench

import "os"

const canDropCache = false

func dropCache(*os.File) error { return nil }

func forgetPeakRSS() {}

func peakRSS() int64 { return 0 }
