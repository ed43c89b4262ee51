package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// hostTree is a directory with what a tree has to keep.
func hostTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, do := range []error{
		os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755),
		os.WriteFile(filepath.Join(dir, "a", "file"), []byte("content\n"), 0o640),
		os.WriteFile(filepath.Join(dir, "a", "b", "empty"), nil, 0o600),
		os.Link(filepath.Join(dir, "a", "file"), filepath.Join(dir, "hard")),
		os.Symlink("a/file", filepath.Join(dir, "soft")),
		os.WriteFile(filepath.Join(dir, "large"), []byte(strings.Repeat("0123456789abcdef", 20_000)), 0o644),
		os.Chmod(filepath.Join(dir, "a"), 0o1777),
	} {
		if do != nil {
			t.Fatal(do)
		}
	}
	return dir
}

// listing is what tar sees of a directory: names, kinds, modes, sizes, links.
func listing(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("tar", "-C", dir, "--sort=name", "--numeric-owner", "--mtime=@0", "-cf", "-", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestTreeImportAndExport(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cli) {
		src := hostTree(t)
		c.ok("tree", "create", "work", "--quota-inodes", "100")
		c.ok("tree", "import", "work", src)
		out := filepath.Join(t.TempDir(), "out")
		c.ok("tree", "export", "work", out)
		if listing(t, src) != listing(t, out) {
			t.Error("the export is not what was imported")
		}
		// By way of tars too, into another tree.
		c.ok("tree", "create", "copy")
		if r := c.runIn(c.ok("tree", "export", "work", "-"), "tree", "import", "copy", "-"); r.code != 0 {
			t.Fatal(r.stderr)
		}
		again := filepath.Join(t.TempDir(), "again")
		c.ok("tree", "export", "copy", again)
		if listing(t, src) != listing(t, again) {
			t.Error("the export of a tar is not what was imported")
		}

		if got := c.ok("tree", "ls", "work"); !strings.Contains(got, "soft -> a/file") || strings.Count(got, "\n") != 4 {
			t.Errorf("tree ls:\n%s", got)
		}
		var list struct{ Entries []struct{ Name string } }
		if err := json.Unmarshal([]byte(c.ok("-o", "json", "tree", "ls", "work", "a")), &list); err != nil || len(list.Entries) != 2 {
			t.Errorf("tree ls a: %+v, %v", list, err)
		}
		c.fails(3, "no", "tree", "ls", "work", "a/none")
		c.ok("snapshot", "create", "work", "before")
		c.ok("tree", "import", "work", filepath.Join(src, "a"))
		if got := c.ok("tree", "ls", "work", "--snapshot", "before"); strings.Contains(got, " b\n") {
			t.Errorf("the snapshot shows what came after it:\n%s", got)
		}
		if got := c.ok("fsck"); !strings.Contains(got, "2 trees checked; 0 problems left") {
			t.Errorf("fsck: %s", got)
		}
		c.ok("fsck", "work", "--repair")
		if got := c.ok("snapshot", "list", "work"); strings.Contains(got, "fsck-") || strings.Contains(got, "export-") {
			t.Errorf("snapshots of export and fsck stay:\n%s", got)
		}
		c.fails(2, "no tree", "tree", "import", c.volume(t), src)
		c.ok("tree", "rm", "copy")
		if got := c.ok("tree", "list"); !strings.Contains(got, "work") || strings.Contains(got, "copy") {
			t.Errorf("tree list:\n%s", got)
		}
		c.fails(3, "no such file", "tree", "import", "work", src+"x")
		c.ok("verify")
	})
}

func TestTreeQuota(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cli) {
		c.ok("tree", "create", "work", "--quota-bytes", "1MiB")
		src := t.TempDir()
		write(t, filepath.Join(src, "f"), content(1000))
		c.ok("tree", "import", "work", src)
		c.ok("tree", "quota", "work", "--inodes", "3")
		if got, want := c.ok("tree", "quota", "work"), "Bytes   1.00 kB of 1.05 MB\nInodes  2 of 3\n"; got != want {
			t.Errorf("the quota is\n%s, want\n%s", got, want)
		}
		write(t, filepath.Join(src, "g"), content(2<<20))
		if r := c.run("tree", "import", "work", src); r.code != 7 {
			t.Errorf("beyond the quota: %+v", r)
		}
		c.ok("tree", "quota", "work", "--bytes", "0")
		c.ok("tree", "import", "work", src)
		if got, want := c.ok("tree", "quota", "work", "-o", "json"), `"quota_bytes": 0`; !strings.Contains(got, want) {
			t.Errorf("the quota is %s", got)
		}
		for _, bad := range [][]string{{"--bytes", "-1"}, {"--bytes", "x"}, {"--inodes", "-1"}} {
			if r := c.run(append([]string{"tree", "quota", "work"}, bad...)...); r.code != 2 {
				t.Errorf("%q: %+v", bad, r)
			}
		}
		if r := c.run("tree", "quota", "nothing"); r.code != 3 {
			t.Errorf("of no tree: %+v", r)
		}
	})
}

func TestTreeDiff(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cli) {
		src := hostTree(t)
		c.ok("tree", "create", "work")
		c.ok("tree", "import", "work", src)
		c.ok("snapshot", "create", "work", "a")
		if got := c.ok("snapshot", "diff", "work", "a"); got != "same\n" {
			t.Errorf("nothing changed, and diff says %q", got)
		}
		more := t.TempDir()
		for _, do := range []error{
			os.WriteFile(filepath.Join(more, "new\x1b"), []byte("text"), 0o640),
			os.WriteFile(filepath.Join(more, "large"), []byte("other"), 0o644),
		} {
			if do != nil {
				t.Fatal(do)
			}
		}
		c.ok("tree", "import", "work", more)
		c.ok("snapshot", "create", "work", "b")
		for _, to := range [][]string{nil, {"b"}} {
			lines := strings.Split(strings.TrimSpace(c.ok(append([]string{"snapshot", "diff", "work", "a"}, to...)...)), "\n")
			slices.Sort(lines)
			if got := strings.Join(lines, "|"); !strings.Contains(got, `+ /new\x1b`) || !strings.Contains(got, " /large") || strings.Contains(got, "/soft") {
				t.Errorf("diff to %v: %s", to, got)
			}
		}
		var diff struct {
			Changed []struct {
				Change, Path string
				Mode         uint32
				Size         int64
			}
		}
		if err := json.Unmarshal([]byte(c.ok("-o", "json", "snapshot", "diff", "work", "a", "b")), &diff); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, x := range diff.Changed {
			found = found || x.Change == "added" && x.Path == "/new\x1b" && x.Mode == 0o100640 && x.Size == 4
		}
		if !found {
			t.Errorf("the new file is not in %+v", diff)
		}
		c.fails(3, "no", "snapshot", "diff", "work", "none")
		if got := c.ok("snapshot", "list", "work"); strings.Contains(got, "diff-") {
			t.Errorf("the snapshot of a diff stays:\n%s", got)
		}
	})
}

func (c *cli) volume(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(c.ok("volume", "create", "disk", "--size", "1MiB"))
}
