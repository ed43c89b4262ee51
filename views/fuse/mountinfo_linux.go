package fuse

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// mountPoint is one line of /proc/self/mountinfo.
type mountPoint struct {
	dev    string // major:minor
	path   string
	fsType string
	source string
}

// mountPoints returns this process's mounts, in the order they were made.
func mountPoints() ([]mountPoint, error) { return mountPointsOf("/proc/self") }

func mountPointsOf(proc string) ([]mountPoint, error) {
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

// parseMountinfo reads the format of proc_pid_mountinfo(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMountinfo(r io.Reader) ([]mountPoint, error) {
	var all []mountPoint
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		sep := -1
		for i := 6; i < len(f); i++ { // optional fields end at a "-"
			if f[i] == "-" {
				sep = i
				break
			}
		}
		if sep < 0 || len(f) < sep+3 {
			return nil, fmt.Errorf("mountinfo line %.200q is malformed", sc.Text())
		}
		all = append(all, mountPoint{dev: f[2], path: unescape(f[4]), fsType: f[sep+1], source: unescape(f[sep+2])})
	}
	return all, sc.Err()
}

// unescape undoes the kernel's \ooo for white space and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountedAt returns the mount that a lookup of path reaches, the last one made.
func mountedAt(path string) (top mountPoint, ok bool, err error) {
	all, err := mountPoints()
	for _, m := range all {
		if m.path == path {
			top, ok = m, true
		}
	}
	return top, ok, err
}
