package vfs_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spacestore/space/internal/vfs"
)

// Other users of the machine must not be able to read what the store creates,
// by whichever call and whatever the umask.
func TestOSModes(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	fs := vfs.OS()
	mk := map[string]func() (io.Closer, error){
		"created": func() (io.Closer, error) { return fs.Create(at("created"), "test") },
		"opened":  func() (io.Closer, error) { return fs.OpenReadWrite(at("opened"), "test") },
		"locked":  func() (io.Closer, error) { return fs.Lock(at("locked")) },
		"reused": func() (io.Closer, error) {
			f, err := fs.Create(at("old"), "test")
			if err != nil {
				return nil, err
			}
			f.Close()
			return fs.ReuseForWrite(at("old"), at("reused"), "test")
		},
	}
	for name, create := range mk {
		c, err := create()
		if err != nil {
			t.Fatal(name, err)
		}
		defer c.Close()
		fi, err := os.Stat(at(name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != 0o600 {
			t.Errorf("%s file has mode %o, want 600", name, got)
		}
	}
	if err := fs.MkdirAll(at("a/b"), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"a", "a/b"} {
		fi, err := os.Stat(at(d))
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode().Perm(); got != 0o700 {
			t.Errorf("directory %s has mode %o, want 700", d, got)
		}
	}
}

func TestOSCreateReplaces(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	fs := vfs.OS()
	for _, s := range []string{"a longer first content", "second"} {
		f, err := fs.Create(name, "test")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil || string(b) != "second" {
		t.Fatalf("content is %q, %v", b, err)
	}
}

// A second Lock in one process must fail and must not free the first.
func TestOSLockTwice(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	fs := vfs.OS()
	l, err := fs.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Lock(name); err == nil {
		t.Fatal("locked twice")
	}
	if locks, err := os.ReadFile("/proc/locks"); err == nil {
		if !strings.Contains(string(locks), "WRITE") {
			t.Error("the failed second Lock released the first")
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = fs.Lock(name)
	if err != nil {
		t.Fatal("lock again after release:", err)
	}
	l.Close()
}
