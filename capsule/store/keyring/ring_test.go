package keyring

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
	"github.com/spacestore/space/internal/vfs/vfstest"
)

const home = "/home"

func TestMain(m *testing.M) {
	passphraseCost = argon2Params{Time: 1, MemoryKiB: 64, Threads: 2}
	os.Exit(m.Run())
}

// logBuffer collects what a ring tells the operator.
func logTo(b *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

var quiet = slog.New(slog.DiscardHandler)

func newHome(t testing.TB) vfs.FS {
	t.Helper()
	fsys := pebblevfs.NewMem()
	if err := fsys.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	return fsys
}

func mustCreate(t testing.TB, fsys vfs.FS, src Source) *Ring {
	t.Helper()
	r, err := Create(fsys, home, src)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustOpen(t testing.TB, fsys vfs.FS, src Source) *Ring {
	t.Helper()
	r, err := Open(fsys, home, src, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantKind(t testing.TB, err error, kind capsule.ErrorKind, parts ...string) {
	t.Helper()
	if err == nil || capsule.KindOf(err) != kind {
		t.Fatalf("got %v error %v, want kind %v", capsule.KindOf(err), err, kind)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not mention %q", err, part)
		}
	}
}

// secretsOf is everything that data on disk depends on.
func secretsOf(r *Ring) map[string][32]byte {
	all := map[string][32]byte{"hash": r.HashKey(), "chunk": r.ChunkKey()}
	for _, v := range r.Versions() {
		seg, ok1 := r.SegmentKey(v.Version)
		meta, ok2 := r.MetaKey(v.Version)
		if !ok1 || !ok2 {
			panic("a listed version has no keys")
		}
		all[fmt.Sprint("segment ", v.Version)] = seg
		all[fmt.Sprint("meta ", v.Version)] = meta
	}
	return all
}

func contains(all, part map[string][32]byte) bool {
	for k, v := range part {
		if all[k] != v {
			return false
		}
	}
	return true
}

// dump reads all files of the keys directory.
func dump(t testing.TB, fsys vfs.FS) map[string]string {
	t.Helper()
	names, err := fsys.List(home + "/keys")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range names {
		b, err := vfs.ReadFile(fsys, home+"/keys/"+name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(b)
	}
	return all
}

func put(t testing.TB, fsys vfs.FS, name, content string) {
	t.Helper()
	if err := vfs.WriteFileAtomic(fsys, name, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

var rawKey = strings.Repeat("0123456789abcdef", 4)

func TestSources(t *testing.T) {
	otherKey := strings.Repeat("f", 64)
	for _, tc := range []struct {
		name   string
		create Source
		source string
		right  []Source
		wrong  map[string]Source // by what the error has to name
	}{
		{
			name: "file", create: Source{}, source: "file",
			right: []Source{{Prompt: func(string) (string, error) { panic("asked") }}},
			wrong: map[string]Source{
				"SPACE_MASTER_KEY does not fit":               {MasterKey: otherKey},
				"SPACE_MASTER_KEY_FILE (/other) does not fit": {MasterKeyFile: "/other"},
				"SPACE_PASSPHRASE is set":                     {Passphrase: "x"},
			},
		},
		{
			name: "raw", create: Source{MasterKey: rawKey, Passphrase: "not this"}, source: "raw",
			right: []Source{{MasterKey: strings.ToUpper(rawKey) + "\n"}, {MasterKeyFile: "/raw"}},
			wrong: map[string]Source{
				"SPACE_MASTER_KEY does not fit": {MasterKey: otherKey},
				"set SPACE_MASTER_KEY":          {},
				"SPACE_PASSPHRASE is set":       {Passphrase: "x"},
			},
		},
		{
			name: "passphrase", create: Source{Passphrase: "correct horse"}, source: "passphrase",
			right: []Source{
				{Passphrase: "correct horse"}, {PassphraseFile: "/phrase"},
				{Prompt: func(dir string) (string, error) {
					if dir != home {
						t.Errorf("asked for the store in %q", dir)
					}
					return "correct horse", nil
				}},
			},
			wrong: map[string]Source{
				"SPACE_PASSPHRASE does not fit": {Passphrase: "Correct horse"},
				"set SPACE_PASSPHRASE":          {},
				"not the passphrase":            {Prompt: func(string) (string, error) { return "x", nil }},
				"nobody there":                  {Prompt: func(string) (string, error) { return "", errors.New("nobody there") }},
				"SPACE_MASTER_KEY does not fit": {MasterKey: rawKey},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fsys := newHome(t)
			put(t, fsys, "/other", otherKey+"\n")
			put(t, fsys, "/raw", rawKey)
			put(t, fsys, "/phrase", "correct horse\r\n")
			made := mustCreate(t, fsys, tc.create)
			if got := made.Describe().Source; got != tc.source {
				t.Errorf("source %q, want %q", got, tc.source)
			}
			if made.Current() != 1 {
				t.Errorf("current version %d", made.Current())
			}
			before := dump(t, fsys)
			if _, ok := before["master.key"]; ok != (tc.source == "file") {
				t.Errorf("master.key exists: %v", ok)
			}
			for _, src := range tc.right {
				r := mustOpen(t, fsys, src)
				if !maps.Equal(secretsOf(r), secretsOf(made)) || r.StoreID() != made.StoreID() {
					t.Errorf("%+v: other secrets", src)
				}
			}
			for part, src := range tc.wrong {
				_, err := Open(fsys, home, src, quiet)
				wantKind(t, err, capsule.WrongKey, part)
			}
			text, err := made.Export()
			if err != nil {
				t.Fatal(err)
			}
			mustOpen(t, fsys, Source{MasterKey: text})
			if !maps.Equal(dump(t, fsys), before) {
				t.Error("opening changed files")
			}
			// Both fingerprints are told, no key is.
			_, err = Open(fsys, home, Source{MasterKey: otherKey}, quiet)
			other, _ := parseGivenKey("", otherKey)
			wantKind(t, err, capsule.WrongKey, made.Fingerprint(), other.fingerprint())
			if strings.Contains(err.Error(), otherKey) {
				t.Error("the error shows the key")
			}
		})
	}
}

func TestSourceTextErrors(t *testing.T) {
	fsys := newHome(t)
	made := mustCreate(t, fsys, Source{})
	text, _ := made.Export()
	put(t, fsys, "/empty", "\n")
	put(t, fsys, "/two", "one\ntwo\n")
	put(t, fsys, "/huge", strings.Repeat("x", maxKeyText+1))
	for _, tc := range []struct {
		src  Source
		kind capsule.ErrorKind
		part string
	}{
		{Source{MasterKey: "abc"}, capsule.Invalid, "64 hex digits"},
		{Source{MasterKey: rawKey[:63] + "x"}, capsule.Invalid, "64 hex digits"},
		{Source{MasterKey: strings.Replace(text, "v1 ", "v1 0", 1)}, capsule.Damaged, "SPACE_MASTER_KEY is damaged"},
		{Source{MasterKey: "some-text with dashes"}, capsule.Invalid, "64 hex digits"},
		{Source{MasterKeyFile: "/absent"}, capsule.WrongKey, "SPACE_MASTER_KEY_FILE (/absent)"},
		{Source{PassphraseFile: "/absent"}, capsule.WrongKey, "SPACE_PASSPHRASE_FILE (/absent)"},
		{Source{MasterKeyFile: "/huge"}, capsule.Invalid, "longer"},
		{Source{PassphraseFile: "/empty"}, capsule.Invalid, "one line"},
		{Source{PassphraseFile: "/two"}, capsule.Invalid, "one line"},
	} {
		_, err := Open(fsys, home, tc.src, quiet)
		wantKind(t, err, tc.kind, tc.part)
		if strings.Contains(err.Error(), rawKey[:63]) {
			t.Error("the error shows the key")
		}
	}
}

func TestSourceFromEnv(t *testing.T) {
	env := map[string]string{"SPACE_MASTER_KEY": "a", "SPACE_MASTER_KEY_FILE": "b", "SPACE_PASSPHRASE": "c", "SPACE_PASSPHRASE_FILE": "d"}
	s := SourceFromEnv(func(k string) string { return env[k] })
	if s.MasterKey != "a" || s.MasterKeyFile != "b" || s.Passphrase != "c" || s.PassphraseFile != "d" {
		t.Errorf("got %+v", s)
	}
}

func TestNoKeyRing(t *testing.T) {
	fsys := newHome(t)
	_, err := Open(fsys, home, Source{}, quiet)
	wantKind(t, err, capsule.NotFound, "/home/keys")
	if dump(t, fsys) != nil {
		t.Error("Open made something")
	}
	wantKind(t, Import(fsys, home, rawKey), capsule.NotFound)
	mustCreate(t, fsys, Source{})
	_, err = Create(fsys, home, Source{})
	wantKind(t, err, capsule.Exists)
}

func TestCreateTakesMasterKeyThatIsThere(t *testing.T) {
	fsys := newHome(t)
	if err := fsys.MkdirAll(home+"/keys", 0o700); err != nil {
		t.Fatal(err)
	}
	key, _ := parseGivenKey("", rawKey)
	put(t, fsys, home+"/keys/master.key", key.text())
	if r := mustCreate(t, fsys, Source{}); r.Fingerprint() != key.fingerprint() {
		t.Error("another key was made")
	}
}

func TestRotate(t *testing.T) {
	key := func(s string) Source { return Source{MasterKey: s} }
	for _, tc := range []struct {
		name      string
		from      Source
		to        *Source
		open      Source // what opens it afterwards
		sameKEK   bool
		source    string
		masterKey bool
	}{
		{"file", Source{}, nil, Source{}, false, "file", true},
		{"file to key", Source{}, &Source{MasterKey: rawKey}, key(rawKey), false, "raw", false},
		{"file to passphrase", Source{}, &Source{Passphrase: "p"}, Source{Passphrase: "p"}, false, "passphrase", false},
		{"key kept", key(rawKey), nil, key(rawKey), true, "raw", false},
		{"key to file", key(rawKey), &Source{}, Source{}, false, "file", true},
		{"passphrase kept", Source{Passphrase: "p"}, nil, Source{Passphrase: "p"}, true, "passphrase", false},
		{"passphrase to passphrase", Source{Passphrase: "p"}, &Source{Passphrase: "q"}, Source{Passphrase: "q"}, false, "passphrase", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fsys := newHome(t)
			mustCreate(t, fsys, tc.from)
			r := mustOpen(t, fsys, tc.from)
			before, fingerprint := secretsOf(r), r.Fingerprint()
			if err := r.Rotate(tc.to); err != nil {
				t.Fatal(err)
			}
			if r.Current() != 2 || !contains(secretsOf(r), before) {
				t.Error("no new data key, or an old one is gone")
			}
			if same := r.Fingerprint() == fingerprint; same != tc.sameKEK {
				t.Errorf("master key is the same: %v", same)
			}
			again := mustOpen(t, fsys, tc.open)
			if !maps.Equal(secretsOf(again), secretsOf(r)) || again.Current() != 2 {
				t.Error("not what was there before")
			}
			if got := again.Describe(); got.Source != tc.source || got.Generation != 2 || len(got.Versions) != 2 || got.Versions[0].Current || !got.Versions[1].Current {
				t.Errorf("described as %+v", got)
			}
			files := dump(t, fsys)
			if _, ok := files["master.key"]; ok != tc.masterKey {
				t.Errorf("master.key exists: %v", ok)
			}
			delete(files, "master.key")
			if len(files) != 2 || files["keyring"] != files["keyring.bak"] {
				t.Errorf("files left: %v", slices.Sorted(maps.Keys(files)))
			}
			if !tc.sameKEK && tc.from.Passphrase+tc.from.MasterKey != "" {
				_, err := Open(fsys, home, tc.from, quiet)
				wantKind(t, err, capsule.WrongKey)
			}
			if err := again.Rotate(nil); err != nil || again.Current() != 3 {
				t.Errorf("second rotation: version %d, %v", again.Current(), err)
			}
		})
	}
}

func TestRotateRefuses(t *testing.T) {
	fsys := newHome(t)
	r := mustCreate(t, fsys, Source{MasterKey: rawKey})
	before := dump(t, fsys)
	wantKind(t, r.Rotate(&Source{MasterKey: rawKey}), capsule.Invalid, "already")
	wantKind(t, r.Rotate(&Source{MasterKey: "x"}), capsule.Invalid)
	if r.Current() != 1 || !maps.Equal(dump(t, fsys), before) {
		t.Error("something changed")
	}
}

func TestDropUnused(t *testing.T) {
	fsys := newHome(t)
	r := mustCreate(t, fsys, Source{})
	for range 3 {
		if err := r.Rotate(nil); err != nil {
			t.Fatal(err)
		}
	}
	all := secretsOf(r)
	if err := r.DropUnused(func(v uint32) bool { return v == 2 }); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Ring{r, mustOpen(t, fsys, Source{})} {
		var left []uint32
		for _, v := range r.Versions() {
			left = append(left, v.Version)
		}
		if !slices.Equal(left, []uint32{2, 4}) || r.Current() != 4 || !contains(all, secretsOf(r)) {
			t.Errorf("left: %v, current %d", left, r.Current())
		}
		if _, ok := r.SegmentKey(1); ok {
			t.Error("version 1 still has a key")
		}
	}
	before := dump(t, fsys)
	if err := r.DropUnused(func(v uint32) bool { return true }); err != nil || !maps.Equal(dump(t, fsys), before) {
		t.Errorf("nothing to drop: %v, or files changed", err)
	}
	// A version number never comes back.
	if err := r.DropUnused(func(uint32) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := r.Rotate(nil); err != nil || r.Current() != 5 {
		t.Errorf("version %d after 4, %v", r.Current(), err)
	}
}

func TestTooManyVersions(t *testing.T) {
	fsys := newHome(t)
	mustCreate(t, fsys, Source{MasterKey: rawKey})
	r := mustOpen(t, fsys, Source{MasterKey: rawKey})
	for len(r.secrets.DataKeys) < maxVersions {
		r.secrets.DataKeys = append(r.secrets.DataKeys, newDataKey(uint32(len(r.secrets.DataKeys)+1)))
	}
	wantKind(t, r.Rotate(nil), capsule.Conflict, "gc")
	// The limit itself can be written and read.
	if err := r.DropUnused(func(v uint32) bool { return v != 1 }); err != nil {
		t.Fatal(err)
	}
	if err := r.Rotate(nil); err != nil {
		t.Fatal(err)
	}
	if n := len(mustOpen(t, fsys, Source{MasterKey: rawKey}).Versions()); n != maxVersions {
		t.Errorf("%d versions came back", n)
	}
}

func TestExportImport(t *testing.T) {
	for _, src := range []Source{{}, {MasterKey: rawKey}, {Passphrase: "p"}} {
		fsys := newHome(t)
		r := mustCreate(t, fsys, src)
		text, err := r.Export()
		if err != nil {
			t.Fatal(err)
		}
		fsys.Remove(home + "/keys/master.key")
		_, err = Open(fsys, home, Source{}, quiet)
		wantKind(t, err, capsule.WrongKey)

		before := dump(t, fsys)
		wantKind(t, Import(fsys, home, strings.Repeat("a", 64)), capsule.WrongKey, r.Fingerprint())
		wantKind(t, Import(fsys, home, text[:len(text)-1]), capsule.Damaged)
		if !maps.Equal(dump(t, fsys), before) {
			t.Error("a refused import changed files")
		}
		if err := Import(fsys, home, "  "+strings.ToUpper(text)+"\n"); err != nil {
			t.Fatal(err)
		}
		got := mustOpen(t, fsys, Source{})
		if !maps.Equal(secretsOf(got), secretsOf(r)) {
			t.Error("other secrets")
		}
		if found := got.Describe().Found; found != home+"/keys/master.key" {
			t.Errorf("found in %q", found)
		}
	}
}

func TestDescribeTellsNoSecret(t *testing.T) {
	fsys := newHome(t)
	r := mustCreate(t, fsys, Source{MasterKey: rawKey})
	b, err := json.Marshal(r.Describe())
	if err != nil {
		t.Fatal(err)
	}
	out := string(b) + fmt.Sprint(dump(t, fsys))
	secret := secretsOf(r)
	secret["kek"] = [32]byte(r.kek)
	for name, s := range secret {
		if strings.Contains(out, hex.EncodeToString(s[:])) {
			t.Errorf("the %s key is in the clear", name)
		}
	}
}

// flips calls fn with each single-bit error of content.
func flips(content string, fn func(bit int, bad string)) {
	for bit := range 8 * len(content) {
		b := []byte(content)
		b[bit/8] ^= 1 << (bit % 8)
		fn(bit, string(b))
	}
}

func TestFlippedBitInOneCopy(t *testing.T) {
	t.Parallel()
	fsys := newHome(t)
	r := mustCreate(t, fsys, Source{Passphrase: "p"})
	text, _ := r.Export()
	src := Source{MasterKey: text} // spares each round the argon2
	good := dump(t, fsys)
	for _, name := range []string{"keyring", "keyring.bak"} {
		flips(good[name], func(bit int, bad string) {
			if _, err := parseFile([]byte(bad)); capsule.KindOf(err) != capsule.Damaged {
				t.Fatalf("%s bit %d: %v", name, bit, err)
			}
			if bit%8 != bit/8%8 { // what follows need not be seen for every bit of a byte
				return
			}
			put(t, fsys, home+"/keys/"+name, bad)
			var log bytes.Buffer
			again, err := Open(fsys, home, src, logTo(&log))
			if err != nil {
				t.Fatalf("%s bit %d: %v", name, bit, err)
			}
			if !maps.Equal(secretsOf(again), secretsOf(r)) {
				t.Fatalf("%s bit %d: other secrets", name, bit)
			}
			if !maps.Equal(dump(t, fsys), good) {
				t.Fatalf("%s bit %d: not restored", name, bit)
			}
			if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), home+"/keys/"+name) {
				t.Fatalf("%s bit %d: log: %s", name, bit, &log)
			}
		})
	}
}

func TestFlippedBitInBothCopies(t *testing.T) {
	t.Parallel()
	fsys := newHome(t)
	mustCreate(t, fsys, Source{})
	good := dump(t, fsys)["keyring"]
	put(t, fsys, home+"/keys/keyring.bak", strings.Replace(good, "wrapped", "Wrapped", 1))
	flips(good, func(bit int, bad string) {
		put(t, fsys, home+"/keys/keyring", bad)
		before := dump(t, fsys)
		_, err := Open(fsys, home, Source{}, quiet)
		wantKind(t, err, capsule.Damaged, home+"/keys/keyring:", home+"/keys/keyring.bak:")
		if !maps.Equal(dump(t, fsys), before) {
			t.Fatal("files changed")
		}
	})
}

func TestFlippedBitInMasterKey(t *testing.T) {
	fsys := newHome(t)
	r := mustCreate(t, fsys, Source{})
	good := dump(t, fsys)["master.key"]
	flips(good, func(bit int, bad string) {
		put(t, fsys, home+"/keys/master.key", bad)
		again, err := Open(fsys, home, Source{}, quiet)
		if err == nil { // letter case and the space between words carry nothing
			if !maps.Equal(secretsOf(again), secretsOf(r)) {
				t.Fatalf("bit %d: other secrets", bit)
			}
			return
		}
		wantKind(t, err, capsule.Damaged, home+"/keys/master.key")
	})
	for n := range len(good) - 1 {
		put(t, fsys, home+"/keys/master.key", good[:n])
		_, err := Open(fsys, home, Source{}, quiet)
		wantKind(t, err, capsule.Damaged, home+"/keys/master.key")
	}
}

func TestAlteredHeader(t *testing.T) {
	fsys := newHome(t)
	mustCreate(t, fsys, Source{MasterKey: rawKey})
	f, err := parseFile([]byte(dump(t, fsys)["keyring"]))
	if err != nil {
		t.Fatal(err)
	}
	f.StoreID[0] ^= 1 // with a right checksum: no accident
	for _, name := range []string{"keyring", "keyring.bak"} {
		put(t, fsys, home+"/keys/"+name, string(encodeFile(*f)))
	}
	_, err = Open(fsys, home, Source{MasterKey: rawKey}, quiet)
	wantKind(t, err, capsule.Damaged, "altered")
}

func TestNewerVersion(t *testing.T) {
	fsys := newHome(t)
	mustCreate(t, fsys, Source{MasterKey: rawKey})
	f, err := parseFile([]byte(dump(t, fsys)["keyring"]))
	if err != nil {
		t.Fatal(err)
	}
	f.Version = fileVersion + 1
	put(t, fsys, home+"/keys/keyring", string(encodeFile(*f)))
	before := dump(t, fsys)
	_, err = Open(fsys, home, Source{MasterKey: rawKey}, quiet)
	wantKind(t, err, capsule.Invalid, "newer spacectl")
	if !maps.Equal(dump(t, fsys), before) {
		t.Error("an older copy replaced the newer program's")
	}
}

func TestCopiesOfTwoStores(t *testing.T) {
	a, b := newHome(t), newHome(t)
	mustCreate(t, a, Source{MasterKey: rawKey})
	mustCreate(t, b, Source{MasterKey: rawKey})
	put(t, a, home+"/keys/keyring.bak", dump(t, b)["keyring"])
	_, err := Open(a, home, Source{MasterKey: rawKey}, quiet)
	wantKind(t, err, capsule.Damaged, "different stores")
}

func TestHostileArgon2Params(t *testing.T) {
	fsys := newHome(t)
	mustCreate(t, fsys, Source{Passphrase: "p"})
	good, err := parseFile([]byte(dump(t, fsys)["keyring"]))
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*argon2Params){
		func(p *argon2Params) { p.MemoryKiB = 1<<20 + 1 },
		func(p *argon2Params) { p.MemoryKiB = 0 },
		func(p *argon2Params) { p.Time = 17 },
		func(p *argon2Params) { p.Time = 0 },
		func(p *argon2Params) { p.Threads = 17 },
		func(p *argon2Params) { p.Threads = 0 },
		func(p *argon2Params) { p.Salt = nil },
		func(p *argon2Params) { p.Salt = make([]byte, 65) },
	} {
		p := *good.Argon2id
		change(&p)
		bad := *good
		bad.Argon2id = &p
		if _, err := parseFile(encodeFile(bad)); capsule.KindOf(err) != capsule.Damaged {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// TestRealFiles checks modes on the operating system's file system.
func TestRealFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fsys := vfs.OS()
	if _, err := Create(fsys, dir, Source{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o700 | fs.ModeDir, "master.key": 0o600, "keyring": 0o600, "keyring.bak": 0o600} {
		info, err := os.Stat(filepath.Join(dir, "keys", name))
		if err != nil || info.Mode() != want {
			t.Errorf("keys/%s: mode %v, want %v, %v", name, info.Mode(), want, err)
		}
	}
	master := filepath.Join(dir, "keys", "master.key")
	for mode, refused := range map[fs.FileMode]bool{0o644: true, 0o604: true, 0o660: false, 0o400: false} {
		if err := os.Chmod(master, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Open(fsys, dir, Source{}, quiet)
		if !refused && err != nil {
			t.Errorf("mode %#o: %v", mode, err)
		} else if refused {
			wantKind(t, err, capsule.Denied, master, "chmod 600")
		}
	}
	// A given file may be open to others: secrets get mounted so.
	text, err := os.ReadFile(master)
	if err != nil {
		t.Fatal(err)
	}
	given := filepath.Join(dir, "given")
	if err := os.WriteFile(given, text, 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if _, err := Open(fsys, dir, Source{MasterKeyFile: given}, logTo(&log)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), given) {
		t.Errorf("no warning: %s", &log)
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	fsys := newHome(t)
	r := mustCreate(t, fsys, Source{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				v := r.Current()
				if _, ok := r.SegmentKey(v); !ok {
					t.Errorf("the current version %d has no key", v)
				}
				r.Describe()
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 5 {
				if err := r.Rotate(nil); err != nil {
					t.Error(err)
				}
				if err := r.DropUnused(func(v uint32) bool { return v%2 == 0 }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r.Current() != 11 {
		t.Errorf("version %d after ten rotations", r.Current())
	}
}

// TestFailedIO fails each operation of a rotation in turn: the ring works on,
// and what is on disk opens and has all keys that data may be sealed with.
func TestFailedIO(t *testing.T) {
	for step := 0; ; step++ {
		mem := newHome(t)
		mustCreate(t, mem, Source{})
		faults := vfstest.NewFaults(mem)
		r := mustOpen(t, faults, Source{})
		n := 0
		faults.Set(func(op vfstest.Op) error {
			if !op.Mutates() {
				return nil
			}
			n++
			if n-1 == step {
				return syscall.ENOSPC
			}
			return nil
		})
		err := r.Rotate(nil)
		faults.Set(nil)
		if n <= step { // no such step: all were tried
			if err != nil || step < 10 {
				t.Fatalf("%d steps, %v", step, err)
			}
			return
		}
		if err != nil {
			wantKind(t, err, capsule.NoSpace)
			if r.Current() != 1 {
				t.Fatalf("step %d: failed, but version %d is current", step, r.Current())
			}
		}
		inUse := secretsOf(r)
		if again := mustOpen(t, mem, Source{}); !contains(secretsOf(again), inUse) {
			t.Fatalf("step %d: a key is lost", step)
		}
		// When there is room again: either it works, or it says to reopen.
		if err := r.Rotate(nil); err != nil {
			wantKind(t, err, capsule.Unavailable, "open it again")
		}
		again := mustOpen(t, mem, Source{})
		if !contains(secretsOf(again), secretsOf(r)) {
			t.Fatalf("step %d: a key is lost after the second rotation", step)
		}
		if err := again.Rotate(nil); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
	}
}

// TestRestoreFails keeps a store usable whose disk cannot take the restored copy.
func TestRestoreFails(t *testing.T) {
	mem := newHome(t)
	r := mustCreate(t, mem, Source{})
	put(t, mem, home+"/keys/keyring", "junk")
	faults := vfstest.NewFaults(mem)
	faults.Set(func(op vfstest.Op) error {
		if op.Mutates() {
			return syscall.EROFS
		}
		return nil
	})
	var log bytes.Buffer
	again, err := Open(faults, home, Source{}, logTo(&log))
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(secretsOf(again), secretsOf(r)) || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("log: %s", &log)
	}
	wantKind(t, again.Rotate(nil), capsule.Unavailable)
}
