package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// ReadFile returns a whole file's bytes.
func ReadFile(fsys FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// WriteFileAtomic makes b the content of a file, durably: after it returns,
// and after a power cut at any moment, the file is there with b or as it was.
func WriteFileAtomic(fsys FS, name string, b []byte) error {
	tmp := name + ".tmp"
	f, err := fsys.Create(tmp, "space-file")
	if err != nil {
		return err
	}
	_, err = f.Write(append([]byte(nil), b...)) // Write may scribble on its argument
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		if rerr := fsys.Remove(tmp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return fmt.Errorf("write %s: %w", name, err)
	}
	return SyncDir(fsys, fsys.PathDir(name))
}

// SyncDir makes the names in a directory durable.
func SyncDir(fsys FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
