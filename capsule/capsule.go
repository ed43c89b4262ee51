package capsule

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ID names a capsule for life: a version 7 UUID, RFC 9562, so that capsules
// made together lie together in the metadata.
type ID [16]byte

// NewID returns a fresh ID of a capsule made now: 48 bits of time in
// milliseconds, 74 random bits.
func NewID(now time.Time) ID {
	var id ID
	rand.Read(id[:]) // never fails (crypto/rand.Read)
	ms := uint64(now.UnixMilli()) << 16
	for i := range 6 {
		id[i] = byte(ms >> (56 - 8*i))
	}
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// IsZero reports whether id is the zero ID, which names no capsule.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the canonical 36-character form.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// ParseID reads the canonical form, in either letter case.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		h := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
		if _, err := hex.Decode(id[:], []byte(h)); err == nil {
			return id, nil
		}
	}
	return ID{}, Errorf(Invalid, "%.64q is not a capsule ID (8-4-4-4-12 hex digits)", s)
}

// Kind is what sort of content a capsule has.
type Kind uint8

// The kinds of capsule. Their numbers are part of the on-disk format.
const (
	Object Kind = 1 // a byte string, replaced whole
	Volume Kind = 2 // a fixed-size, randomly written byte array
	Tree   Kind = 3 // a POSIX directory tree
)

func (k Kind) String() string {
	switch k {
	case Object:
		return "object"
	case Volume:
		return "volume"
	case Tree:
		return "tree"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// MarshalText implements encoding.TextMarshaler.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Info is what is known of a capsule without looking at its content.
type Info struct {
	ID       ID        `json:"id"`
	Kind     Kind      `json:"kind"`
	Name     string    `json:"name"`    // empty: unnamed
	Size     int64     `json:"size"`    // logical bytes
	Version  uint64    `json:"version"` // 1 at first put, +1 at each replacement
	Created  time.Time `json:"created"`
	Modified time.Time `json:"modified"` // when the content was last replaced
}

// Stat is Info with the capsule's policy and its exact cost in space.
type Stat struct {
	Info
	Segments       int64    `json:"segments"`        // extents that hold data
	AllocatedBytes int64    `json:"allocated_bytes"` // logical bytes in those
	HoleBytes      int64    `json:"hole_bytes"`      // logical bytes in zero runs, which take no space; not of a tree
	UniqueBytes    int64    `json:"unique_bytes"`    // plaintext bytes of its distinct segments
	StoredBytes    int64    `json:"stored_bytes"`    // bytes of those segments in the segment logs
	OwnBytes       int64    `json:"own_bytes"`       // stored bytes that no other capsule shares
	Ratio          float64  `json:"ratio"`           // logical bytes, of a volume or tree allocated bytes, / stored bytes; 0 when nothing is stored
	Policy         *Policy  `json:"policy"`          // in force, defaults filled in
	NotEnforced    []string `json:"not_enforced"`    // policy keys this node validates and keeps but does not act on
}

// Usage is the exact accounting of a whole store.
type Usage struct {
	Capsules     int64   `json:"capsules"`
	Segments     int64   `json:"segments"`
	LogicalBytes int64   `json:"logical_bytes"` // sum of all capsules' sizes
	UniqueBytes  int64   `json:"unique_bytes"`  // plaintext bytes of all distinct segments
	StoredBytes  int64   `json:"stored_bytes"`  // bytes of live segments in the logs
	DeadBytes    int64   `json:"dead_bytes"`    // bytes in the logs that GC can give back
	MetaBytes    int64   `json:"meta_bytes"`    // bytes of the metadata's files
	DiskBytes    int64   `json:"disk_bytes"`    // all of the above on disk: live + dead + metadata
	FreeBytes    int64   `json:"free_bytes"`    // what the file system has left for us
	PendingBytes int64   `json:"pending_bytes"` // logical bytes of removed content not yet released (readers hold it, or release is under way)
	Ratio        float64 `json:"ratio"`         // logical / stored; 0 when nothing is stored
	DedupRatio   float64 `json:"dedup_ratio"`   // logical / unique
}

// Limits of names, in bytes.
const (
	MaxName      = 4096
	MaxComponent = 255
)

// CheckName reports whether name can name a capsule: 1 to [MaxName] bytes of
// UTF-8 without control characters, in slash-separated components of 1 to
// [MaxComponent] bytes, none of them "." or "..". Such a name is a relative
// path in every view and can be printed on a terminal.
func CheckName(name string) error { return checkName("capsule", name) }

func checkName(of, name string) error {
	bad := func(why string) error {
		show := name
		if len(show) > 64 {
			show = show[:64] + "…"
		}
		return Errorf(Invalid, "%s name %q: %s", of, show, why)
	}
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > MaxName:
		return bad(fmt.Sprintf("is %d bytes long; the limit is %d", len(name), MaxName))
	case !utf8.ValidString(name):
		return bad("is not valid UTF-8")
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return bad("holds a control character")
		}
	}
	for c := range strings.SplitSeq(name, "/") {
		switch {
		case c == "":
			return bad("has an empty component (a leading, trailing or double slash)")
		case c == "." || c == "..":
			return bad(`has a "." or ".." component`)
		case len(c) > MaxComponent:
			return bad(fmt.Sprintf("has a component of %d bytes; the limit is %d", len(c), MaxComponent))
		}
	}
	return nil
}

// Snapshot is a capsule's content as it was at one moment.
type Snapshot struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Size    int64     `json:"size"` // as in Info
}

// CheckSnapshotName reports whether name can name a snapshot: one component of
// what [CheckName] allows.
func CheckSnapshotName(name string) error {
	if err := checkName("snapshot", name); err != nil {
		return err
	}
	if strings.Contains(name, "/") {
		return Errorf(Invalid, "snapshot name %q: has a slash", name)
	}
	return nil
}
