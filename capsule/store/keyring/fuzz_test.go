package keyring

import (
	"bytes"
	"testing"

	"github.com/spacestore/space/capsule"
)

func FuzzParseFile(f *testing.F) {
	key, _ := parseGivenKey("", rawKey)
	for _, src := range []Source{{MasterKey: rawKey}, {Passphrase: "p"}} {
		fsys := newHome(f)
		mustCreate(f, fsys, src)
		f.Add([]byte(dump(f, fsys)["keyring"]))
	}
	f.Add([]byte("{}\nsha256:\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// As found, and with the checksum made right so that more gets through.
		body, _, _ := bytes.Cut(data, []byte(sumPrefix))
		for _, data := range [][]byte{data, withChecksum(body)} {
			file, err := parseFile(data)
			if err != nil {
				if k := capsule.KindOf(err); k != capsule.Damaged && k != capsule.Invalid {
					t.Fatalf("kind %v: %v", k, err)
				}
				continue
			}
			if !bytes.Equal(encodeFile(*file), data) {
				t.Fatal("accepted what it would not write")
			}
			file.open(key)
		}
	})
}

func FuzzParseMasterKey(f *testing.F) {
	key, _ := parseGivenKey("", rawKey)
	f.Add(key.text())
	f.Add(rawKey)
	f.Add("space-master-key-v2 00 00")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(string, string) (masterKey, error){parseMasterKey, parseGivenKey} {
			k, err := parse("the text", text)
			if err != nil {
				if kind := capsule.KindOf(err); kind != capsule.Damaged && kind != capsule.Invalid {
					t.Fatalf("kind %v: %v", kind, err)
				}
				continue
			}
			if back, err := parseMasterKey("the text", k.text()); err != nil || back != k {
				t.Fatalf("does not survive its own text: %v", err)
			}
		}
	})
}
