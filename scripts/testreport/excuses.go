package main

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

// excuse is a reason for which a test may be skipped.
type excuse struct {
	says string // part of what the test says
	why  string // printed beside it
	ok   bool   // the machine bears it out
}

// excuses looks at the machine. A test that says it lacks something which is
// there is not excused.
func excuses() []excuse {
	root := os.Geteuid() == 0
	admin := root && hasSysAdmin()
	return []excuse{
		{"no FUSE", "/dev/fuse is not here or may not be used", !usable("/dev/fuse") || root && !admin},
		{"takes root", "this run is not root's, or is root's in a container that may not mount", !admin},
		{"without root", "covered by the run as it is: this user is not root", !root},
		{"no test machine", "it is made of Debian's packages for amd64", runtime.GOARCH != "amd64" || !exists("/usr/bin/dpkg")},
		{"no loop device", "/dev/loop-control is not here", !exists("/dev/loop-control")},
	}
}

// excused returns why a skip is fine, or "".
func excused(excuses []excuse, s skip) string {
	for _, e := range excuses {
		if e.ok && strings.Contains(s.why, e.says) {
			return e.why
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func usable(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// hasSysAdmin reports whether this process may mount.
func hasSysAdmin() bool {
	const capSysAdmin = 21
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if mask, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return err == nil && caps&(1<<capSysAdmin) != 0
		}
	}
	return false
}
