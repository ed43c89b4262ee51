//go:build race

package main

import "os"

func init() {
	buildFlags = append(buildFlags, "-race")
	// A race-built program sleeps a second at its end unless told not to, and
	// these tests run thousands of them.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
}
