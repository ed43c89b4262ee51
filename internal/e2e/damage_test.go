package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spacestore/space/internal/testenv/seed"
)

// kindsOfFile are the files under SPACE_HOME. To hit one byte of any of them
// must never lead to wrong data, nor to a capsule that is silently missing.
var kindsOfFile = []struct {
	kind string
	path *regexp.Regexp
	// named: the damage must be noticed, in an error that names the file (its
	// log, for segments). Where not, the file may have bytes that do not matter.
	named bool
}{
	{"format", regexp.MustCompile(`^format$`), true},
	{"master key", regexp.MustCompile(`^keys/master\.key$`), true},
	{"key ring", regexp.MustCompile(`^keys/keyring$`), true},
	{"key ring's copy", regexp.MustCompile(`^keys/keyring\.bak$`), true},
	{"segment log", regexp.MustCompile(`^segments/.*\.seg$`), false}, // some of it is dead
	{"metadata table", regexp.MustCompile(`^meta/.*\.sst$`), false},
	{"metadata log", regexp.MustCompile(`^meta/.*\.log$`), false},
	{"metadata manifest", regexp.MustCompile(`^meta/MANIFEST-.*$`), false},
	{"metadata options", regexp.MustCompile(`^meta/OPTIONS-.*$`), false},
	{"lock", regexp.MustCompile(`^(meta/)?(lock|LOCK)$`), false},
	{"ballast", regexp.MustCompile(`^ballast$`), false},
}

// TestDamage puts garbage into each kind of file of a store in use, one byte
// or one block at a time, and cuts files short.
func TestDamage(t *testing.T) {
	t.Parallel()
	rng := seed.Rand(t)
	whole := newBox(t)
	m := model{}
	fill := func(round int) {
		for i, size := range []int{0, 100, 30 << 10, 700 << 10, 3 << 20} {
			name := fmt.Sprintf("d%d/%d", round, i)
			m[name] = random(uint64(10*round+i), size)
			whole.put(name, m[name])
		}
	}
	fill(0)
	whole.must("key", "rotate")
	fill(1)
	whole.must("rm", "d0/3")
	delete(m, "d0/3")
	// A last life of the store that ends without a farewell: a metadata log
	// with content stays behind.
	s := whole.serve()
	fill(2)
	s.stop(9)

	files := map[string][]string{} // by kind
	err := filepath.WalkDir(whole.home, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, _ := filepath.Rel(whole.home, path)
		if rel == "node.log" || strings.HasPrefix(filepath.Base(rel), "marker.") {
			return nil // not the store's; and the markers have no content
		}
		for _, k := range kindsOfFile {
			if k.path.MatchString(rel) {
				files[k.kind] = append(files[k.kind], rel)
				return nil
			}
		}
		t.Errorf("%s is of no kind that this test knows; add it", rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tries := 3 // one of each sort
	if testing.Short() {
		tries = 1
	}
	for _, k := range kindsOfFile {
		if len(files[k.kind]) == 0 {
			t.Errorf("the store has no %s", k.kind)
			continue
		}
		for try := range tries {
			rel := files[k.kind][rng.IntN(len(files[k.kind]))]
			b := &box{t: t, home: filepath.Join(t.TempDir(), "home")}
			if out, err := exec.Command("cp", "-a", whole.home, b.home).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			path := filepath.Join(b.home, rel)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) == 0 {
				data = make([]byte, 1)
			}
			at := rng.IntN(len(data))
			var how string
			kind := try % 3
			if strings.HasSuffix(rel, ".log") {
				// Only a bit: a lost end of a write-ahead log can't be told from
				// what a power cut leaves (package metafs).
				kind = 0
			}
			switch kind {
			case 0:
				data[at] ^= 1 << rng.IntN(8)
				how = fmt.Sprintf("a bit flipped in byte %d of %s (%d bytes)", at, rel, len(data))
			case 1:
				n := copy(data[at:], random(rng.Uint64(), 4096))
				how = fmt.Sprintf("%d bytes of garbage at %d of %s (%d bytes)", n, at, rel, len(data))
			case 2:
				how = fmt.Sprintf("%s cut to %d of %d bytes", rel, at, len(data))
				data = data[:at]
			}
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, data)
			noticed := b.neverWrong(m, how)
			harmless := k.kind == "master key" && strings.EqualFold(strings.TrimSpace(string(before)), strings.TrimSpace(string(data)))
			if k.named && !harmless && !strings.Contains(noticed, filepath.Base(rel)) {
				t.Errorf("%s: nothing named the file; it was said: %s", how, noticed)
			}
			if t.Failed() {
				return
			}
		}
	}
}

// neverWrong uses a damaged store in every way and fails if it gives wrong data
// or leaves a capsule out without an error. It returns what was said.
func (b *box) neverWrong(m model, how string) (said string) {
	b.t.Helper()
	var all strings.Builder
	use := func(args ...string) result {
		r := b.run(nil, args...)
		all.WriteString(r.err)
		if r.code != 0 && strings.TrimSpace(r.err) == "" {
			b.t.Errorf("%s: failed without a word: %v", how, r)
		}
		return r
	}
	if r := use("list", "--all", "-o", "json"); r.code == 0 {
		have, err := parseList(r.out)
		if err != nil {
			b.t.Error(err)
		}
		for name, data := range m {
			if have[name].Size != int64(len(data)) || have[name].ID == "" {
				b.t.Errorf("%s: list succeeds and says %+v of %s, which has %d bytes", how, have[name], name, len(data))
			}
		}
		if len(have) != len(m) {
			b.t.Errorf("%s: list succeeds with %d capsules of %d", how, len(have), len(m))
		}
	}
	unreadable := false
	for _, prefix := range []string{"d0", "d1", "d2"} {
		dir := filepath.Join(b.t.TempDir(), "out")
		r := use("get", "-r", prefix, "--out", dir)
		unreadable = unreadable || r.code != 0
		for name, data := range m {
			rest, ok := strings.CutPrefix(name, prefix+"/")
			if !ok {
				continue
			}
			got, err := os.ReadFile(filepath.Join(dir, rest))
			if err == nil && !bytes.Equal(got, data) {
				b.t.Errorf("%s: get -r gave wrong data for %s", how, name)
			}
			if err != nil && r.code == 0 {
				b.t.Errorf("%s: get -r succeeded without %s: %v", how, name, err)
			}
		}
	}
	r := use("verify")
	all.WriteString(r.out)
	if unreadable && r.code == 0 {
		b.t.Errorf("%s: verify found nothing though a capsule can't be read: %s", how, all.String())
	}
	// New data is taken whole or not at all, and damage does not spread.
	fresh := random(77, 300<<10)
	if r := b.run(bytes.NewReader(fresh), "put", "-", "--name", "fresh"); r.code == 0 {
		if got := use("get", "fresh"); got.code != 0 || got.out != string(fresh) {
			b.t.Errorf("%s: what was stored after the damage: %v", how, got)
		}
	} else {
		all.WriteString(r.err)
	}
	return all.String()
}

// TestOneDamagedSegment loses one range of one capsule, by name, and no more.
func TestOneDamagedSegment(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	hit, other := random(1, 2<<20), random(2, 2<<20)
	id := b.put("hit", hit)
	end := b.df().Stored
	b.put("other", other)
	logs, err := filepath.Glob(filepath.Join(b.home, "segments", "*", "*.seg"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("segment logs: %v, %v", logs, err)
	}
	f, err := os.OpenFile(logs[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("garbage"), end/2); err != nil {
		t.Fatal(err)
	}
	r := b.mustFail([]int{exitDamaged}, "verify", "-o", "json")
	var said string
	if i := strings.Index(r.out, `"damage"`); i >= 0 {
		said = r.out[i:]
	}
	for _, want := range []string{id, `"hit"`, `"offset"`} {
		if !strings.Contains(said, want) {
			t.Errorf("verify does not say %s: %v", want, r)
		}
	}
	if strings.Contains(said, "other") {
		t.Errorf("verify blames a capsule that is whole: %v", r)
	}
	r = b.mustFail([]int{exitDamaged}, "get", "hit")
	if !strings.Contains(r.err, id) || !strings.Contains(r.err, "segment log 1 at") || !strings.HasPrefix(string(hit), r.out) {
		t.Errorf("get of the damaged capsule: exit %d, %d right bytes, %s", r.code, len(r.out), r.err)
	}
	if b.must("get", "other") != string(other) {
		t.Error("the other capsule reads wrong")
	}
	if b.must("get", "hit", "--offset", "0", "--length", "1000") != string(hit[:1000]) {
		t.Error("a range before the damage reads wrong")
	}
	if b.must("get", "hit", "--offset", fmt.Sprint(len(hit)-1000)) != string(hit[len(hit)-1000:]) {
		t.Error("a range after the damage reads wrong")
	}
	// Put again, the data heals.
	b.put("hit", hit)
	if got := b.run(nil, "get", "hit"); got.code == 0 && got.out != string(hit) {
		t.Error("after another put: wrong data")
	}
}
