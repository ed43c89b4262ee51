package tree

import "time"

// Root is the number of a tree's root directory.
const Root uint64 = 1

// Limits.
const (
	MaxName   = 255      // bytes of a name in a directory
	MaxTarget = 4095     // bytes of a symbolic link's target
	MaxSize   = 1 << 60  // bytes of a file
	MaxLinks  = 1 << 30  // links to an inode; a directory has one for each subdirectory
	MaxOpen   = 1 << 20  // open files
	maxWrite  = 1 << 20  // content written by one update
	blockSize = 4096     // the unit in which content takes space
	maxCache  = 32 << 10 // inodes in memory that nobody holds open
	permBits  = 0o7777   // what chmod can change
	setUID    = 0o4000   //
	setGID    = 0o2000   //
	sticky    = 0o1000   //
	groupExec = 0o010    //
)

// Type is what an inode is; the numbers are those of Linux's d_type, and S_IFMT>>12.
type Type uint8

// The types of inode.
const (
	FIFO      Type = 1
	CharDev   Type = 2
	Directory Type = 4
	BlockDev  Type = 6
	Regular   Type = 8
	Symlink   Type = 10
	Socket    Type = 12
)

func (t Type) valid() bool {
	switch t {
	case FIFO, CharDev, Directory, BlockDev, Regular, Symlink, Socket:
		return true
	}
	return false
}

func (t Type) device() bool { return t == CharDev || t == BlockDev }

// Attr is what is known of an inode.
type Attr struct {
	Ino    uint64
	Gen    uint32
	Type   Type
	Mode   uint32 // permissions with set-ID and sticky bits: 12 bits
	UID    uint32
	GID    uint32
	Rdev   uint64 // of a device, as makedev(3)
	Nlink  uint32
	Size   int64 // of a directory: the number of its entries
	Alloc  int64 // bytes of content that are not holes
	Atime  time.Time
	Mtime  time.Time
	Ctime  time.Time
	Btime  time.Time
	Change uint64 // grows with each change
	Parent uint64 // the directory that names it (the root for the root); of a file with several links one of them, or 0
}

// StatMode returns type and permissions as stat(2) has them.
func (a *Attr) StatMode() uint32 { return uint32(a.Type)<<12 | a.Mode }

// Set tells which fields of a SetAttr count.
type Set uint16

// What SetAttr can set.
const (
	SetMode Set = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow // the tree's clock rather than a given time
	SetMtimeNow
)

// SetAttr is a change of an inode's attributes.
type SetAttr struct {
	Set   Set
	Mode  uint32
	UID   uint32
	GID   uint32
	Size  int64
	Atime time.Time
	Mtime time.Time
}

// New is what a new inode is to be.
type New struct {
	Mode   uint32 // permissions
	Umask  uint32 // taken off Mode, unless the directory has a default ACL
	UID    uint32 // owner; only where Cred is nil, whose otherwise it is
	GID    uint32
	Rdev   uint64 // of a device
	Target string // of a symbolic link
}

// Cred is who asks for an operation. UID 0 may do anything.
type Cred struct {
	UID    uint32
	GID    uint32
	Groups []uint32
}

// Access is a set of permissions; the numbers are those of access(2).
type Access uint8

// What one can be allowed to do.
const (
	MayExec  Access = 1
	MayWrite Access = 2
	MayRead  Access = 4
)

// OpenFlags say what a file is opened for.
type OpenFlags uint8

// The flags of Open and Create.
const (
	OpenRead  OpenFlags = 1 << iota
	OpenWrite           // content can be changed
	OpenTrunc           // make it empty; needs OpenWrite
	OpenExcl            // Create: an error if the name is taken
)

func (f OpenFlags) writes() bool { return f&(OpenWrite|OpenTrunc) != 0 }

// RenameFlags change what Rename does; the numbers are those of renameat2(2).
type RenameFlags uint8

// The flags of Rename.
const (
	RenameNoReplace RenameFlags = 1
	RenameExchange  RenameFlags = 2
)

// XattrFlags change what SetXattr does; the numbers are those of setxattr(2).
type XattrFlags uint8

// The flags of SetXattr.
const (
	XattrCreate  XattrFlags = 1
	XattrReplace XattrFlags = 2
)

// AllocMode is what Allocate does with a range.
type AllocMode uint8

// The modes of Allocate.
const (
	Allocate  AllocMode = iota // make the file at least as large as the range's end
	KeepSize                   // nothing, after the checks: space is not reserved
	PunchHole                  // zeros, space given up; the size stays
	ZeroRange                  // zeros; the size grows to the range's end
	ZeroKeep                   // zeros; the size stays
)

// Quota limits a tree; 0 is no limit.
type Quota struct {
	Bytes  int64 // allocated by content
	Inodes int64
}

// Usage is what a tree holds, and may hold.
type Usage struct {
	Bytes  int64 // allocated by content
	Inodes int64
	Quota  Quota
}
