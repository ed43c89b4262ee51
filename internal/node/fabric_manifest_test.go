package node

import (
	"bytes"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sampleManifest() []fileEntry {
	at := time.Unix(1, 2)
	return []fileEntry{
		{kind: entryDir, perm: 0o755, mtime: at, path: "."},
		{kind: entryDir, perm: 0o500, mtime: at, path: "a"},
		{kind: entryFile, perm: 0o644, mtime: at, size: 1 << 40, path: "a/not \xff UTF-8\n"},
		{kind: entryLink, perm: 0o777, mtime: at, path: "link", target: "../../anywhere"},
	}
}

func TestManifest(t *testing.T) {
	want := sampleManifest()
	text := appendManifest(nil, want)
	got, err := parseManifest(text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v: %v", got, err)
	}
	for n := range text {
		if _, err := parseManifest(text[:n]); err == nil && n != len(appendManifest(nil, want[:1])) && n != len(appendManifest(nil, want[:2])) && n != len(appendManifest(nil, want[:3])) {
			t.Errorf("a manifest that ends after %d bytes is taken", n)
		}
	}
	dir := fileEntry{kind: entryDir, path: "."}
	for name, entries := range map[string][]fileEntry{
		"nothing":            nil,
		"no top":             {{kind: entryFile, path: "a"}},
		"a link for top":     {{kind: entryLink, path: ".", target: "/etc"}},
		"out":                {dir, {kind: entryFile, path: "../a"}},
		"absolute":           {dir, {kind: entryFile, path: "/a"}},
		"unclean":            {dir, {kind: entryDir, path: "a"}, {kind: entryFile, path: "a/../b"}},
		"NUL":                {dir, {kind: entryFile, path: "a\x00"}},
		"twice":              {dir, {kind: entryFile, path: "a"}, {kind: entryFile, path: "a"}},
		"in a file":          {dir, {kind: entryFile, path: "a"}, {kind: entryFile, path: "a/b"}},
		"in a link":          {dir, {kind: entryLink, path: "a", target: "/etc"}, {kind: entryFile, path: "a/passwd"}},
		"in nothing":         {dir, {kind: entryFile, path: "a/b"}},
		"beside a file":      {{kind: entryFile, path: "."}, {kind: entryFile, path: "a"}},
		"a negative size":    {{kind: entryFile, path: ".", size: -1}},
		"a file with target": {{kind: entryFile, path: ".", target: "x"}},
		"no kind":            {dir, {kind: 9, path: "a"}},
	} {
		if got, err := parseManifest(appendManifest(nil, entries)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// FuzzManifest: whatever is taken leads nowhere outside, and reads the same when
// it is written again.
func FuzzManifest(f *testing.F) {
	f.Add(appendManifest(nil, sampleManifest()))
	f.Add(appendManifest(nil, sampleManifest()[:1]))
	f.Add(appendManifest(nil, []fileEntry{{kind: entryFile, path: "."}}))
	f.Add([]byte(manifestMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseManifest(data)
		if err != nil {
			return
		}
		for _, e := range entries {
			if !filepath.IsLocal(e.path) || strings.ContainsRune(e.path, 0) {
				t.Fatalf("%q leads out", e.path)
			}
		}
		again := appendManifest(nil, entries)
		back, err := parseManifest(again)
		if err != nil || !bytes.Equal(appendManifest(nil, back), again) {
			t.Fatalf("read again: %v", err)
		}
	})
}
