package keyring

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/spacestore/space/capsule"
)

// The key ring's file is JSON, a newline, and a line "sha256:" with the hash of
// all before it. Later versions keep that frame, so that damage to a newer file
// is not mistaken for a newer version.
const (
	fileVersion = 1
	// maxFile and maxVersions bound a hostile file; 1024 data keys take 160 KiB.
	maxFile     = 1 << 20
	maxVersions = 1024
)

// Where a store's master key comes from.
const (
	sourceFile       = "file"       // keys/master.key, made by us
	sourceRaw        = "raw"        // given from outside, as a key
	sourcePassphrase = "passphrase" // given from outside, as a passphrase
)

// header is what is in the clear, all of it bound to the secrets as their
// cipher's associated data.
type header struct {
	Version     int           `json:"space_keyring"`
	Generation  uint64        `json:"generation"` // +1 at each change; tells the newer copy
	StoreID     hexID         `json:"store_id"`
	Source      string        `json:"key_source"`
	Argon2id    *argon2Params `json:"argon2id,omitempty"`
	Fingerprint string        `json:"key_fingerprint"`
}

type ringFile struct {
	header
	Wrapped []byte `json:"wrapped"` // nonce, then AES-256-GCM of secrets
}

// secrets is the wrapped block.
type secrets struct {
	HashKey  hexKey    `json:"hash_key"`
	ChunkKey hexKey    `json:"chunk_key"`
	DataKeys []dataKey `json:"data_keys"` // ascending versions; the last is current
}

type dataKey struct {
	Version uint32    `json:"version"`
	Key     hexKey    `json:"key"`
	Created time.Time `json:"created"`
}

func newDataKey(version uint32) dataKey {
	return dataKey{version, hexKey(newMasterKey()), time.Now().UTC().Truncate(time.Second)}
}

// hexID and hexKey are fixed-length bytes that JSON shows as hex.
type (
	hexID  [16]byte
	hexKey [32]byte
)

func (h hexID) MarshalText() ([]byte, error)  { return hex.AppendEncode(nil, h[:]), nil }
func (h *hexID) UnmarshalText(b []byte) error { return decodeHex(h[:], b) }

func (h hexKey) MarshalText() ([]byte, error)  { return hex.AppendEncode(nil, h[:]), nil }
func (h *hexKey) UnmarshalText(b []byte) error { return decodeHex(h[:], b) }

func decodeHex(dst, text []byte) error {
	if len(text) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("want %d hex digits, got %d characters", hex.EncodedLen(len(dst)), len(text))
	}
	_, err := hex.Decode(dst, text)
	return err
}

// argon2Params are the costs of turning a passphrase into a master key.
type argon2Params struct {
	Salt      []byte `json:"salt"`
	Time      uint32 `json:"time"`
	MemoryKiB uint32 `json:"memory_kib"`
	Threads   uint8  `json:"threads"`
}

// Bounds on a hostile file's costs.
const (
	maxArgon2Time    = 16
	maxArgon2Memory  = 1 << 20 // KiB: 1 GiB
	maxArgon2Threads = 16
)

// passphraseCost is what new passphrases get: RFC 9106's second recommended
// choice, 64 MiB and about a tenth of a second. A variable for the tests' sake.
var passphraseCost = argon2Params{Time: 3, MemoryKiB: 64 << 10, Threads: 4}

func newArgon2Params() *argon2Params {
	p := passphraseCost
	p.Salt = make([]byte, 16)
	rand.Read(p.Salt)
	return &p
}

func (p *argon2Params) key(passphrase string) masterKey {
	return masterKey(argon2.IDKey([]byte(passphrase), p.Salt, p.Time, p.MemoryKiB, p.Threads, 32))
}

func (p *argon2Params) check() error {
	if n := len(p.Salt); n < 8 || n > 64 {
		return fmt.Errorf("argon2id salt of %d bytes; want 8 to 64", n)
	}
	if p.Time < 1 || p.Time > maxArgon2Time {
		return fmt.Errorf("argon2id time %d; want 1 to %d", p.Time, maxArgon2Time)
	}
	if p.Threads < 1 || p.Threads > maxArgon2Threads {
		return fmt.Errorf("argon2id threads %d; want 1 to %d", p.Threads, maxArgon2Threads)
	}
	if p.MemoryKiB < 8*uint32(p.Threads) || p.MemoryKiB > maxArgon2Memory {
		return fmt.Errorf("argon2id memory of %d KiB; want %d to %d", p.MemoryKiB, 8*uint32(p.Threads), maxArgon2Memory)
	}
	return nil
}

// seal makes the key ring's file.
func seal(h header, kek masterKey, s secrets) []byte {
	plain := mustJSON(s)
	aead, ad := h.aead(kek)
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	rand.Read(nonce)
	return encodeFile(ringFile{h, aead.Seal(nonce, nonce, plain, ad)})
}

// open returns the secrets. The caller has compared the fingerprint, so that a
// failure here is not a wrong key.
func (f *ringFile) open(kek masterKey) (secrets, error) {
	aead, ad := f.aead(kek)
	n := aead.NonceSize()
	if len(f.Wrapped) < n {
		return secrets{}, fmt.Errorf("the wrapped keys are cut short")
	}
	plain, err := aead.Open(nil, f.Wrapped[:n], f.Wrapped[n:], ad)
	if err != nil {
		return secrets{}, fmt.Errorf("the master key fits, but the file was altered: %w", err)
	}
	var s secrets
	if err := strictJSON(plain, &s); err != nil {
		return secrets{}, fmt.Errorf("the wrapped keys: %w", err)
	}
	last := uint32(0)
	for _, k := range s.DataKeys {
		if k.Version <= last {
			return secrets{}, fmt.Errorf("the wrapped keys are out of order: data key %d after %d", k.Version, last)
		}
		last = k.Version
	}
	if n := len(s.DataKeys); n == 0 || n > maxVersions {
		return secrets{}, fmt.Errorf("%d wrapped data keys; want 1 to %d", n, maxVersions)
	}
	return s, nil
}

func (h *header) aead(kek masterKey) (cipher.AEAD, []byte) {
	key := derive(kek, nil, "space key ring wrap v1")
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(fmt.Sprintf("keyring: AES refused a 32-byte key: %v", err))
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(fmt.Sprintf("keyring: GCM refused AES: %v", err))
	}
	return aead, mustJSON(h)
}

func encodeFile(f ringFile) []byte {
	var out bytes.Buffer
	if err := json.Indent(&out, mustJSON(f), "", "  "); err != nil {
		panic(fmt.Sprintf("keyring: JSON that was just made did not indent: %v", err))
	}
	out.WriteByte('\n')
	return withChecksum(out.Bytes())
}

const sumPrefix = "sha256:"

func withChecksum(body []byte) []byte {
	return fmt.Appendf(slices.Clip(body), "%s%x\n", sumPrefix, sha256.Sum256(body))
}

// parseFile checks and reads a key ring's file. Errors are Damaged, or Invalid
// for a newer version; the caller names the file.
func parseFile(data []byte) (*ringFile, error) {
	damaged := func(format string, args ...any) (*ringFile, error) {
		return nil, capsule.Errorf(capsule.Damaged, format, args...)
	}
	tail := len(sumPrefix) + hex.EncodedLen(sha256.Size) + 1
	if len(data) > maxFile {
		return damaged("longer than %d bytes", maxFile)
	}
	if len(data) < tail {
		return damaged("only %d bytes long", len(data))
	}
	body := data[:len(data)-tail]
	if !bytes.Equal(withChecksum(body), data) {
		return damaged("the checksum does not match")
	}
	var v struct {
		Version int `json:"space_keyring"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return damaged("%v", err)
	}
	if v.Version > fileVersion {
		return nil, capsule.Errorf(capsule.Invalid, "has version %d, this program knows versions up to %d: use a newer spacectl", v.Version, fileVersion)
	}
	var f ringFile
	if err := strictJSON(body, &f); err != nil {
		return damaged("%v", err)
	}
	isPassphrase := f.Source == sourcePassphrase
	switch {
	case f.Version != fileVersion:
		return damaged("there is no version %d", f.Version)
	case f.Generation == 0:
		return damaged("there is no generation 0")
	case !isPassphrase && f.Source != sourceFile && f.Source != sourceRaw:
		return damaged("there is no key source %.20q", f.Source)
	case isPassphrase != (f.Argon2id != nil):
		return damaged("argon2id's parameters do not go with the key source %s", f.Source)
	case isPassphrase && f.Argon2id.check() != nil:
		return damaged("%v", f.Argon2id.check())
	// Only our own encoding, so that what was checked is what is bound to the secrets.
	case !bytes.Equal(encodeFile(f), data):
		return damaged("not as this program writes it")
	}
	return &f, nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("keyring: plain data did not encode as JSON: %v", err))
	}
	return b
}

func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
