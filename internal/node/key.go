package node

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/vfs"
)

// ImportKey installs an exported master key in a store that nobody holds: it
// can't be opened without.
func ImportKey(ctx context.Context, t Target, text string) error {
	fs := vfs.OS()
	_, err := t.retry(ctx, func() (Conn, error) {
		lock, err := fs.Lock(filepath.Join(t.Home, lockName))
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
			return nil, capsule.Wrap(capsule.Locked, err, "store %s", t.Home)
		}
		if err != nil {
			return nil, capsule.Wrap(capsule.NotFound, err, "there is no store at %s", t.Home)
		}
		defer lock.Close()
		return nil, keyring.Import(fs, t.Home, text)
	})
	return err
}
