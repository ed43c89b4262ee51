//go:build unix

package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views"
)

func copyTo(t *testing.T, s Store, o Options) (*views.Projection, error) {
	t.Helper()
	if o.Logger == nil {
		o.Logger = new(logBuffer).logger()
	}
	return Copy(context.Background(), s, o)
}

// listing is what is under a directory, the manifest left out.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); err == nil && rel != "." && rel != manifestName {
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestCopyOfOne(t *testing.T) {
	s := newFakeStore()
	want := pattern(1, 300_000)
	info := s.put("x", want)
	dir := t.TempDir()
	p, err := copyTo(t, s, Options{Capsule: info.ID, Target: dir})
	if err != nil {
		t.Fatal(err)
	}
	if p.Mode != views.ModeCopy || !strings.Contains(p.Note, "copies") {
		t.Errorf("projection is %+v", p.Info)
	}
	file := filepath.Join(dir, "content")
	st, err := os.Stat(file)
	if err != nil || st.Mode() != 0o444 || !st.ModTime().Equal(info.Modified) {
		t.Errorf("content is %v, %v", st, err)
	}
	if got, _ := os.ReadFile(file); !bytes.Equal(got, want) {
		t.Error("content differs")
	}
	_, err = copyTo(t, s, Options{Capsule: info.ID, Target: dir})
	mustKind(t, err, capsule.Conflict, dir)

	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if err := p.Close(false); err != nil {
		t.Errorf("second close: %v", err)
	}
	if n, _, _ := s.counts(); n != 0 {
		t.Errorf("%d readers leaked", n)
	}
}

func TestCopyOfAll(t *testing.T) {
	s := newFakeStore()
	for _, name := range []string{"a", "d/b", "d/e/c", "f/bad", "g/secret"} {
		s.put(name, []byte(name))
	}
	bad, _, _ := s.LookupName(context.Background(), "f/bad")
	s.update(bad.ID, func(c *fakeCapsule) { c.damaged = [][2]int64{{0, 1}} })
	secret, _, _ := s.LookupName(context.Background(), "g/secret")
	s.update(secret.ID, func(c *fakeCapsule) { c.policy = &capsule.Policy{Views: capsule.Views{"nfs"}} })

	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "mine"), 0o755)
	os.Mkdir(filepath.Join(dir, "d"), 0o755)
	var log logBuffer
	p, err := copyTo(t, s, Options{Target: dir, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, dir), "a d d/b d/e d/e/c f g mine"; got != want {
		t.Errorf("copied %s, want %s", got, want)
	}
	if !strings.Contains(p.Note, "2 capsules") || !strings.Contains(log.String(), "f/bad") || !strings.Contains(log.String(), "g/secret") {
		t.Errorf("note %q, log %s", p.Note, log.String())
	}

	// What the user changed stays, and so do directories that were there.
	changed := filepath.Join(dir, "d/e/c")
	os.Chmod(changed, 0o644)
	os.WriteFile(changed, []byte("edited"), 0o644)
	os.WriteFile(filepath.Join(dir, "f/new"), nil, 0o644)
	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, dir), "d d/e d/e/c f f/new mine"; got != want {
		t.Errorf("left %s, want %s", got, want)
	}
}

func TestCopyNeverOverwrites(t *testing.T) {
	s := newFakeStore()
	info := s.put("x", []byte("stored"))
	dir := t.TempDir()
	file := filepath.Join(dir, "content")
	os.WriteFile(file, []byte("mine"), 0o644)
	_, err := copyTo(t, s, Options{Capsule: info.ID, Target: dir})
	mustKind(t, err, capsule.Exists, "content", dir)
	if got, _ := os.ReadFile(file); string(got) != "mine" {
		t.Errorf("the user's file is now %q", got)
	}
	if got := listing(t, dir); got != "content" {
		t.Errorf("left %s", got)
	}

	// Nor through a link out of the target.
	outside := t.TempDir()
	os.Symlink(outside, filepath.Join(dir, "d"))
	s.put("d/f", []byte("x"))
	if _, err := copyTo(t, s, Options{Target: dir}); err == nil {
		t.Error("copied through a link")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("%v was written outside", left)
	}
}

func TestCopyThatFailsLeavesNothing(t *testing.T) {
	s := newFakeStore()
	info := s.put("x", pattern(1, 1<<20))
	s.update(info.ID, func(c *fakeCapsule) { c.damaged = [][2]int64{{500_000, 500_001}} })
	dir := t.TempDir()
	_, err := copyTo(t, s, Options{Capsule: info.ID, Target: dir})
	mustKind(t, err, capsule.Damaged, info.ID.String())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.put("y", pattern(1, 100))
	_, err = Copy(ctx, s, Options{Target: dir, Logger: new(logBuffer).logger()})
	mustKind(t, err, capsule.Canceled)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	_, err = copyTo(t, s, Options{Capsule: info.ID, Target: filepath.Join(dir, "none")})
	mustKind(t, err, capsule.NotFound, "none")
}

// TestCopyResumes takes up what a killed process left: a manifest that nobody
// holds, with its last line cut short, and a partial file.
func TestCopyResumes(t *testing.T) {
	s := newFakeStore()
	s.put("keep", []byte("kept"))
	s.put("replace", []byte("old"))
	gone := s.put("gone", []byte("gone"))
	dir := t.TempDir()
	p, err := copyTo(t, s, Options{Target: dir})
	if err != nil {
		t.Fatal(err)
	}
	c := p.Backend.(*copier)
	c.manifest.f.WriteString(`{"path":"ke`)
	c.manifest.f.Close() // as the kernel does for a killed process
	os.WriteFile(filepath.Join(dir, partName), []byte("half"), 0o444)

	s.put("replace", []byte("newer"))
	s.remove(gone.ID)
	s.put("sub/added", []byte("added"))
	kept, _ := os.Stat(filepath.Join(dir, "keep"))
	p, err = copyTo(t, s, Options{Target: dir})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, dir), "keep replace sub sub/added"; got != want {
		t.Errorf("have %s, want %s", got, want)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "replace")); string(got) != "newer" {
		t.Errorf("replace is %q", got)
	}
	if again, err := os.Stat(filepath.Join(dir, "keep")); err != nil || !os.SameFile(kept, again) {
		t.Error("what was right was copied again")
	}
	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// TestHostileManifest has a list that names files which are not copies.
func TestHostileManifest(t *testing.T) {
	s := newFakeStore()
	info := s.put("x", []byte("x"))
	parent := t.TempDir()
	dir := filepath.Join(parent, "d")
	os.Mkdir(dir, 0o755)
	victims := []string{filepath.Join(parent, "outside"), filepath.Join(dir, "inside")}
	var lines strings.Builder
	for i, name := range []string{"../outside", "inside"} {
		os.WriteFile(victims[i], []byte("victim"), 0o644)
		st, _ := os.Stat(victims[i])
		ino := inodeOf(st)
		if name == "inside" {
			ino++ // not as it was made
		}
		fmt.Fprintf(&lines, `{"path":%q,"size":6,"mtime":%d,"ino":%d}`+"\n", name, st.ModTime().UnixNano(), ino)
	}
	os.WriteFile(filepath.Join(dir, manifestName), []byte(lines.String()), 0o600)
	p, err := copyTo(t, s, Options{Capsule: info.ID, Target: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	for _, v := range victims {
		if _, err := os.Stat(v); err != nil {
			t.Error(err)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"path":"a/b","size":3,"mtime":1,"ino":2,"capsule":"00000000-0000-4000-8000-000000000000","version":1}` + "\n"))
	f.Add([]byte(`{"path":"d","dir":true}` + "\n" + `{"path":"../x"}` + "\nnonsense\n\n" + `{"path":"cut`))
	f.Add(bytes.Repeat([]byte("x"), maxManifestLine+100))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := parseManifest(bytes.NewReader(b), func(e manifestEntry) error {
			if !fs.ValidPath(e.Path) || e.Path == "." {
				t.Errorf("path %q passed", e.Path)
			}
			return nil
		})
		if err != nil {
			t.Errorf("reading from memory: %v", err)
		}
		stop := errors.New("stop")
		if err := parseManifest(bytes.NewReader(b), func(manifestEntry) error { return stop }); err != nil && err != stop {
			t.Error(err)
		}
	})
}
