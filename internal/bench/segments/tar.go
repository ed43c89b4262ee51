//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
)

// tarOf returns a tar of the regular files under dirs that want likes, in the
// order of their paths, until it has limit bytes.
func tarOf(limit int64, want func(content []byte) bool, dirs ...string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil // what cannot be read is left out
			}
			if int64(b.Len()) >= limit {
				return fs.SkipAll
			}
			content, err := os.ReadFile(path)
			if err != nil || !want(content) {
				return nil
			}
			content = content[:min(int64(len(content)), limit)]
			if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(content))}); err != nil {
				return err
			}
			_, err = w.Write(content)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes()[:min(int64(b.Len()), limit)], nil
}

func isELF(content []byte) bool { return bytes.HasPrefix(content, []byte("\x7fELF")) }

// isSource is any file of a source tree.
func isSource([]byte) bool { return true }
