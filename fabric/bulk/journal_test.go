package bulk

import (
	"path/filepath"
	"testing"

	"github.com/spacestore/space/internal/vfs"
)

// TestSyncFailed has a sink that fails to sync: what it did not cover is fetched
// again, in the same life of the machine too.
func TestSyncFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	open := func() *Journal {
		j, err := OpenJournal(vfs.OS(), path, BootID{1})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := open()
	if _, err := j.begin(info{Size: 3 * minChunk, Chunk: minChunk}); err != nil {
		t.Fatal(err)
	}
	for c := range 3 {
		if err := j.note(c, Hash{byte(c)}); err != nil {
			t.Fatal(err)
		}
		if c == 0 {
			if err := j.synced(j.mark()); err != nil {
				t.Fatal(err)
			}
		}
		if c == 1 {
			if err := j.lost(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j = open(); len(j.have) != 1 {
		t.Errorf("%d chunks are taken to be there, want the one that was synced", len(j.have))
	}
}
