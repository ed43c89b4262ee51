package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKillTree kills the node while files are written to a mounted tree. All
// that was synced has to be there afterwards, and the tree can be worked in.
func TestKillTree(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	b := newBox(t)
	b.vars = []string{"SPACE_MOUNT_WAIT=0"} // the mount ends with its node
	dir := t.TempDir()
	id := printedID(b.must("tree", "create", "work"))
	unmountAll(t, dir)
	synced := map[string][32]byte{}
	for round := range 3 {
		s := b.serve()
		b.must("project", "mount", id, "--target", dir)
		for name, want := range synced {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || sum(got) != want {
				t.Fatalf("round %d: %s: %d bytes, %v", round, name, len(got), err)
			}
		}
		sub := filepath.Join(dir, fmt.Sprint(round))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		killed := make(chan int)
		time.AfterFunc(time.Duration(300+200*round)*time.Millisecond, func() { killed <- s.stop(unix.SIGKILL) })
		for i := 0; ; i++ {
			data := random(uint64(1000*round+i), 1+i*997%200_000)
			name := fmt.Sprintf("%d/%d", round, i)
			if err := writeSynced(filepath.Join(dir, name), data); err != nil {
				break
			}
			synced[name] = sum(data)
		}
		<-killed
		b.must("project", "unmount", dir)
	}
	s := b.serve()
	b.must("project", "mount", id, "--target", dir)
	if err := os.RemoveAll(filepath.Join(dir, "0")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "0")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was removed is there: %v", err)
	}
	b.must("project", "unmount", dir)
	s.stop(unix.SIGTERM)
	t.Logf("%d files were synced", len(synced))
}

// writeSynced makes a file under another name, syncs and renames it, as editors do.
func writeSynced(file string, data []byte) error {
	f, err := os.Create(file + ".new")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
