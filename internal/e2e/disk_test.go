package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a small file system of its own, for SPACE_HOME.
type disk struct {
	t    testing.TB
	dir  string
	home string
}

func (d *disk) box() *box { return &box{t: d.t, home: d.home} }

// free is how many bytes are left on it.
func (d *disk) free() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// hog takes all the room that is left, as other programs may, and returns a
// function that gives it back.
func (d *disk) hog() (release func()) {
	d.t.Helper()
	path := filepath.Join(d.dir, "hog")
	f, err := os.Create(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{1 << 20, 4096, 512} {
		for p := make([]byte, n); ; {
			if _, err := f.Write(p); err != nil {
				break // full
			}
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			d.t.Error(err)
		}
	}
}

func (d *disk) mount(args ...string) {
	d.t.Helper()
	if out, err := exec.Command("mount", append(args, d.dir)...).CombinedOutput(); err != nil {
		d.t.Fatalf("mount %v: %v: %s", args, err, out)
	}
}

// disks are the kinds of small file system that tests run on.
var disks = map[string]func(t *testing.T, mib int) *disk{
	"tmpfs": func(t *testing.T, mib int) *disk {
		d := &disk{t: t, dir: t.TempDir()}
		unmountAll(t, d.dir)
		d.mount("-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "none")
		d.home = filepath.Join(d.dir, "home")
		return d
	},
	"ext4": func(t *testing.T, mib int) *disk {
		if _, err := os.Stat("/dev/loop-control"); err != nil {
			t.Skipf("no loop devices: %v", err)
		}
		img := filepath.Join(t.TempDir(), "img")
		write(t, img, nil)
		if err := os.Truncate(img, int64(mib)<<20); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", img).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v: %s", err, out)
		}
		d := &disk{t: t, dir: t.TempDir()}
		unmountAll(t, d.dir)
		d.mount("-o", "loop", img)
		d.home = filepath.Join(d.dir, "home")
		return d
	},
}

// onDisks runs fn on each kind of disk.
func onDisks(t *testing.T, mib int, fn func(t *testing.T, d *disk)) {
	t.Parallel()
	needMount(t)
	for name, make := range disks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fn(t, make(t, mib))
		})
	}
}

// TestFullDisk puts until the disk is full, then removes and goes on.
func TestFullDisk(t *testing.T) {
	onDisks(t, 96, func(t *testing.T, d *disk) {
		b := d.box()
		const size = 6 << 20
		var stored int
		var full result
		for ; full.code == 0; stored++ {
			full = b.run(bytes.NewReader(random(uint64(stored), size)), "put", "-", "--name", fmt.Sprint(stored))
			if stored > 96<<20/size {
				t.Fatal("more was stored than the disk can hold")
			}
		}
		stored--
		if full.code != exitNoSpace || !strings.Contains(full.err, "disk full") || full.out != "" {
			t.Errorf("a put into a full disk: %v", full)
		}
		if stored*size < 96<<20/2 {
			t.Errorf("the disk was called full after %d MiB of 96", stored*size>>20)
		}
		for i := range stored {
			if sum([]byte(b.must("get", fmt.Sprint(i)))) != sum(random(uint64(i), size)) {
				t.Errorf("capsule %d, stored before the disk was full, reads wrong", i)
			}
		}
		if n := len(b.list()); n != stored {
			t.Errorf("%d capsules are listed, %d were stored", n, stored)
		}
		b.must("verify")

		before := d.free()
		for i := range stored - 1 {
			b.must("rm", fmt.Sprint(i))
		}
		b.must("gc")
		if got := d.free() - before; got < int64(stored-2)*size {
			t.Errorf("rm and gc gave %d MiB back of %d", got>>20, (stored-1)*size>>20)
		}
		b.put("again", random(99, 20<<20))
		b.must("verify")
	})
}

// TestGCOnFullDisk removes every second capsule of a full disk, so that no log
// is dead as a whole and garbage collection has to make its own room.
func TestGCOnFullDisk(t *testing.T) {
	t.Parallel()
	needMount(t)
	if testing.Short() {
		t.Skip("not short: writes more than two whole segment logs")
	}
	d := disks["tmpfs"](t, 640)
	b := d.box()
	b.serve()
	const size = 8 << 20
	n := 0
	for ; b.run(bytes.NewReader(random(uint64(n), size)), "put", "-", "--name", fmt.Sprint(n)).code == 0; n++ {
	}
	before := d.free()
	for i := 0; i < n; i += 2 {
		b.must("rm", fmt.Sprint(i))
	}
	b.must("gc")
	if got := d.free() - before; got < int64(n/2-1)*size {
		t.Errorf("gc gave %d MiB back of %d", got>>20, n/2*size>>20)
	}
	b.put("again", random(99, 4*size))
	for i := 1; i < n; i += 2 {
		if sum([]byte(b.must("get", fmt.Sprint(i)))) != sum(random(uint64(i), size)) {
			t.Errorf("capsule %d reads wrong after it was moved", i)
		}
	}
	b.must("verify")
}

// TestDiskFilledByOthers is about a disk without a single free block, for
// commands that open the store and for a node that has it open: what is stored
// can be read and removed, and as soon as there is room all is well.
func TestDiskFilledByOthers(t *testing.T) {
	for _, node := range []bool{false, true} {
		t.Run(fmt.Sprintf("node=%v", node), func(t *testing.T) {
			onDisks(t, 96, func(t *testing.T, d *disk) {
				b := d.box()
				if node {
					s := b.serve()
					defer func() {
						if code := s.stop(unix.SIGTERM); code != 0 {
							t.Errorf("serve ended with %d:\n%s", code, s.errs)
						}
					}()
				}
				data := random(1, 8<<20)
				b.put("kept", data)
				b.put("victim", random(2, 8<<20))
				release := d.hog()
				for i := range 3 {
					r := b.run(bytes.NewReader(random(4, 1<<20)), "put", "-", "--name", fmt.Sprint("x", i))
					if r.code != exitNoSpace || !strings.Contains(r.err, "disk full") && !strings.Contains(r.err, "no space") {
						t.Errorf("a put into a disk without room: %v", r)
					}
				}
				if sum([]byte(b.must("get", "kept"))) != sum(data) {
					t.Error("what was stored reads wrong on a full disk")
				}
				before := d.free()
				b.must("rm", "victim")
				// To move what lives takes room, of which there is none: gc may say so.
				b.run(nil, "gc")
				if sum([]byte(b.must("get", "kept"))) != sum(data) {
					t.Error("what was stored reads wrong after gc on a full disk")
				}
				// A log without anything live needs none.
				b.must("rm", "kept")
				b.must("gc")
				if got := d.free() - before; got < 15<<20 {
					t.Errorf("gc gave %d MiB back of 16", got>>20)
				}
				release()
				b.put("after", random(3, 8<<20))
				if l := b.list(); len(l) != 1 || l["after"].Size != 8<<20 {
					t.Errorf("capsules after the disk was full: %v", l)
				}
				b.must("verify")
			})
		})
	}
}

// TestManySmallCapsulesFillTheDisk fills it with metadata rather than content.
func TestManySmallCapsulesFillTheDisk(t *testing.T) {
	onDisks(t, 32, func(t *testing.T, d *disk) {
		b := d.box()
		src := filepath.Join(t.TempDir(), "src")
		const files = 3000
		for i := range files {
			write(t, filepath.Join(src, fmt.Sprint(i%64), fmt.Sprint(i)), random(uint64(i), 4096+i%512))
		}
		stored := map[string]bool{}
		var last result
		for n := 0; last.code == 0; n++ {
			if n > 10 {
				t.Fatal("the disk does not get full")
			}
			last = b.run(nil, "put", "-r", src, "--name", fmt.Sprint("n", n), "--policy-file", policyFile(t, "dedupe: false"))
			for line := range strings.Lines(last.out) {
				if f := strings.Fields(line); len(f) == 2 {
					stored[f[1]] = true
				}
			}
		}
		if last.code != exitNoSpace {
			t.Errorf("want exit code %d: %v", exitNoSpace, last)
		}
		have := b.list()
		for name := range stored {
			if have[name].ID == "" {
				t.Fatalf("%s was acknowledged and is gone", name)
			}
		}
		b.must("verify")
		for _, prefix := range []string{"n0", "n1"} {
			if r := b.run(nil, "rm", "-r", prefix); r.code != 0 && prefix == "n0" {
				t.Errorf("remove on a full disk: %v", r)
			}
		}
		b.must("gc")
		b.put("again", random(1, 4<<20))
		b.must("verify")
	})
}

func policyFile(t testing.TB, text string) string {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write(t, path, []byte(text+"\n"))
	return path
}

// TestReadOnlyDisk wants a clear error from every command, and the store whole
// once the disk takes writes again.
func TestReadOnlyDisk(t *testing.T) {
	onDisks(t, 96, func(t *testing.T, d *disk) {
		b := d.box()
		data := random(1, 3<<20)
		b.put("f", data)
		d.mount("-o", "remount,ro")
		for _, args := range [][]string{{"put", spacectl}, {"rm", "f"}, {"gc"}, {"key", "rotate"}, {"list"}, {"get", "f"}, {"serve"},
			{"project", "mount", "f", "--target", t.TempDir()}} {
			r := b.run(nil, args...)
			if r.code == 0 && (args[0] == "list" || args[0] == "get" && sum([]byte(r.out)) == sum(data)) {
				continue // reading may work
			}
			if r.code != exitReadOnly || !strings.Contains(r.err, "read-only") || !strings.Contains(r.err, d.home) {
				t.Errorf("want exit code %d and the reason: %v", exitReadOnly, r)
			}
		}
		d.mount("-o", "remount,rw")
		if sum([]byte(b.must("get", "f"))) != sum(data) {
			t.Error("reads wrong after the disk was read-only")
		}
		b.must("verify")
	})
}

// TestFileSizeLimit runs into a limit of the process (setrlimit(2)), as a
// quota would have it.
func TestFileSizeLimit(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	kept := random(1, 1<<20)
	b.put("kept", kept)
	b.wrap = []string{"prlimit", "--fsize=4194304", "--"}
	r := b.run(bytes.NewReader(random(2, 24<<20)), "put", "-", "--name", "large")
	if r.code != exitNoSpace || r.out != "" {
		t.Errorf("a put over the file size limit: %v", r)
	}
	if sum([]byte(b.must("get", "kept"))) != sum(kept) {
		t.Error("what was stored before reads wrong")
	}
	b.wrap = nil
	b.put("large", random(2, 24<<20))
	if sum([]byte(b.must("get", "kept"))) != sum(kept) {
		t.Error("what was stored before reads wrong")
	}
	b.must("verify")
}
