package tree

import (
	"context"
	"io"
)

// Import unpacks a tar into directory dir.
func (fs *FS) Import(ctx context.Context, dir uint64, r io.Reader) error { panic("TODO") }

// Export packs what is under directory dir into a tar.
func (fs *FS) Export(ctx context.Context, dir uint64, w io.Writer) error { panic("TODO") }

// ImportDir copies a directory of the host into directory dir.
func (fs *FS) ImportDir(ctx context.Context, dir uint64, host string) error { panic("TODO") }

// ExportDir copies what is under directory dir into a directory of the host.
func (fs *FS) ExportDir(ctx context.Context, dir uint64, host string) error { panic("TODO") }
