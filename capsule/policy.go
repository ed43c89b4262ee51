package capsule

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Policy is what a capsule asks for. Make one with [DefaultPolicy] or
// [ParsePolicy]; the zero Policy is not valid. Field for field it is the policy
// file that docs/policy.md describes.
type Policy struct {
	Compression   string      `json:"compression"` // auto, none, lz4, s2, zstd or zstd:1 to zstd:19
	Dedupe        bool        `json:"dedupe"`
	Encryption    string      `json:"encryption"`     // aes-256-gcm or disabled
	Durability    string      `json:"durability"`     // sync or journal
	RPO           Duration    `json:"rpo"`            // how much acknowledged data a lost node may cost
	LatencyTarget Duration    `json:"latency_target"` // 0: none
	Sovereignty   string      `json:"sovereignty"`    // local, zone or global
	Views         Views       `json:"views"`
	Federation    Federation  `json:"federation"`
	Transform     []Transform `json:"transform"` // applied in this order
}

// Federation says which other zones get a copy.
type Federation struct {
	Targets  []string `json:"targets"`
	Priority string   `json:"priority"` // low, normal or high
}

// Transform is a WASM module that content passes through.
type Transform struct {
	Name         string                `json:"name"`
	Image        string                `json:"image"`   // file://PATH or capsule://UUID
	Trigger      string                `json:"trigger"` // on-read or on-write
	Args         map[string]string     `json:"args"`
	Resources    TransformResources    `json:"resources"`
	Verification TransformVerification `json:"verification"`
}

// TransformResources bounds one run of a transform.
type TransformResources struct {
	MaxMemoryPages uint64 `json:"max_memory_pages"` // of 64 KiB
	FuelLimit      uint64 `json:"fuel_limit"`       // WASM instructions
}

// TransformVerification says how to tell the right image; empty fields are not checked.
type TransformVerification struct {
	SHA256    string `json:"sha256,omitempty"` // lower-case hex
	Signature string `json:"signature,omitempty"`
}

// Duration is a time.Duration that reads and prints like "1m30s" in JSON too.
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Views lists the views that may expose a capsule, each by its name or as
// NAME:ro or NAME:rw. Nil is every view, those of later versions included; an
// empty, non-nil list is none.
type Views []string

// MarshalJSON spells nil out as the full list, for a reader would take null for none.
func (v Views) MarshalJSON() ([]byte, error) {
	if v == nil {
		v = viewNames
	}
	return json.Marshal([]string(v))
}

// The values a policy file may use; the first of each is the default except
// for sovereignty and priority.
var (
	compressionNames = []string{"auto", "none", "lz4", "s2", "zstd"}
	encryptionNames  = []string{"aes-256-gcm", "disabled"}
	durabilityNames  = []string{"sync", "journal"}
	sovereigntyNames = []string{"local", "zone", "global"}
	viewNames        = []string{"fuse", "nfs", "nvme", "csi", "cache"}
	priorityNames    = []string{"low", "normal", "high"}
	triggerNames     = []string{"on-read", "on-write"}
)

// zstd levels, as zstd(1) numbers them.
const (
	defaultZstdLevel = 3
	maxZstdLevel     = 19
)

// DefaultPolicy returns the policy of a capsule that asks for nothing special.
func DefaultPolicy() *Policy {
	return &Policy{
		Compression: "auto",
		Dedupe:      true,
		Encryption:  "aes-256-gcm",
		Durability:  "sync",
		Sovereignty: "zone",
		Federation:  Federation{Targets: []string{}, Priority: "normal"},
		Transform:   []Transform{},
	}
}

// defaultResources is what a transform gets that asks for nothing.
func defaultResources() TransformResources {
	return TransformResources{MaxMemoryPages: 16, FuelLimit: 10_000_000}
}

// Codec returns the compression's codec and, for zstd, its level (otherwise 0).
func (p *Policy) Codec() (name string, level int) {
	name, suffix, given := strings.Cut(p.Compression, ":")
	if name != "zstd" {
		return name, 0
	}
	if !given {
		return name, defaultZstdLevel
	}
	level, _ = strconv.Atoi(suffix) // ParsePolicy let no other text in
	return name, level
}

// AllowsView reports whether the named view may expose the capsule.
func (p *Policy) AllowsView(view string) bool {
	return p.Views == nil || slices.ContainsFunc(p.Views, func(v string) bool {
		name, _, _ := strings.Cut(v, ":")
		return name == view
	})
}

// AllowsWriting reports whether a capsule of a kind may be written through a
// view that may expose it: NAME:rw and NAME:ro say so, and NAME alone means
// volumes and trees, which are there to be changed in place, and not objects.
func (p *Policy) AllowsWriting(view string, kind Kind) bool {
	switch {
	case slices.Contains(p.Views, view+":rw"):
		return true
	case slices.Contains(p.Views, view+":ro"):
		return false
	}
	return kind != Object
}

// NotEnforced returns the keys that ask for something no engine of this version
// acts on, in the order of the policy file. A key at its default asks for
// nothing. Not listed either: durability "journal", because every capsule gets
// the stronger "sync", and views, because the gate refuses whatever a list
// leaves out and the views that do not exist yet can expose nothing.
func (p *Policy) NotEnforced() []string {
	keys := []string{}
	d := DefaultPolicy()
	if p.RPO != d.RPO {
		keys = append(keys, "rpo")
	}
	if p.LatencyTarget != d.LatencyTarget {
		keys = append(keys, "latency_target")
	}
	if p.Sovereignty != d.Sovereignty {
		keys = append(keys, "sovereignty")
	}
	if !p.Federation.equal(d.Federation) {
		keys = append(keys, "federation")
	}
	if len(p.Transform) > 0 {
		keys = append(keys, "transform")
	}
	return keys
}

// Equal reports whether p and q ask for the same.
func (p *Policy) Equal(q *Policy) bool {
	return p.Compression == q.Compression && p.Dedupe == q.Dedupe && p.Encryption == q.Encryption &&
		p.Durability == q.Durability && p.RPO == q.RPO && p.LatencyTarget == q.LatencyTarget &&
		p.Sovereignty == q.Sovereignty &&
		(p.Views == nil) == (q.Views == nil) && slices.Equal(p.Views, q.Views) &&
		p.Federation.equal(q.Federation) &&
		slices.EqualFunc(p.Transform, q.Transform, Transform.equal)
}

func (f Federation) equal(g Federation) bool {
	return f.Priority == g.Priority && slices.Equal(f.Targets, g.Targets)
}

func (t Transform) equal(u Transform) bool {
	return t.Name == u.Name && t.Image == u.Image && t.Trigger == u.Trigger && maps.Equal(t.Args, u.Args) &&
		t.Resources == u.Resources && t.Verification == u.Verification
}
