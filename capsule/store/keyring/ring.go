package keyring

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
)

const (
	dirName       = "keys"
	ringName      = "keyring"
	backupName    = "keyring.bak"
	masterName    = "master.key"
	newMasterName = "master.key.new" // during a rotation
)

// Ring is a store's open key ring.
type Ring struct {
	files files
	log   *slog.Logger

	change sync.Mutex // held through Rotate and DropUnused
	stuck  error      // guarded by change: why there can be no more changes until the ring is opened again

	mu    sync.RWMutex
	state // replaced whole
}

// state is a key ring in memory.
type state struct {
	head     header
	kek      masterKey
	keptBy   string // what the master key was found in
	ownsFile bool   // keys/master.key holds it
	secrets  secrets
	derived  map[uint32]purposes
}

type purposes struct{ segment, meta [32]byte }

func newState(h header, kek masterKey, keptBy string, ownsFile bool, s secrets) state {
	st := state{h, kek, keptBy, ownsFile, s, make(map[uint32]purposes, len(s.DataKeys))}
	for _, k := range s.DataKeys {
		st.derived[k.Version] = purposes{
			segment: derive(k.Key, h.StoreID[:], "space segments v1"),
			meta:    derive(k.Key, h.StoreID[:], "space metadata v1"),
		}
	}
	return st
}

// files is the keys directory.
type files struct {
	fs  vfs.FS
	dir string
}

func (f files) path(name string) string { return f.fs.PathJoin(f.dir, name) }

func (f files) write(name string, data []byte) error {
	err := vfs.WriteFileAtomic(f.fs, f.path(name), data)
	return capsule.Wrap(ioKind(err), err, "write %s", f.path(name))
}

// master reads one of the master key files.
func (f files) master(name string) (masterKey, error) {
	path := f.path(name)
	data, mode, err := readFile(f.fs, path, maxKeyText)
	if err != nil {
		return masterKey{}, capsule.Wrap(ioKind(err), err, "read %s", path)
	}
	// Everyone's is refused, as ssh does. A group's is not: Kubernetes gives
	// every file of a volume to a group of its own (fsGroup).
	if mode&0o007 != 0 {
		return masterKey{}, capsule.Errorf(capsule.Denied, "%s can be read by everyone (mode %#o); chmod 600 it, and rotate the key if others use this machine", path, mode)
	}
	return parseMasterKey(path, string(data))
}

// Create makes the key ring of a new store in homeDir, with the key that src
// gives or a new one in keys/master.key. The kind is Exists if there is a key
// ring, be it a damaged one. A Create that was cut short can be done again.
func Create(fs vfs.FS, homeDir string, src Source) (*Ring, error) {
	f := files{fs, fs.PathJoin(homeDir, dirName)}
	log := slog.New(slog.DiscardHandler)
	g, err := src.given(fs, log)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{ringName, backupName} {
		if _, err := fs.Stat(f.path(name)); err == nil {
			return nil, capsule.Errorf(capsule.Exists, "there is a key ring already: %s", f.path(name))
		} else if ioKind(err) != capsule.NotFound {
			return nil, capsule.Wrap(ioKind(err), err, "look for a key ring")
		}
	}
	if err := fs.MkdirAll(f.dir, 0o700); err != nil {
		return nil, capsule.Wrap(ioKind(err), err, "make %s", f.dir)
	}
	if err := vfs.SyncDir(fs, homeDir); err != nil {
		return nil, capsule.Wrap(ioKind(err), err, "make %s durable", f.dir)
	}

	h := header{Version: fileVersion, Generation: 1, Source: sourceFile}
	rand.Read(h.StoreID[:])
	var kek masterKey
	keptBy := f.path(masterName)
	if g != nil {
		kek, err = h.take(g)
		keptBy = g.name
	} else {
		// A key that is there without a key ring is the operator's choice, or
		// what a Create left that was cut short here.
		kek, err = f.master(masterName)
		if capsule.KindOf(err) == capsule.NotFound {
			kek = newMasterKey()
			err = f.write(masterName, []byte(kek.text()+"\n"))
		}
	}
	if err != nil {
		return nil, err
	}
	h.Fingerprint = kek.fingerprint()
	s := secrets{HashKey: hexKey(newMasterKey()), ChunkKey: hexKey(newMasterKey()), DataKeys: []dataKey{newDataKey(1)}}
	data := seal(h, kek, s)
	for _, name := range []string{ringName, backupName} {
		if err := f.write(name, data); err != nil {
			return nil, err
		}
	}
	return &Ring{files: f, log: log, state: newState(h, kek, keptBy, g == nil, s)}, nil
}

// take makes the given key or passphrase the header's, and returns the master key.
func (h *header) take(g *given) (masterKey, error) {
	h.Source, h.Argon2id = sourceRaw, nil
	if g.passphrase != "" {
		h.Source, h.Argon2id = sourcePassphrase, newArgon2Params()
	}
	return g.masterKey(h)
}

// Open opens the key ring in homeDir. Errors have the kind NotFound if there is
// none, WrongKey if the master key does not fit or there is none, Damaged if no
// copy is whole. One whole copy is enough: the other is restored from it, with
// a warning to log, and an interrupted rotation is finished or undone.
func Open(fs vfs.FS, homeDir string, src Source, log *slog.Logger) (*Ring, error) {
	f := files{fs, fs.PathJoin(homeDir, dirName)}
	best, copies, err := f.newest()
	if err != nil {
		return nil, err
	}
	kek, keptBy, err := f.findKey(&best.header, homeDir, src, log)
	if err != nil {
		return nil, err
	}
	s, err := best.open(kek)
	if err != nil {
		return nil, capsule.Wrap(capsule.Damaged, err, "key ring %s", best.path)
	}

	// The key is right; from here on files may change.
	ownsFile := keptBy == f.path(masterName) || keptBy == f.path(newMasterName)
	r := &Ring{files: f, log: log, state: newState(best.header, kek, keptBy, ownsFile, s)}
	for _, c := range copies {
		if bytes.Equal(c.data, best.data) {
			continue
		}
		why := c.err
		if why == nil {
			why = errors.New("it was older: a change to the key ring was interrupted")
		}
		if err := f.write(c.name, best.data); err != nil {
			log.Error("a copy of the key ring is unusable and could not be restored; the other one is in use", "file", c.path, "why", why, "error", err)
			r.stuck = err
			continue
		}
		log.Warn("a copy of the key ring was unusable and has been restored from the other", "file", c.path, "why", why)
	}
	if ownsFile && r.stuck == nil {
		if r.stuck = f.settleMaster(keptBy); r.stuck != nil {
			log.Error("an interrupted key rotation could not be finished; the keys are in use all the same", "error", r.stuck)
		} else {
			r.keptBy = f.path(masterName)
		}
	}
	return r, nil
}

// settleMaster brings keys/master.key to where only the key in use is left;
// that one is in the file keptBy.
func (f files) settleMaster(keptBy string) error {
	var err error
	if keptBy == f.path(newMasterName) {
		err = f.fs.Rename(keptBy, f.path(masterName))
	} else {
		err = f.fs.Remove(f.path(newMasterName))
		if err != nil && ioKind(err) == capsule.NotFound {
			return nil
		}
	}
	if err == nil {
		err = vfs.SyncDir(f.fs, f.dir)
	}
	return capsule.Wrap(ioKind(err), err, "finish the change of %s", f.path(masterName))
}

// ringCopy is one of the key ring's two files, as found.
type ringCopy struct {
	name, path string
	data       []byte
	*ringFile
	err error // why ringFile is nil
}

func (f files) readCopy(name string) ringCopy {
	c := ringCopy{name: name, path: f.path(name)}
	var err error
	if c.data, _, err = readFile(f.fs, c.path, maxFile); err == nil {
		c.ringFile, err = parseFile(c.data)
	}
	c.err = capsule.Wrap(ioKind(err), err, "%s", c.path)
	return c
}

// newest reads both copies and returns the one that counts.
func (f files) newest() (*ringCopy, []ringCopy, error) {
	copies := []ringCopy{f.readCopy(ringName), f.readCopy(backupName)}
	a, b := &copies[0], &copies[1]
	for _, c := range copies {
		if capsule.KindOf(c.err) == capsule.Invalid { // a newer program's; the other copy may be out of date
			return nil, nil, capsule.Wrap(capsule.Invalid, c.err, "key ring")
		}
	}
	switch {
	case a.err == nil && b.err == nil:
		if a.StoreID != b.StoreID {
			return nil, nil, capsule.Errorf(capsule.Damaged, "%s and %s belong to different stores; remove the one that is not this store's", a.path, b.path)
		}
		if b.Generation > a.Generation {
			return b, copies, nil
		}
		return a, copies, nil
	case a.err == nil:
		return a, copies, nil
	case b.err == nil:
		return b, copies, nil
	}
	kindA, kindB := capsule.KindOf(a.err), capsule.KindOf(b.err)
	switch {
	case kindA == capsule.NotFound && kindB == capsule.NotFound:
		return nil, nil, capsule.Errorf(capsule.NotFound, "there is no key ring in %s", f.dir)
	case kindA == capsule.NotFound || kindB == capsule.Damaged:
		kindA = kindB
	}
	return nil, nil, &capsule.Error{Kind: kindA, Err: errors.Join(a.err, b.err),
		Msg: "no copy of the key ring can be read; without one the data is lost, so restore " + f.dir + " from a backup"}
}

// findKey returns the master key that fits h and where it was found.
func (f files) findKey(h *header, homeDir string, src Source, log *slog.Logger) (kek masterKey, keptBy string, err error) {
	g, err := src.given(f.fs, log)
	if capsule.KindOf(err) == capsule.NotFound { // which is not the key ring that is missing
		return kek, "", capsule.Errorf(capsule.WrongKey, "there is no key: %v", err)
	}
	if err != nil {
		return kek, "", err
	}
	if g != nil {
		kek, err := g.masterKey(h)
		if err != nil {
			return kek, "", err
		}
		if have := kek.fingerprint(); have != h.Fingerprint {
			instead := "give that key"
			if h.Source == sourceFile {
				instead += ", or unset the variable to use " + f.path(masterName)
			}
			return kek, "", capsule.Errorf(capsule.WrongKey, "%s does not fit this store: its fingerprint is %s, the store's master key has %s; %s",
				g.name, have, h.Fingerprint, instead)
		}
		return kek, g.name, nil
	}

	// A rotation that was cut short leaves the key in either of two files.
	var trouble error // the first that either of them gave
	for _, name := range []string{masterName, newMasterName} {
		kek, err := f.master(name)
		if err == nil && kek.fingerprint() == h.Fingerprint {
			return kek, f.path(name), nil
		}
		if err == nil {
			err = capsule.Errorf(capsule.WrongKey, "%s is not this store's: its fingerprint is %s, the store's master key has %s; put the right one in place with \"spacectl key import\"",
				f.path(name), kek.fingerprint(), h.Fingerprint)
		}
		if trouble == nil && capsule.KindOf(err) != capsule.NotFound {
			trouble = err
		}
	}
	if h.Source == sourcePassphrase {
		const ask = "this store's master key is a passphrase"
		if src.Prompt == nil {
			return kek, "", capsule.Errorf(capsule.WrongKey, "%s; set %s or %s", ask, EnvPassphrase, EnvPassphraseFile)
		}
		answer, err := src.Prompt(homeDir)
		if err != nil {
			return kek, "", capsule.Wrap(capsule.WrongKey, err, ask)
		}
		kek := h.Argon2id.key(answer)
		if kek.fingerprint() != h.Fingerprint {
			return kek, "", capsule.Errorf(capsule.WrongKey, "that is not the passphrase of this store")
		}
		return kek, "passphrase", nil
	}
	if trouble != nil {
		return kek, "", trouble
	}
	if h.Source == sourceRaw {
		return kek, "", capsule.Errorf(capsule.WrongKey, "this store's master key (fingerprint %s) is kept outside of it; set %s or %s, or put it in %s with \"spacectl key import\"",
			h.Fingerprint, EnvMasterKey, EnvMasterKeyFile, f.path(masterName))
	}
	return kek, "", capsule.Errorf(capsule.WrongKey, "%s is missing and no other key was given; put it back from your export with \"spacectl key import\", or set %s (fingerprint %s)",
		f.path(masterName), EnvMasterKey, h.Fingerprint)
}

// Rotate makes a new data key current and wraps all keys anew. With src nil the
// master key is replaced by a new one if it is the store's own (in
// keys/master.key), and stays if it was given. Otherwise src gives the new
// master key; an empty Source makes one in keys/master.key. Older data keys
// stay until [Ring.DropUnused].
func (r *Ring) Rotate(src *Source) error {
	r.change.Lock()
	defer r.change.Unlock()
	old := r.snapshot()
	h, kek, keptBy, ownsFile := old.head, old.kek, old.keptBy, old.ownsFile
	var g *given
	if src != nil {
		var err error
		if g, err = src.given(r.files.fs, r.log); err != nil {
			return err
		}
	}
	switch {
	case g != nil:
		var err error
		if kek, err = h.take(g); err != nil {
			return err
		}
		if kek == old.kek {
			return capsule.Errorf(capsule.Invalid, "the key in %s is this store's master key already; give a new one", g.name)
		}
		keptBy, ownsFile = g.name, false
	case src != nil || ownsFile:
		h.Source, h.Argon2id = sourceFile, nil
		kek, keptBy, ownsFile = newMasterKey(), r.files.path(masterName), true
	}
	h.Fingerprint = kek.fingerprint()

	keys := old.secrets.DataKeys
	if len(keys) >= maxVersions {
		return capsule.Errorf(capsule.Conflict, "the store has %d data keys, which is the limit; seal its data again with \"spacectl gc\" so that old ones can go", len(keys))
	}
	s := old.secrets
	s.DataKeys = append(slices.Clone(keys), newDataKey(keys[len(keys)-1].Version+1))
	return r.commit(newState(h, kek, keptBy, ownsFile, s))
}

// DropUnused removes the older data keys that keep says no data needs. The
// current one always stays.
func (r *Ring) DropUnused(keep func(version uint32) bool) error {
	r.change.Lock()
	defer r.change.Unlock()
	next := r.snapshot()
	s := next.secrets
	current := s.DataKeys[len(s.DataKeys)-1].Version
	s.DataKeys = slices.DeleteFunc(slices.Clone(s.DataKeys), func(k dataKey) bool {
		return k.Version != current && !keep(k.Version)
	})
	if len(s.DataKeys) == len(next.secrets.DataKeys) {
		return nil
	}
	return r.commit(newState(next.head, next.kek, next.keptBy, next.ownsFile, s))
}

func (r *Ring) snapshot() state {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.state
}

// commit makes next durable and then adopts it. The caller holds r.change.
//
// If it fails once the first copy may have changed, the disk is in a state that
// Open settles, and another change could spoil that: the ring works on as it
// was, but changes no more.
func (r *Ring) commit(next state) error {
	if r.stuck != nil {
		return &capsule.Error{Kind: capsule.Unavailable, Err: r.stuck,
			Msg: "an earlier change of the key ring was not finished; close the store, open it again, and repeat this"}
	}
	f, old := r.files, r.snapshot()
	next.head.Generation++
	data := seal(next.head, next.kek, next.secrets)
	newFile := next.ownsFile && next.kek != old.kek
	if newFile {
		if err := f.write(newMasterName, []byte(next.kek.text()+"\n")); err != nil {
			return err
		}
	}
	for _, name := range []string{ringName, backupName} {
		if err := f.write(name, data); err != nil {
			if c := f.readCopy(ringName); c.err != nil || c.Generation != old.head.Generation {
				r.stuck = err
			}
			return err
		}
	}
	r.mu.Lock()
	r.state = next
	r.mu.Unlock()

	switch {
	case newFile:
		r.stuck = f.settleMaster(f.path(newMasterName))
	case old.ownsFile && !next.ownsFile:
		// The key of no store now.
		err := f.fs.Remove(f.path(masterName))
		if err == nil {
			err = vfs.SyncDir(f.fs, f.dir)
		}
		if err != nil {
			r.log.Warn("the former master key could not be removed", "file", f.path(masterName), "error", err)
		}
	}
	if r.stuck != nil {
		r.log.Warn("the new keys are in use, but the last step of the rotation is left to the next start", "error", r.stuck)
	}
	return nil
}

// StoreID names the store.
func (r *Ring) StoreID() [16]byte { return r.snapshot().head.StoreID }

// HashKey keys segment IDs. It is the same for the store's life.
func (r *Ring) HashKey() [32]byte { return r.snapshot().secrets.HashKey }

// ChunkKey keys the chunker's parameters. It is the same for the store's life.
func (r *Ring) ChunkKey() [32]byte { return r.snapshot().secrets.ChunkKey }

// Current returns the version of the data key that new data is sealed with.
func (r *Ring) Current() uint32 {
	s := r.snapshot()
	return s.current()
}

func (s *state) current() uint32 { return s.secrets.DataKeys[len(s.secrets.DataKeys)-1].Version }

// SegmentKey returns the key for segments of a data key's version, if the ring has it.
func (r *Ring) SegmentKey(version uint32) ([32]byte, bool) {
	p, ok := r.snapshot().derived[version]
	return p.segment, ok
}

// MetaKey returns the key for metadata of a data key's version, if the ring has it.
func (r *Ring) MetaKey(version uint32) ([32]byte, bool) {
	p, ok := r.snapshot().derived[version]
	return p.meta, ok
}

// Fingerprint names the master key.
func (r *Ring) Fingerprint() string { return r.snapshot().head.Fingerprint }

// VersionInfo is what may be shown of a data key.
type VersionInfo struct {
	Version uint32    `json:"version"`
	Created time.Time `json:"created"`
	Current bool      `json:"current"` // false: kept for the data that is still sealed with it
}

// Versions returns the data keys, oldest first.
func (r *Ring) Versions() []VersionInfo {
	s := r.snapshot()
	v := make([]VersionInfo, len(s.secrets.DataKeys))
	for i, k := range s.secrets.DataKeys {
		v[i] = VersionInfo{k.Version, k.Created, k.Version == s.current()}
	}
	return v
}

// Info is what may be shown of a key ring.
type Info struct {
	StoreID     string        `json:"store_id"`
	Source      string        `json:"source"`      // file, raw or passphrase
	Found       string        `json:"found"`       // the file or variable the master key was taken from
	Fingerprint string        `json:"fingerprint"` // of the master key
	Generation  uint64        `json:"generation"`
	Versions    []VersionInfo `json:"versions"`
}

// Describe tells about the ring without its secrets.
func (r *Ring) Describe() Info {
	s := r.snapshot()
	return Info{
		StoreID:     fmt.Sprintf("%x", s.head.StoreID),
		Source:      s.head.Source,
		Found:       s.keptBy,
		Fingerprint: s.head.Fingerprint,
		Generation:  s.head.Generation,
		Versions:    r.Versions(),
	}
}

// Export returns the master key as a line of text, for [Import] or
// SPACE_MASTER_KEY. It works for a passphrase too: the line then replaces it.
func (r *Ring) Export() (string, error) { return r.snapshot().kek.text(), nil }

// Import installs an exported master key as keys/master.key of the store in
// homeDir, if it opens the store's key ring.
func Import(fs vfs.FS, homeDir, text string) error {
	f := files{fs, fs.PathJoin(homeDir, dirName)}
	kek, err := parseGivenKey("the given text", text)
	if err != nil {
		return err
	}
	best, _, err := f.newest()
	if err != nil {
		return err
	}
	if have := kek.fingerprint(); have != best.Fingerprint {
		return capsule.Errorf(capsule.WrongKey, "the given master key does not fit this store: its fingerprint is %s, the store's has %s; nothing was changed", have, best.Fingerprint)
	}
	if _, err := best.open(kek); err != nil {
		return capsule.Wrap(capsule.Damaged, err, "key ring %s", best.path)
	}
	return f.write(masterName, []byte(kek.text()+"\n"))
}
