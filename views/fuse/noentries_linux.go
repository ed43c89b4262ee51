package fuse

import gofuse "github.com/hanwen/go-fuse/v2/fuse"

// noEntries is a file system whose names are not for programs to change, though
// content can be. Without a word from us Linux would call it not implemented.
type noEntries struct {
	gofuse.RawFileSystem // ENOSYS for all that isn't here
}

func (noEntries) Create(<-chan struct{}, *gofuse.CreateIn, string, *gofuse.CreateOut) gofuse.Status {
	return gofuse.EPERM
}

func (noEntries) Mknod(<-chan struct{}, *gofuse.MknodIn, string, *gofuse.EntryOut) gofuse.Status {
	return gofuse.EPERM
}

func (noEntries) Mkdir(<-chan struct{}, *gofuse.MkdirIn, string, *gofuse.EntryOut) gofuse.Status {
	return gofuse.EPERM
}

func (noEntries) Symlink(<-chan struct{}, *gofuse.InHeader, string, string, *gofuse.EntryOut) gofuse.Status {
	return gofuse.EPERM
}

func (noEntries) Link(<-chan struct{}, *gofuse.LinkIn, string, *gofuse.EntryOut) gofuse.Status {
	return gofuse.EPERM
}

func (noEntries) Unlink(<-chan struct{}, *gofuse.InHeader, string) gofuse.Status { return gofuse.EPERM }

func (noEntries) Rmdir(<-chan struct{}, *gofuse.InHeader, string) gofuse.Status { return gofuse.EPERM }

func (noEntries) Rename(<-chan struct{}, *gofuse.RenameIn, string, string) gofuse.Status {
	return gofuse.EPERM
}
