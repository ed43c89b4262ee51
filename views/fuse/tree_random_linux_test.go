package fuse

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/testenv/seed"
)

var randomOps = flag.Int("random-ops", 2000, "operations of each sequence of TestTreeAgainstHost")

// TestTreeAgainstHost does random operations, by several users and in several
// sequences at once, in a mount and in a directory of the host: each has to give
// the same result or errno.
func TestTreeAgainstHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing users takes root")
	}
	beside := filepath.Join(t.TempDir(), "beside")
	run(t, ".", "go", "build", "-o", beside, "github.com/spacestore/space/scripts/beside")
	s, id := newTreeStore(t, tree.Quota{})
	_, dir := mountAt(t, s, Options{Capsule: id, AllowOther: true, Target: openTempDir(t)})
	cmd := exec.Command(beside, "-dir", filepath.Join(dir, "r"), "-host", filepath.Join(openTempDir(t), "r"), "-threads", "3",
		"-seed", fmt.Sprint(seed.Of(t)), "-ops", fmt.Sprint(*randomOps))
	out, err := cmd.CombinedOutput()
	if t.Logf("%s", out); err != nil {
		t.Fatal(err)
	}
}

// openTempDir returns a directory that all users can reach.
func openTempDir(t testing.TB) string {
	dir := t.TempDir()
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		os.Chmod(p, 0o755)
	}
	return dir
}
