package vfstest

import (
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// DiskFull is a file system with room for a given number of bytes of file
// content (names and directories are free). A write that does not fit is done
// as far as it fits and fails with ENOSPC. Removing a file's last name gives
// its room back at once, open or not.
type DiskFull struct {
	hookFS

	mu     sync.Mutex
	budget int64
	used   int64
	files  map[string]*sized
}

// sized is a file's size, shared by all its names.
type sized struct {
	size  int64
	links int
}

// NewDiskFull returns a disk of budget bytes on under. Files that exist
// already count once they are opened for writing, renamed, linked or removed.
func NewDiskFull(under vfs.FS, budget int64) *DiskFull {
	d := &DiskFull{budget: budget, files: make(map[string]*sized)}
	d.hookFS = hookFS{under: under, r: d}
	return d
}

// SetBudget changes the disk's size. What is stored stays, even above it.
func (d *DiskFull) SetBudget(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.budget = n
}

// Used returns how many bytes of the budget are taken.
func (d *DiskFull) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

// GetDiskUsage reports the budget and what is left of it.
func (d *DiskFull) GetDiskUsage(string) (vfs.DiskUsage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return vfs.DiskUsage{
		AvailBytes: uint64(max(0, d.budget-d.used)),
		TotalBytes: uint64(d.budget),
		UsedBytes:  uint64(d.used),
	}, nil
}

func (d *DiskFull) run(op Op, do func(int) (int, error)) (int, error) {
	if !op.Mutates() || op.Kind == Sync {
		return do(op.Len)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if op.Kind == Write {
		return d.write(op, do)
	}
	d.find(op.Path) // count it before it changes
	if op.To != "" {
		d.find(op.To)
	}
	n, err := do(op.Len)
	if err != nil {
		return n, err
	}
	switch op.Kind {
	case Create, Lock:
		d.drop(op.Path)
		d.files[op.Path] = &sized{links: 1}
	case OpenReadWrite:
		d.find(op.Path)
	case Remove:
		d.drop(op.Path)
		for p := range d.files { // RemoveAll of a directory
			if len(p) > len(op.Path) && p[:len(op.Path)+1] == op.Path+"/" {
				d.drop(p)
			}
		}
	case Rename:
		if f := d.files[op.Path]; f != nil {
			delete(d.files, op.Path)
			d.drop(op.To)
			d.files[op.To] = f
		}
	case Link:
		if f := d.files[op.Path]; f != nil {
			f.links++
			d.files[op.To] = f
		}
	}
	return n, nil
}

func (d *DiskFull) write(op Op, do func(int) (int, error)) (int, error) {
	f := d.files[op.Path]
	if f == nil { // removed while open: its room is no longer counted
		return do(op.Len)
	}
	grow := op.Off + int64(op.Len) - f.size
	fits := op.Len
	if room := d.budget - d.used; grow > 0 && grow > room {
		fits = int(max(0, int64(op.Len)-(grow-max(0, room))))
	}
	n, err := do(fits)
	if end := op.Off + int64(n); end > f.size {
		d.used += end - f.size
		f.size = end
	}
	if err == nil && fits < op.Len {
		err = syscall.ENOSPC
	}
	return n, err
}

// find makes sure that an existing file is counted.
func (d *DiskFull) find(path string) {
	if d.files[path] != nil {
		return
	}
	fi, err := d.under.Stat(path)
	if err != nil || fi.IsDir() {
		return
	}
	d.files[path] = &sized{size: fi.Size(), links: 1}
	d.used += fi.Size()
}

// drop takes one name away.
func (d *DiskFull) drop(path string) {
	f := d.files[path]
	if f == nil {
		return
	}
	delete(d.files, path)
	if f.links--; f.links == 0 {
		d.used -= f.size
	}
}
