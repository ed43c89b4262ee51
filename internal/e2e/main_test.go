package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unmountAll clears away what a failed test left mounted.
func unmountAll(t testing.TB, dirs ...string) {
	t.Cleanup(func() {
		for _, d := range dirs {
			_ = unix.Unmount(d, unix.MNT_DETACH) // most often there is nothing left to do
		}
	})
}

// TestMainJob types what the README promises, one line after another in one
// shell, where nothing was set up.
func TestMainJob(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	dir := t.TempDir()
	d := filepath.Join(dir, "d")
	unmountAll(t, d)
	secret := []byte("a line that must not be seen on the disk\n")
	write(t, filepath.Join(dir, "big.tar"), append(random(1, 9<<20+123), secret...))
	out := b.sh(dir, `
		spacectl put ./big.tar --name a-telling-name > printed
		ID=$(head -n 1 printed)
		mkdir d
		spacectl project mount --id $ID --target d
		cmp big.tar d/content && spacectl project unmount d
		spacectl project list
		spacectl verify
		rmdir d`)
	filepath.WalkDir(b.home, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, clear := range []string{"must not be seen", "a-telling-name"} {
			if bytes.Contains(raw, []byte(clear)) {
				t.Errorf("%q lies in the clear in %s", clear, path)
			}
		}
		return err
	})
	printed, _ := os.ReadFile(filepath.Join(dir, "printed"))
	if printedID(string(printed)) == "" {
		t.Errorf("put printed %q, not an ID on a line of its own", printed)
	}
	if !strings.Contains(out, "no damage") {
		t.Errorf("verify said: %s", out)
	}
}

// TestNamespaceIsAPlaceToWork copies, compares and compiles a Go module out of
// a mounted namespace.
func TestNamespaceIsAPlaceToWork(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	b := newBox(t)
	dir := t.TempDir()
	ns := filepath.Join(dir, "ns")
	unmountAll(t, ns)
	src := filepath.Join(dir, "hello")
	write(t, filepath.Join(src, "go.mod"), []byte("module example.com/hello\n\ngo 1.26\n"))
	write(t, filepath.Join(src, "main.go"), []byte(`package main

import (
	"fmt"

	"example.com/hello/greet"
)

func main() { fmt.Println(greet.Text()) }
`))
	write(t, filepath.Join(src, "greet", "greet.go"), []byte(`package greet

import _ "embed"

//go:embed text.txt
var text string

func Text() string { return text }
`))
	write(t, filepath.Join(src, "greet", "text.txt"), []byte("hello from a capsule"))
	write(t, filepath.Join(src, "empty"), nil)
	write(t, filepath.Join(src, "deep", "er", "random"), random(2, 3<<20))
	out := b.sh(dir, `
		spacectl put -r hello > /dev/null
		mkdir ns
		spacectl project mount --all --target ns
		diff -r hello ns/hello
		cp -r ns/hello copy
		diff -r hello copy
		(cd ns/hello && GOFLAGS=-buildvcs=false GOWORK=off GOTOOLCHAIN=local go vet ./... && go build -o ../../hello.bin .)
		./hello.bin
		spacectl project unmount ns`)
	if !strings.Contains(out, "hello from a capsule") {
		t.Errorf("the program built in the mount printed %q", out)
	}
}

// TestFallbackWithoutFUSE hides /dev/fuse, as in a container: the content is
// written to the target, and the user is told.
func TestFallbackWithoutFUSE(t *testing.T) {
	t.Parallel()
	needMount(t)
	b := newBox(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), random(3, 1<<20))
	// A mount namespace of its own, in which /dev is empty but for null.
	b.sh(dir, `
		spacectl put f --name f > printed
		mkdir d
		unshare -m bash -euc '
			touch "$PWD/null"
			mount --bind /dev/null "$PWD/null"
			mount -t tmpfs none /dev
			touch /dev/null && mount --bind "$PWD/null" /dev/null
			spacectl project mount f --target d 2> said
			cmp f d/content
			spacectl project unmount d
		'
		grep -i fuse said`)
}

// TestPersistsAcrossNodes stores through a node, by hand and by another node.
func TestPersistsAcrossNodes(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	data := random(4, 2<<20)
	s := b.serve()
	id := b.put("a", data)
	if code := s.stop(unix.SIGTERM); code != 0 {
		t.Errorf("serve ended with %d after SIGTERM:\n%s", code, s.errs)
	}
	if got := b.must("get", id); got != string(data) {
		t.Error("a command got other data than was stored through a node")
	}
	b.must("key", "rotate")
	s = b.serve()
	if got := b.must("get", "a"); got != string(data) {
		t.Error("a node gave other data after a key rotation")
	}
	// Two processes never write one store: the second node is refused.
	if r := b.run(nil, "serve"); r.code == 0 {
		t.Errorf("a second node ran beside the first: %v", r)
	}
	b.must("verify")
	s.stop(unix.SIGTERM)
}
