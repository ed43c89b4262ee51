package main

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// pollIn waits until a descriptor is readable, as a pidfd is when its process
// has ended.
func pollIn(fd int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n > 0:
			return nil
		default:
			return errors.New("still there")
		}
	}
}
