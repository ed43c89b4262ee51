package store

import (
	"hash/crc32"
	"sync"
	"sync/atomic"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/pipeline"
)

// keyCache holds the ciphers of the key ring's data keys, ready for use.
type keyCache struct {
	ring *keyring.Ring
	now  atomic.Pointer[dataKey]
	all  sync.Map // version -> *pipeline.Cipher
}

type dataKey struct {
	version uint32
	cipher  *pipeline.Cipher
}

func newKeyCache(ring *keyring.Ring) (*keyCache, error) {
	k := &keyCache{ring: ring}
	return k, k.refresh()
}

// refresh takes up the ring's current key for what is sealed from now on.
func (k *keyCache) refresh() error {
	v := k.ring.Current()
	c, ok := k.Cipher(v)
	if !ok {
		return capsule.Errorf(capsule.Damaged, "the key ring has no data key %d", v)
	}
	k.now.Store(&dataKey{v, c})
	return nil
}

func (k *keyCache) current() *dataKey { return k.now.Load() }

// Cipher implements pipeline.Keys.
func (k *keyCache) Cipher(version uint32) (*pipeline.Cipher, bool) {
	if c, ok := k.all.Load(version); ok {
		return c.(*pipeline.Cipher), true
	}
	key, ok := k.ring.SegmentKey(version)
	if !ok {
		return nil, false
	}
	c, _ := k.all.LoadOrStore(version, pipeline.NewCipher(key))
	return c.(*pipeline.Cipher), true
}

// metaKeys gives package metafs its keys.
type metaKeys struct{ ring *keyring.Ring }

func (m metaKeys) Current() (uint32, [32]byte) {
	v := m.ring.Current()
	key, _ := m.ring.MetaKey(v)
	return v, key
}

func (m metaKeys) Key(version uint32) ([32]byte, bool) { return m.ring.MetaKey(version) }

func checksum(line string) uint32 {
	return crc32.Checksum([]byte(line), crc32.MakeTable(crc32.Castagnoli))
}

// Keys tells about the store's keys, without secrets.
func (s *Store) Keys() keyring.Info { return s.ring.Describe() }

// RotateKey makes a new data key current and wraps all keys anew, under a new
// master key where src is nil and the store has its own, else under src. What
// is sealed under older keys stays readable, and is sealed again by the next
// garbage collection or in the background.
func (s *Store) RotateKey(src *keyring.Source) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.writable(); err != nil {
		return err
	}
	s.rotating.Lock() // so that the newest key is the one taken up last
	defer s.rotating.Unlock()
	if err := s.ring.Rotate(src); err != nil {
		return err
	}
	return s.keys.refresh()
}

// ExportKey returns the text from which ImportKey restores access.
func (s *Store) ExportKey() (string, error) { return s.ring.Export() }
