package fuse

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxUsers is how many processes an error names.
	maxUsers = 5
	// lookTime bounds the search for a mount's users.
	lookTime = 10 * time.Second
)

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
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	procs, _ := filepath.Glob("/proc/[0-9]*")
	return theSearch.run(ctx, procs, what)
}

// search looks through processes one after the other. To read of a process may
// have to wait for it: of what it maps, for as long as it waits itself for a
// page of a mount whose server does not answer. Nobody waits for a search that
// is stuck so, and no other one begins.
type search struct {
	busy chan struct{} // of capacity 1: holds a token while one is under way

	mu sync.Mutex
	at string // the process that it looks at
}

var theSearch = search{busy: make(chan struct{}, 1)}

// run returns what there is to say of procs, or by the end of ctx was.
func (s *search) run(ctx context.Context, procs []string, what func(proc string) string) string {
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return s.stuck()
	}
	said := make(chan string, len(procs)) // so that nobody has to take it
	go func() {
		defer func() { <-s.busy }()
		for _, proc := range procs {
			if ctx.Err() != nil {
				return
			}
			s.mu.Lock()
			s.at = proc
			s.mu.Unlock()
			if does := what(proc); does != "" {
				said <- describe(proc) + " " + does
			}
		}
		close(said)
	}()
	var found []string
	for {
		select {
		case one, more := <-said:
			if !more {
				return list(found)
			}
			found = append(found, one)
		case <-ctx.Done():
			return list(append(found, s.stuck()))
		}
	}
}

func list(found []string) string {
	if more := len(found) - maxUsers; more > 0 {
		found = append(found[:maxUsers], fmt.Sprintf("%d more", more))
	}
	return strings.Join(found, "; ")
}

// stuck says where the search got no further.
func (s *search) stuck() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("perhaps %s, which could not be looked at in time", describe(s.at))
}

func describe(proc string) string {
	comm, _ := os.ReadFile(proc + "/comm")
	return fmt.Sprintf("process %s (%s)", filepath.Base(proc), bytes.TrimSpace(comm))
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
