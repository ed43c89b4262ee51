package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// image writes a sparse file of 64 MiB and returns its path and content.
func image(t testing.TB) (path string, want []byte) {
	t.Helper()
	want = make([]byte, 64<<20)
	copy(want[1<<20:], content(3<<20+17))
	copy(want[40<<20-5:], "across a block")
	path = filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, err := range []error{f.Truncate(int64(len(want))), writeAt(f, want, 1<<20, 3<<20+17), writeAt(f, want, 40<<20-5, 14)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return path, want
}

func writeAt(f *os.File, all []byte, off, n int64) error {
	_, err := f.WriteAt(all[off:off+n], off)
	return err
}

// allocated is what a file takes on disk, in bytes.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// eachWay runs a test with a node and without one.
func eachWay(t *testing.T, test func(t *testing.T, c *cli)) {
	t.Run("without a node", func(t *testing.T) { test(t, newCLI(t)) })
	t.Run("with a node", func(t *testing.T) {
		c := newCLI(t)
		s := c.serve()
		test(t, c)
		s.stop()
	})
}

// parsed runs a command with -o json and reads its answer.
func parsed[T any](c *cli, args ...string) (v T) {
	c.t.Helper()
	out := c.ok(append([]string{"-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		c.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return v
}

// fails runs a command that must fail with an exit code and a text.
func (c *cli) fails(code int, text string, args ...string) {
	c.t.Helper()
	if r := c.run(args...); r.code != code || !strings.Contains(r.stderr, text) {
		c.t.Errorf("spacectl %q: exit code %d, want %d; its error should say %q:\n%s", args, r.code, code, text, r.stderr)
	}
}

func TestVolumeImportAndExport(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cli) {
		path, want := image(t)
		id := strings.TrimSpace(c.ok("volume", "import", path, "--name", "disk"))
		out := filepath.Join(t.TempDir(), "out.img")
		c.ok("volume", "export", "disk", out)
		sameFile(t, out, want)
		if a := allocated(t, out); a > 4<<20 {
			t.Errorf("the export takes %d bytes on disk", a)
		}
		same(t, "export to standard output", []byte(c.ok("volume", "export", id, "-")), want)

		r := c.runIn(string(want[:5<<20+100]), "volume", "import", "-", "--name", "piped", "--block-size", "512")
		if r.code != 0 {
			t.Fatal(r.stderr)
		}
		same(t, "import of standard input", []byte(c.ok("volume", "export", "piped", "-")), append(want[:5<<20+100:5<<20+100], make([]byte, 412)...))

		st := parsed[struct {
			Kind                  string
			Size, Segments        int64
			Allocated             int64 `json:"allocated_bytes"`
			Holes                 int64 `json:"hole_bytes"`
			UniqueBytes, OwnBytes int64
		}](c, "stat", "disk")
		if st.Kind != "volume" || st.Size != 64<<20 || st.Allocated < 3<<20 || st.Allocated > 4<<20 || st.Allocated+st.Holes != st.Size || st.Segments == 0 {
			t.Errorf("stat: %+v", st)
		}
		c.ok("volume", "export", "disk", out) // over a file that is there
		sameFile(t, out, want)
		c.fails(2, "spacectl volume export", "get", "disk")
		c.fails(4, "taken", "volume", "import", path, "--name", "disk")
		c.fails(2, "does not fit", "volume", "import", path, "--size", "1MiB")
		c.fails(2, "nothing to import", "volume", "import", os.DevNull)
		c.fails(3, "no such file", "volume", "import", path+"x")
		c.fails(3, "no snapshot", "volume", "export", "disk", out, "--snapshot", "s")
		if got := c.ok("-o", "json", "df"); !strings.Contains(got, `"capsules": 2`) {
			t.Errorf("failed imports left something: %s", got)
		}
		if strings.Contains(c.ok("verify"), "damaged") {
			t.Error("verify found damage")
		}
	})
}

func TestVolumeLife(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cli) {
		c.put([]byte("x"), "--name", "object")
		out := c.ok("volume", "create", "v/1", "--size", "10GiB")
		if !regexp.MustCompile(`\A[0-9a-f-]{36}\n\z`).MatchString(out) {
			t.Fatalf("volume create printed %q, want an ID alone", out)
		}
		if list := c.ok("list"); !regexp.MustCompile(`(?m)^[0-9a-f-]{36} +object .*object$`).MatchString(list) || !regexp.MustCompile(`volume .*10\.7 GB .*v/1`).MatchString(list) {
			t.Errorf("list does not show kinds:\n%s", list)
		}
		c.ok("volume", "resize", "v/1", "--size", "20GiB")
		list := parsed[struct {
			Capsules []struct {
				Kind, Name string
				Size       int64
			}
		}](c, "volume", "list").Capsules
		if len(list) != 1 || list[0].Kind != "volume" || list[0].Size != 20<<30 {
			t.Errorf("volume list: %+v", list)
		}
		c.fails(2, "do not shrink", "volume", "resize", "v/1", "--size", "1GiB")
		c.fails(2, "is a multiple", "volume", "create", "odd", "--size", "10000")
		c.fails(2, "512 or 4096", "volume", "create", "odd", "--size", "1MiB", "--block-size", "1000")
		c.fails(2, "size such as", "volume", "create", "odd", "--size", "many")
		c.fails(2, "Give --size", "volume", "create", "odd")
		c.fails(4, "taken", "volume", "create", "v/1", "--size", "1MiB")
		c.fails(2, "is an object", "volume", "resize", "object", "--size", "1MiB")
		c.fails(2, "no volume", "volume", "rm", "object")
		c.fails(2, "needs a subcommand", "volume")
		c.ok("volume", "rm", "v/1")
		if list := c.ok("volume", "list"); strings.Count(list, "\n") != 1 {
			t.Errorf("after volume rm:\n%s", list)
		}
	})
}

func TestSnapshotsAndClones(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cli) {
		first, second := bytes.Repeat([]byte("one\n"), 100_000), bytes.Repeat([]byte("two\n"), 150_000)
		c.put(first, "--name", "o")
		if got := c.ok("snapshot", "create", "o", "a"); got != "a\n" {
			t.Errorf("snapshot create printed %q", got)
		}
		if got := c.ok("snapshot", "diff", "o", "a"); got != "same\n" {
			t.Errorf("nothing changed, and diff says %q", got)
		}
		c.put(second, "--name", "o")
		if got := c.ok("snapshot", "diff", "o", "a"); got != "different\n" {
			t.Errorf("it was replaced, and diff says %q", got)
		}
		c.ok("clone", "o", "a", "c")
		same(t, "clone", c.get("c"), first)
		named := strings.TrimSpace(c.ok("snapshot", "create", "o"))
		if _, err := time.Parse("20060102T150405Z", named); err != nil {
			t.Errorf("a snapshot without a name is %q", named)
		}
		c.ok("snapshot", "rollback", "o", "a")
		same(t, "rolled back", c.get("o"), first)
		c.ok("snapshot", "rollback", "o", named)
		same(t, "rolled back to later", c.get("o"), second)

		list := parsed[struct {
			Snapshots []struct {
				Name    string
				Created time.Time
				Size    int64
			}
		}](c, "snapshot", "list", "o").Snapshots
		if len(list) != 2 || list[0].Name != "a" || list[0].Size != int64(len(first)) || list[1].Name != named || list[0].Created.IsZero() {
			t.Errorf("snapshot list: %+v", list)
		}
		c.fails(4, "already", "snapshot", "create", "o", "a")
		c.fails(2, "slash", "snapshot", "create", "o", "a/b")
		c.fails(3, "no snapshot", "snapshot", "rollback", "o", "nope")
		c.fails(4, "taken", "clone", "o", "a", "c")
		c.fails(5, "snapshot rm", "rm", "o")
		c.fails(3, "1 of 2", "snapshot", "rm", "o", "a", "nope")
		c.ok("snapshot", "rm", "o", named)
		c.ok("rm", "o", "c")
		if got := c.ok("-o", "json", "df"); !strings.Contains(got, `"logical_bytes": 0`) {
			t.Errorf("something is left: %s", got)
		}
	})
}

func TestVolumeSnapshots(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cli) {
		path, want := image(t)
		c.ok("volume", "import", path, "--name", "v")
		c.ok("snapshot", "create", "v", "a")
		if got := c.ok("snapshot", "diff", "v", "a"); got != "same\n" {
			t.Errorf("nothing changed, and diff says %q", got)
		}
		c.ok("clone", "v", "a", "c")
		c.ok("volume", "resize", "c", "--size", "128MiB")
		c.ok("volume", "resize", "v", "--size", "100MiB")
		c.ok("snapshot", "create", "v", "b")
		diff := parsed[struct {
			Changed []struct{ Offset, Length int64 }
			Bytes   int64
		}](c, "snapshot", "diff", "v", "a", "b")
		if len(diff.Changed) != 0 || diff.Bytes != 0 {
			t.Errorf("more room is a change: %+v", diff)
		}
		same(t, "export of a snapshot", []byte(c.ok("volume", "export", "v", "-", "--snapshot", "a")), want)
		c.ok("snapshot", "rollback", "v", "a")
		same(t, "export after rollback", []byte(c.ok("volume", "export", "v", "-")), want)
		c.fails(5, "2 snapshots", "volume", "rm", "v")
		c.ok("snapshot", "rm", "v", "a", "b")
		c.ok("volume", "rm", "v", "c")
		if got := c.ok("-o", "json", "df"); !strings.Contains(got, `"logical_bytes": 0`) {
			t.Errorf("something is left: %s", got)
		}
	})
}

// While an export runs the volume is in use, and is not rolled back.
func TestRollbackOfWhatIsOpenIsRefused(t *testing.T) {
	c := newCLI(t)
	defer c.serve().stop()
	want := content(24 << 20) // more than is on its way between the node and us
	if r := c.runIn(string(want), "volume", "import", "-", "--name", "v"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	c.ok("snapshot", "create", "v", "a")
	cmd := c.command("volume", "export", "v", "-")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(out, got[:1]); err != nil { // it has begun
		t.Fatal(err)
	}
	c.fails(5, "in use", "snapshot", "rollback", "v", "a")
	if _, err := io.ReadFull(out, got[1:]); err != nil {
		t.Error(err)
	}
	same(t, "export", got, want)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	c.ok("snapshot", "rollback", "v", "a")
}

func TestSnapshotPolicy(t *testing.T) {
	c := newCLI(t)
	c.ok("volume", "create", "v", "--size", "1MiB")
	c.ok("snapshot", "policy", "v", "--every", "1h", "--keep", "3")
	if got := c.ok("snapshot", "policy", "v"); !strings.Contains(got, "1h0m0s") {
		t.Errorf("the policy shows as %q", got)
	}
	if list := c.ok("snapshot", "list", "v"); strings.Contains(list, "auto-") {
		t.Errorf("a snapshot without a node: %s", list)
	}
	s := c.serve() // takes the one that is due at once
	s.waitFor("automatic snapshot taken")
	if list := c.ok("snapshot", "list", "v"); !regexp.MustCompile(`auto-\d{8}T\d{6}Z\n`).MatchString(list) {
		t.Errorf("no automatic snapshot: %s", list)
	}
	id := strings.TrimSpace(c.ok("volume", "create", "w", "--size", "1MiB"))
	c.ok("snapshot", "policy", "w", "--every", "24h", "--keep", "1") // while it runs
	s.waitFor(`"automatic snapshot taken" capsule=` + id)
	p := parsed[struct {
		Every string
		Keep  int
		Last  time.Time
	}](c, "snapshot", "policy", "w")
	if p.Every != "24h0m0s" || p.Keep != 1 || time.Since(p.Last) > testTime {
		t.Errorf("policy: %+v", p)
	}
	c.ok("snapshot", "policy", "v", "--off")
	if got := c.ok("snapshot", "policy", "v"); got != "no automatic snapshots\n" {
		t.Errorf("switched off, the policy shows as %q", got)
	}
	c.fails(2, "both --every and --keep", "snapshot", "policy", "v", "--every", "1h")
	c.fails(2, "--off", "snapshot", "policy", "v", "--every", "1h", "--keep", "1", "--off")
	c.fails(2, "not every 1s", "snapshot", "policy", "v", "--every", "1s", "--keep", "1")
	c.fails(2, "not 0", "snapshot", "policy", "v", "--every", "1h", "--keep", "0")
	s.stop()
}

// A node that is killed in the middle of an import has no volume afterwards,
// nor anything of it.
func TestNodeKilledDuringImport(t *testing.T) {
	c := newCLI(t)
	c.put([]byte("kept"), "--name", "kept")
	before := c.ok("df")
	s := c.serve()
	cmd := c.command("volume", "import", "-", "--name", "v")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	data := content(48 << 20)
	if _, err := in.Write(data); err != nil { // all but what the pipes hold has reached the node
		t.Fatal(err)
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	in.Close()
	if cmd.Wait() == nil || cmd.ProcessState.ExitCode() != 11 || !strings.Contains(errs.String(), "went away") {
		t.Errorf("import: exit code %d, %s", cmd.ProcessState.ExitCode(), errs.String())
	}
	if list := c.ok("list"); strings.Contains(list, "volume") {
		t.Errorf("half a volume is there:\n%s", list)
	}
	c.ok("gc")
	line := regexp.MustCompile(`(?m)^(Logical|Unique|Stored|Segments) .*$`)
	if got, want := fmt.Sprint(line.FindAllString(c.ok("df"), -1)), fmt.Sprint(line.FindAllString(before, -1)); got != want {
		t.Errorf("after gc there is\n%s\nbefore the import\n%s", got, want)
	}
	if out := c.ok("verify"); !strings.Contains(out, "no damage") {
		t.Error(out)
	}
	r := c.runIn(string(data), "volume", "import", "-", "--name", "v")
	if r.code != 0 {
		t.Errorf("the import again: %s", r.stderr)
	}
}
