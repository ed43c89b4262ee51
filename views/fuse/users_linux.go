package fuse

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxUsers is how many processes an error names.
const maxUsers = 5

// users describes the processes that use files under a mount point, of those
// that this process may look into. It reads links in /proc alone and never
// asks the mount itself.
func users(target string) string {
	if found := processes(func(proc string) string { return use(proc, target) }); found != "" {
		return found
	}
	return "by a process that is out of sight here, or has ended just now"
}

// copies describes the other mount namespaces that have the mount with a device
// number, by a process of each, of those that this process may look into.
func copies(dev string) string {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	seen := map[string]bool{own: true}
	return processes(func(proc string) string {
		ns, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[ns] {
			return ""
		}
		all, err := mountPointsOf(proc)
		i := slices.IndexFunc(all, func(m mountPoint) bool { return m.dev == dev })
		if seen[ns] = err == nil; i < 0 {
			return ""
		}
		return "has it at " + all[i].path
	})
}

// processes lists those of which what says something, with that; "" if there are none.
func processes(what func(proc string) string) string {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	var found []string
	more := 0
	for _, proc := range procs {
		does := what(proc)
		if does == "" {
			continue
		}
		if len(found) == maxUsers {
			more++
			continue
		}
		comm, _ := os.ReadFile(proc + "/comm")
		found = append(found, fmt.Sprintf("process %s (%s) %s", filepath.Base(proc), bytes.TrimSpace(comm), does))
	}
	if more > 0 {
		found = append(found, fmt.Sprintf("%d more", more))
	}
	return strings.Join(found, "; ")
}

// use says how one process uses files under target; "" means not at all.
func use(proc, target string) string {
	under := func(link string) (string, bool) {
		p, err := os.Readlink(link)
		if err != nil || p != target && !strings.HasPrefix(p, target+"/") {
			return "", false
		}
		return p, true
	}
	if p, ok := under(proc + "/cwd"); ok {
		return "works in " + p
	}
	if p, ok := under(proc + "/root"); ok {
		return "has its root in " + p
	}
	for _, kind := range []struct{ dir, verb string }{{"/fd/", "has open "}, {"/map_files/", "maps "}} {
		links, _ := os.ReadDir(proc + kind.dir)
		for _, l := range links {
			if p, ok := under(proc + kind.dir + l.Name()); ok {
				return kind.verb + p
			}
		}
	}
	return ""
}
