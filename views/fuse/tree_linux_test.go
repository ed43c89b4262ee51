package fuse

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/capsule/tree"
)

// newTreeStore returns a store and a tree in it.
func newTreeStore(t testing.TB, quota tree.Quota) (realStore, capsule.ID) {
	t.Helper()
	needFUSE(t)
	st, err := store.Open(context.Background(), store.Options{
		Dir: t.TempDir(), Logger: new(logBuffer).logger(), Keys: keyring.Source{MasterKey: strings.Repeat("0123456789abcdef", 4)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	s := newRealStore(st)
	info, err := s.trees.Create(context.Background(), "tree", nil, tree.New{Mode: 0o755}, quota)
	if err != nil {
		t.Fatal(err)
	}
	return s, info.ID
}

// mountTree mounts a new tree.
func mountTree(t testing.TB) string {
	t.Helper()
	s, id := newTreeStore(t, tree.Quota{})
	_, dir := mountAt(t, s, Options{Capsule: id, AllowOther: true})
	return dir
}

// run runs a command in a directory and returns what it printed.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// need skips a test without a program.
func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(err)
	}
}

func TestTreeCopy(t *testing.T) {
	dir := mountTree(t)
	src := os.Getenv("SRC")
	if src == "" {
		src = "/usr/include"
	}
	run(t, dir, "cp", "-a", src+"/.", "x")
	run(t, dir, "diff", "-r", src, "x")
	run(t, dir, "rm", "-r", "x")
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("left are %v", left)
	}

}
