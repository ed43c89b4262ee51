package tree

import (
	"context"
	"io"
)

// DiffKind is what became of a path.
type DiffKind uint8

// Difference is a path that two snapshots do not have in common.
type Difference struct {
	Kind DiffKind
	Path string
	From string // of a renamed one: its path before
	Attr Attr   // in the new tree; of a removed one in the old
}

// Diff calls fn for all differences of two views of one tree.
func Diff(ctx context.Context, old, new *FS, fn func(Difference) error) error { panic("TODO") }

// Import unpacks a tar into directory dir.
func (fs *FS) Import(ctx context.Context, dir uint64, r io.Reader) error { panic("TODO") }

// Export packs what is under directory dir into a tar.
func (fs *FS) Export(ctx context.Context, dir uint64, w io.Writer) error { panic("TODO") }

// ImportDir copies a directory of the host into directory dir.
func (fs *FS) ImportDir(ctx context.Context, dir uint64, host string) error { panic("TODO") }

// ExportDir copies what is under directory dir into a directory of the host.
func (fs *FS) ExportDir(ctx context.Context, dir uint64, host string) error { panic("TODO") }
