package keyring

import (
	"log/slog"
	"strings"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/vfs"
)

// The environment variables of [SourceFromEnv].
const (
	EnvMasterKey      = "SPACE_MASTER_KEY"
	EnvMasterKeyFile  = "SPACE_MASTER_KEY_FILE"
	EnvPassphrase     = "SPACE_PASSPHRASE"
	EnvPassphraseFile = "SPACE_PASSPHRASE_FILE"
)

// Source says where the master key comes from. The first field that is set
// counts; with none set it is keys/master.key, or, where the store has a
// passphrase, the answer to Prompt.
type Source struct {
	MasterKey      string // 64 hex digits, or the text of an export
	MasterKeyFile  string // a file with either
	Passphrase     string
	PassphraseFile string // a file with the passphrase on its first line
	// Prompt asks for the passphrase of the store in storeDir; nil: nobody to ask.
	Prompt func(storeDir string) (string, error)
}

// SourceFromEnv reads the SPACE_* variables through getenv, which is os.Getenv
// outside of tests.
func SourceFromEnv(getenv func(string) string) Source {
	return Source{
		MasterKey:      getenv(EnvMasterKey),
		MasterKeyFile:  getenv(EnvMasterKeyFile),
		Passphrase:     getenv(EnvPassphrase),
		PassphraseFile: getenv(EnvPassphraseFile),
	}
}

// given is what a Source holds: a key or a passphrase.
type given struct {
	name       string // the variable, for messages
	key        masterKey
	passphrase string // empty: it is a key
}

// given returns nil if s leaves the choice to the store.
func (s Source) given(fs vfs.FS, log *slog.Logger) (*given, error) {
	switch {
	case s.MasterKey != "":
		k, err := parseGivenKey(EnvMasterKey, s.MasterKey)
		return &given{name: EnvMasterKey, key: k}, err
	case s.MasterKeyFile != "":
		what := EnvMasterKeyFile + " (" + s.MasterKeyFile + ")"
		text, err := readGivenFile(fs, what, s.MasterKeyFile, log)
		if err != nil {
			return nil, err
		}
		k, err := parseGivenKey(what, text)
		return &given{name: what, key: k}, err
	case s.Passphrase != "":
		return &given{name: EnvPassphrase, passphrase: s.Passphrase}, nil
	case s.PassphraseFile != "":
		what := EnvPassphraseFile + " (" + s.PassphraseFile + ")"
		text, err := readGivenFile(fs, what, s.PassphraseFile, log)
		if err != nil {
			return nil, err
		}
		line, rest, _ := strings.Cut(text, "\n")
		line = strings.TrimSuffix(line, "\r")
		if line == "" || strings.TrimSpace(rest) != "" {
			return nil, capsule.Errorf(capsule.Invalid, "%s: want one line with the passphrase", what)
		}
		return &given{name: what, passphrase: line}, nil
	}
	return nil, nil
}

// readGivenFile reads a key or passphrase file that lies outside of the store.
// Orchestrators mount secrets world-readable in a private place, so wide
// permissions earn a warning and no more.
func readGivenFile(fs vfs.FS, what, path string, log *slog.Logger) (string, error) {
	data, mode, err := readFile(fs, path, maxKeyText)
	switch {
	case capsule.KindOf(err) == capsule.Damaged: // too long: it is no such file
		return "", capsule.Errorf(capsule.Invalid, "%s: %v", what, err)
	case err != nil:
		return "", capsule.Wrap(ioKind(err), err, "read %s", what)
	}
	if mode&0o077 != 0 {
		log.Warn("others than its owner may read a key file; chmod 600 it unless its directory is private", "file", path, "mode", mode)
	}
	return string(data), nil
}

// masterKey returns the key for a store with the header h.
func (g *given) masterKey(h *header) (masterKey, error) {
	if g.passphrase == "" {
		return g.key, nil
	}
	if h.Argon2id == nil {
		return masterKey{}, capsule.Errorf(capsule.WrongKey, "%s is set, but this store's master key is no passphrase (it is of the kind %q, fingerprint %s); unset it and give that key", g.name, h.Source, h.Fingerprint)
	}
	return h.Argon2id.key(g.passphrase), nil
}
