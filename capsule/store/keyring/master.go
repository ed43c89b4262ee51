package keyring

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/spacestore/space/capsule"
)

// A master key's text, in keys/master.key and in an export, is one line:
//
//	space-master-key-v1 <64 hex digits> <CRC-32C of all before, 8 hex digits>
const masterTag = "space-master-key-v1"

// maxKeyText bounds what is read of a file that should hold a key or a passphrase.
const maxKeyText = 4096

type masterKey [32]byte

func newMasterKey() masterKey {
	var k masterKey
	rand.Read(k[:]) // never fails (crypto/rand.Read)
	return k
}

func (k masterKey) text() string {
	line := masterTag + " " + hex.EncodeToString(k[:])
	return fmt.Sprintf("%s %08x", line, crc32.Checksum([]byte(line), castagnoli))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// parseMasterKey reads a master key's text; letter case and space around it do
// not matter. what names the text in errors, which never quote it.
func parseMasterKey(what, s string) (masterKey, error) {
	var k masterKey
	fields := strings.Fields(strings.ToLower(s))
	if !isExported(s) {
		return k, capsule.Errorf(capsule.Damaged, "%s does not hold a master key (a line that starts with %q)", what, masterTag)
	}
	if len(fields) == 3 && len(fields[1]) == hex.EncodedLen(len(k)) {
		if _, err := hex.Decode(k[:], []byte(fields[1])); err == nil && k.text() == strings.Join(fields, " ") {
			return k, nil
		}
	}
	return masterKey{}, capsule.Errorf(capsule.Damaged, "the master key in %s is damaged: its checksum does not match; use another copy of it", what)
}

// parseGivenKey reads a key that a user gives: the exported text, or 64 hex digits.
func parseGivenKey(what, s string) (masterKey, error) {
	var k masterKey
	s = strings.TrimSpace(s)
	if len(s) == hex.EncodedLen(len(k)) {
		if _, err := hex.Decode(k[:], []byte(s)); err == nil {
			return k, nil
		}
	}
	if !isExported(s) {
		return k, capsule.Errorf(capsule.Invalid, "%s is no master key: want 64 hex digits or the line that \"spacectl key export\" prints", what)
	}
	return parseMasterKey(what, s)
}

// isExported reports whether s is a master key's text, of any version and whole or not.
func isExported(s string) bool {
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(s)), "space-master-key-")
}

// fingerprint names a master key without telling anything about it.
func (k masterKey) fingerprint() string {
	d := derive(k, nil, "space master key fingerprint v1")
	return hex.EncodeToString(d[:8])
}

// derive makes a key for one purpose out of another (HKDF-SHA256).
func derive(secret [32]byte, salt []byte, purpose string) [32]byte {
	b, err := hkdf.Key(sha256.New, secret[:], salt, purpose, 32)
	if err != nil {
		panic(fmt.Sprintf("keyring: HKDF refused to make 32 bytes: %v", err))
	}
	return [32]byte(b)
}
