package files

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// putMany makes a directory of many small files.
func putMany(t testing.TB, dir string, n int) {
	t.Helper()
	b := payload(1, 8<<10)
	for i := range n {
		d := fmt.Sprintf("%s/%02d/%02d", dir, i%20, i/20%10)
		if i < 200 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(fmt.Sprintf("%s/%d", d, i), b[i%4096:i%4096+(i*37)%4096], 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const benchFiles = 20000

// BenchmarkReceiveMany receives many small files.
func BenchmarkReceiveMany(b *testing.B) {
	src, dst := filepath.Join(b.TempDir(), "src"), filepath.Join(b.TempDir(), "dst")
	putMany(b, src, benchFiles)
	for b.Loop() {
		receiveSecure(b, src, dst)
		b.StopTimer()
		os.RemoveAll(dst)
		b.StartTimer()
	}
}

// BenchmarkTarMany is what BenchmarkReceiveMany is measured by: tar over TLS, with
// times and permissions, synced at the end.
func BenchmarkTarMany(b *testing.B) {
	src, dst := filepath.Join(b.TempDir(), "src"), filepath.Join(b.TempDir(), "dst")
	putMany(b, src, benchFiles)
	for b.Loop() {
		near, far := secure(b)
		go func() {
			defer far.Close()
			buf := bufio.NewWriterSize(far, 256<<10)
			w := tar.NewWriter(buf)
			if err := w.AddFS(os.DirFS(src)); err != nil {
				b.Error(err)
			}
			w.Close()
			buf.Flush()
		}()
		if err := os.Mkdir(dst, 0o755); err != nil {
			b.Fatal(err)
		}
		r := tar.NewReader(bufio.NewReaderSize(near, 256<<10))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			path := filepath.Join(dst, h.Name)
			if h.FileInfo().IsDir() {
				if err := os.MkdirAll(path, 0o755); err != nil {
					b.Fatal(err)
				}
				continue
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				b.Fatal(err)
			}
			_, err = io.Copy(f, r)
			if err == nil {
				err = f.Chmod(fs.FileMode(h.Mode).Perm())
			}
			if err == nil {
				err = os.Chtimes(path, h.ModTime, h.ModTime)
			}
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		near.Close()
		d, err := os.Open(dst)
		if err != nil {
			b.Fatal(err)
		}
		if err := syncfs(d); err != nil {
			b.Fatal(err)
		}
		d.Close()
		b.StopTimer()
		os.RemoveAll(dst)
		b.StartTimer()
	}
}
