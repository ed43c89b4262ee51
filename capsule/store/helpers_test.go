package store

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

var (
	testKey  = keyring.Source{MasterKey: strings.Repeat("5a", 32)}
	otherKey = keyring.Source{MasterKey: strings.Repeat("c3", 32)}
)

func quietLog() *slog.Logger {
	if os.Getenv("SPACE_TEST_LOG") != "" {
		return slog.Default()
	}
	return slog.New(slog.DiscardHandler)
}

// openOn opens the store on a file system, with small logs so that they rotate
// and a small memtable so that metadata is written at any moment.
func openOn(fsys vfs.FS) (*Store, error) {
	return Open(context.Background(), Options{Dir: "/space", FS: fsys, Keys: testKey, Logger: quietLog(), LogBytes: 256 << 10, memtable: 16 << 10})
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := openOn(vfstest.NewPowerCut())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	r.Read(b)
	return b
}

// text is compressible and differs by seed.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	var b []byte
	for len(b) < n {
		b = fmt.Appendf(b, "line %d of %d: %s\n", r.IntN(1000), seed, "the quick brown fox jumps over it"[r.IntN(20):])
	}
	return b[:n]
}

func put(t testing.TB, s *Store, name string, data []byte) capsule.Info {
	t.Helper()
	info, err := s.Put(context.Background(), PutRequest{Name: name, Size: int64(len(data))}, bytes.NewReader(data))
	if err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
	return info
}

func get(s *Store, id capsule.ID) ([]byte, error) {
	r, err := s.Open(context.Background(), id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	_, err = r.Stream(context.Background(), &b, 0, -1)
	return b.Bytes(), err
}

func wantContent(t testing.TB, s *Store, id capsule.ID, want []byte) {
	t.Helper()
	got, err := get(s, id)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("content of %d bytes is not the %d bytes that were put", len(got), len(want))
	}
}

func wantKind(t testing.TB, err error, want capsule.ErrorKind) {
	t.Helper()
	if err == nil || capsule.KindOf(err) != want {
		t.Fatalf("error %v (%v), want one of kind %q", err, capsule.KindOf(err), want)
	}
}

func wantClean(t testing.TB, s *Store) {
	t.Helper()
	rep, err := s.Verify(context.Background(), VerifyOptions{}, nil)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if !rep.OK() {
		t.Fatalf("verify found %+v", rep)
	}
}

// state is what a store should hold: content by name, and notes by noteOf.
type state map[string]string

func (m state) clone() state { return maps.Clone(m) }

// noteOf is a note's key in a state; name is that of its capsule.
func noteOf(name, note string) string { return name + "\x00" + note }

func readState(s *Store) (state, error) {
	m := state{}
	if err := s.readNotes(m); err != nil {
		return nil, err
	}
	q := ListQuery{Limit: 3}
	for {
		page, err := s.List(context.Background(), q)
		if err != nil {
			return nil, err
		}
		for _, info := range page.Capsules {
			b, err := get(s, info.ID)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", info.Name, err)
			}
			if int64(len(b)) != info.Size {
				return nil, fmt.Errorf("%q has %d bytes, its size says %d", info.Name, len(b), info.Size)
			}
			if _, twice := m[info.Name]; twice {
				return nil, fmt.Errorf("%q is listed twice", info.Name)
			}
			m[info.Name] = string(b)
		}
		if page.Next == "" {
			return m, nil
		}
		q.Cursor = page.Next
	}
}

// readNotes adds all notes to a state, page by page.
func (s *Store) readNotes(m state) error {
	ctx := context.Background()
	own, err := getNotes(s.kv, capsule.ID{})
	for note, v := range own {
		m[noteOf("", note)] = string(v)
	}
	for after := (capsule.ID{}); err == nil; {
		var page []Noted
		if page, err = s.Noted(ctx, after, 1); err != nil || len(page) == 0 {
			return err
		}
		for _, n := range page {
			info, err := s.Info(ctx, n.ID)
			if err != nil {
				return fmt.Errorf("notes of a capsule that is not there: %w", err)
			}
			for note, v := range n.Notes {
				m[noteOf(info.Name, note)] = string(v)
			}
			after = n.ID
		}
	}
	return err
}

func (m state) String() string {
	var b strings.Builder
	for name, c := range m {
		fmt.Fprintf(&b, "%s: %d bytes %x…; ", name, len(c), c[:min(4, len(c))])
	}
	return b.String()
}
