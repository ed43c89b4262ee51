//go:build !linux

package vpn

import (
	"errors"
	"fmt"
)

// OpenTUN makes a TUN device; only Linux's are known.
func OpenTUN(name string) (Device, error) {
	return nil, fmt.Errorf("vpn: no TUN devices on this system yet: %w", errors.ErrUnsupported)
}
