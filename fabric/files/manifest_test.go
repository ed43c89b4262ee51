package files

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestManifestMemory has manifests of somebody who wants them to take up room: of as many
// entries as there can be, and with more.
func TestManifestMemory(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	top, below := newManifest([]entry{{kind: directory}}).text, entry{path: "name", kind: directory}
	one := newManifest([]entry{below}).text[len(manifestMagic):]
	text := func(n int) string {
		var b strings.Builder
		b.Grow(len(top) + n*len(one))
		b.WriteString(top)
		name := []byte("!!!!")
		for range n {
			b.WriteString(one[:entryHead])
			b.Write(name)
			for k := 3; ; k-- { // the next one
				if name[k]++; name[k] == '/' || name[k] == '.' {
					name[k] = '0'
				}
				if name[k] < '~' {
					break
				}
				name[k] = '!'
			}
		}
		return b.String()
	}
	most := (maxManifest - 1000) / (len(one) + indexSize)
	good := text(most)
	before := heap()
	m, err := decodeManifest(good)
	if err != nil || m.count() != most+1 {
		t.Fatalf("of %d entries: %v", most, err)
	}
	if held := heap() - before; held+int64(len(good)) > maxManifest+maxManifest/8 {
		t.Errorf("%d entries take %d bytes, beside a text of %d", m.count(), held, len(good))
	}
	t.Logf("%d entries", m.count())
	runtime.KeepAlive(m)
	if _, err := decodeManifest(text(most + 1000)); !errors.Is(err, ErrManifest) || !errors.Is(err, errTooMany) || !strings.Contains(err.Error(), "64 MiB") {
		t.Errorf("more than there may be: %v", err)
	}
}

// TestSet compares a set with a map.
func TestSet(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	s, m := newSet(130), map[int]bool{}
	for range 1000 {
		i, in := random.IntN(130), random.IntN(2) == 0
		s.put(i, in)
		if m[i] = in; !in {
			delete(m, i)
		}
		if s.n != len(m) || s.has(i) != in {
			t.Fatalf("%d: %v; %d of %d", i, s.has(i), s.n, len(m))
		}
	}
	for i := range s.all() {
		if !m[i] {
			t.Errorf("%d is not in it", i)
		}
	}
	if all := slices.Collect(s.all()); len(all) != len(m) || !slices.IsSorted(all) {
		t.Errorf("%v", all)
	}
}
