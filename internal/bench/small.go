package bench

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/spacestore/space/capsule/store"
)

// The operations on small capsules.
const (
	smallPut   = "put 4 KiB, 1 writer"
	smallPut32 = "put 4 KiB, 32 writers"
)

// small measures how many capsules of 4 random KiB can be made durable.
func (r *run) small(ctx context.Context) error {
	const home = "small"
	s, err := r.open(ctx, home)
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Join(r.dir, home))
	defer s.Close()
	for _, c := range []struct {
		name    string
		writers int
	}{{smallPut, 1}, {smallPut32, 32}} {
		v, err := together(c.writers, func(i int) (float64, error) {
			content := make([]byte, 4096)
			rnd := rand.NewChaCha8([32]byte{byte(c.writers), byte(i)})
			n := 0
			return r.rateOf(ctx, func() error {
				rnd.Read(content)
				n++
				req := store.PutRequest{Name: fmt.Sprintf("%d/%d/%d", c.writers, i, n), Size: int64(len(content))}
				_, err := s.Put(ctx, req, bytes.NewReader(content))
				return err
			})
		})
		if err != nil {
			return err
		}
		r.add("", c.name, v)
	}
	return nil
}
