package control

import (
	"context"
	"io"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
)

// zeros gives n zero bytes without being a file.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.n))
	z.n -= int64(n)
	return n, nil
}

const benchSize = 256 << 20

// BenchmarkPut is what the socket alone costs: the API behind reads and drops.
func BenchmarkPut(b *testing.B) {
	c := serve(b, &fake{put: func(_ context.Context, _ store.PutRequest, r io.Reader) (capsule.Info, error) {
		buf := make([]byte, 1<<20)
		for {
			if _, err := io.ReadFull(r, buf); err == io.EOF {
				return capsule.Info{}, nil
			} else if err != nil {
				return capsule.Info{}, err
			}
		}
	}})
	b.SetBytes(benchSize)
	for b.Loop() {
		if _, err := c.Put(b.Context(), store.PutRequest{Size: benchSize}, &zeros{benchSize}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	buf := make([]byte, 1<<20)
	c := serve(b, &fake{get: func(_ context.Context, _ GetRequest, begin func(capsule.Info) (io.Writer, error)) error {
		w, err := begin(capsule.Info{Size: benchSize})
		for n := 0; n < benchSize && err == nil; n += len(buf) {
			_, err = w.Write(buf)
		}
		return err
	}})
	b.SetBytes(benchSize)
	for b.Loop() {
		if err := c.Get(b.Context(), GetRequest{Ref: "x", Length: -1}, func(capsule.Info) (io.Writer, error) { return io.Discard, nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutSmall(b *testing.B) {
	c := serve(b, &fake{put: func(_ context.Context, _ store.PutRequest, r io.Reader) (capsule.Info, error) {
		_, err := io.Copy(io.Discard, r)
		return capsule.Info{}, err
	}})
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Put(b.Context(), store.PutRequest{Size: 4096}, &zeros{4096}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
