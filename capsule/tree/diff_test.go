package tree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func diff(t testing.TB, old, new *FS) (got []string) {
	t.Helper()
	kind(t, Diff(ctx, old, new, func(d Difference) error {
		s := string(" +-M>"[d.Kind]) + d.Path
		if d.Kind == DiffRenamed {
			s += "<" + d.From
		}
		got = append(got, s)
		return nil
	}), fine, "diff")
	slices.Sort(got)
	return got
}

func TestDiff(t *testing.T) {
	for _, c := range []struct {
		what string
		op   func(t *testing.T, fs *FS)
		want string
	}{
		{"nothing", func(t *testing.T, fs *FS) {}, ""},
		{"added", func(t *testing.T, fs *FS) { mkfile(t, fs, mkdir(t, fs, at(fs, "d"), "new"), "x", "") }, "+/d/new +/d/new/x"},
		{"removed", func(t *testing.T, fs *FS) { fs.Unlink(ctx, nil, at(fs, "d"), "s") }, "-/d/s"},
		{"removed and made again", func(t *testing.T, fs *FS) {
			fs.Unlink(ctx, nil, at(fs, "d"), "s")
			mkfile(t, fs, at(fs, "d"), "s", "")
		}, "+/d/s -/d/s"},
		{"modified", func(t *testing.T, fs *FS) {
			f := must(fs.Open(ctx, nil, at(fs, "link"), OpenWrite))(t)
			defer f.Close()
			f.WriteAt(ctx, []byte("x"), 0)
		}, "M/d/e/f M/link"},
		{"attributes of a directory", func(t *testing.T, fs *FS) {
			fs.SetXattr(ctx, nil, at(fs, "d"), "user.x", []byte("x"), 0)
		}, "M/d"},
		{"renamed", func(t *testing.T, fs *FS) { fs.Rename(ctx, nil, at(fs, "d"), "s", Root, "t", 0) }, ">/t</d/s"},
		{"a directory renamed", func(t *testing.T, fs *FS) {
			fs.Rename(ctx, nil, at(fs, "d"), "e", Root, "moved", 0)
			fs.Unlink(ctx, nil, at(fs, "moved"), "with-acl")
			mkfile(t, fs, at(fs, "moved"), "y", "")
		}, "+/moved/y -/d/e/with-acl >/moved</d/e"},
		{"exchanged", func(t *testing.T, fs *FS) {
			fs.Rename(ctx, nil, at(fs, "d"), "s", at(fs, "d"), "p", RenameExchange)
		}, ">/d/p</d/s >/d/s</d/p"},
		{"saved from a directory that goes", func(t *testing.T, fs *FS) {
			d, e := at(fs, "d"), at(fs, "d/e")
			fs.Rename(ctx, nil, e, "with-acl", Root, "saved", 0)
			fs.Unlink(ctx, nil, e, "f")
			fs.Rmdir(ctx, nil, d, "e")
		}, "-/d/e -/d/e/f >/saved</d/e/with-acl M/link"},
		{"one more link", func(t *testing.T, fs *FS) { fs.Link(ctx, nil, at(fs, "d/p"), Root, "p2") }, "+/p2 M/d/p"},
	} {
		t.Run(c.what, func(t *testing.T) {
			fs, m := sample(t)
			old := openTree(t, m.snapshot())
			c.op(t, fs)
			new := openTree(t, m.snapshot())
			if got := strings.Join(diff(t, old, new), " "); got != c.want {
				t.Fatalf("%s\nwant %s", got, c.want)
			}
		})
	}
}

// After random changes, what Diff tells turns the old set of paths into the new one.
func TestDiffOfRandomChanges(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 6))
		fs, m := newTree(t)
		scramble(fs, r, 150)
		old := openTree(t, m.snapshot())
		scramble(fs, r, 1+r.IntN(60))
		new := openTree(t, m.snapshot())
		if d := diff(t, old, openTree(t, m.at(0).like(old))); len(d) > 0 {
			t.Fatalf("a tree differs from itself: %v", d)
		}
		dirs := map[string]string{} // directories renamed: new path to old
		have := paths(t, old)
		gone := map[string]bool{}
		var adds []Difference
		kind(t, Diff(ctx, old, new, func(d Difference) error {
			switch d.Kind {
			case DiffRemoved:
				gone[d.Path] = true
			case DiffRenamed:
				gone[d.From] = true
				if d.Attr.Type == Directory {
					dirs[d.Path] = d.From
				}
				adds = append(adds, d)
			case DiffAdded:
				adds = append(adds, d)
			}
			return nil
		}), fine, "diff")
		want := paths(t, new)
		got := map[string]uint64{}
		for p, ino := range have {
			if gone[p] {
				continue
			}
			got[carried(p, dirs)] = ino
		}
		for _, d := range adds {
			got[d.Path] = d.Attr.Ino
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("seed %d: got %v\nwant %v\n%v", seed, got, want, diff(t, old, new))
		}
		fs.Close()
	}
}

// carried returns where a path of the old tree went with the directories above it.
func carried(p string, dirs map[string]string) string {
	for up := p; up != ""; up = up[:strings.LastIndexByte(up, '/')] {
		for to, from := range dirs {
			if from == up && up != p {
				return to + p[len(up):]
			}
		}
	}
	return p
}

func paths(t testing.TB, fs *FS) map[string]uint64 {
	all := map[string]uint64{}
	var walk func(dir uint64, path string)
	walk = func(dir uint64, path string) {
		for name, e := range list(t, fs, dir) {
			all[path+"/"+name] = e.Ino
			if e.Type == Directory {
				walk(e.Ino, path+"/"+name)
			}
		}
	}
	walk(Root, "")
	return all
}

// like makes a snapshot of what another tree is a snapshot of.
func (m *memory) like(fs *FS) *memory {
	m.root.Store(fs.capsule.(*memory).root.Load())
	m.readOnly = true
	return m
}
