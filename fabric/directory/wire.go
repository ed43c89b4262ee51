package directory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spacestore/space/fabric/identity"
)

// Bounds of what is said.
const (
	MaxName    = 256      // bytes of each name
	MaxAddr    = 1 << 10  // bytes of an address
	MaxAddrs   = 32       // of a node
	MaxItem    = 64 << 10 // bytes of a record or summary, signed
	MaxBatch   = 1 << 20  // bytes of what News, Missing and Answer return and Merge takes
	MaxDigest  = 1 << 20  // bytes of a digest
	maxListed  = 1 << 10  // services in a record or summary
	digestSize = 1 + 16 + 8 + 8
)

// version is of digests, batches and items.
const version = 1

// Kinds of items. Those that are unknown are skipped.
const (
	kindRecord  = 1
	kindSummary = 2
)

// ErrMalformed is of bytes that no node sends in good faith.
var ErrMalformed = errors.New("directory: malformed")

// Addr is where a node can be reached by a carrier.
type Addr struct {
	Carrier string `json:"carrier"`
	Addr    string `json:"addr"`
}

// Service is something that a node provides.
type Service struct {
	Pool string `json:"pool"`
	Kind string `json:"kind"`
	Role string `json:"role,omitempty"`
}

// fits reports whether it is what is looked for; no role: any.
func (s Service) fits(pool, kind, role string) bool {
	return s.Pool == pool && s.Kind == kind && (role == "" || s.Role == role)
}

// Record is what a node says of itself.
type Record struct {
	Node identity.NodeID `json:"node"`
	Name string          `json:"name"` // for people
	Area string          `json:"area"`
	// Organization is whose the node is, as its certificate says; older nodes go by the
	// record's own word.
	Organization string    `json:"organization,omitempty"`
	Addrs        []Addr    `json:"addrs"`
	Services     []Service `json:"services"`
	Relay        bool      `json:"relay"` // passes links of others on
	Serial       uint64    `json:"serial"`
	Expires      time.Time `json:"expires"`
}

// Summary is what a node that passes links on says of its area.
type Summary struct {
	Record      // the signer's; Services are those of the whole area
	Nodes  int  // of the area
	Full   bool // there are more services than fit
}

// item is a record or summary.
type item struct {
	kind byte
	Summary
}

// encode returns what is signed. Fields that follow are a newer version's, and
// are left alone.
func (it *item) encode() []byte {
	flags := byte(0)
	if it.Relay {
		flags |= 1
	}
	if it.Full {
		flags |= 2
	}
	if it.Organization != "" {
		flags |= 4
	}
	b := append([]byte{version, it.kind}, it.Node[:]...)
	b = binary.BigEndian.AppendUint64(b, it.Serial)
	b = binary.BigEndian.AppendUint64(b, uint64(it.Expires.UnixMilli()))
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, uint32(it.Nodes))
	b = appendString(appendString(b, it.Name), it.Area)
	b = binary.BigEndian.AppendUint16(b, uint16(len(it.Addrs)))
	for _, a := range it.Addrs {
		b = appendString(appendString(b, a.Carrier), a.Addr)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(it.Services)))
	for _, s := range it.Services {
		b = appendString(appendString(appendString(b, s.Pool), s.Kind), s.Role)
	}
	if it.Organization != "" {
		b = appendString(b, it.Organization)
	}
	return b
}

// decodeItem reads what encode returns.
func decodeItem(b []byte) (it item, err error) {
	r := reader{b: b}
	if v := r.byte(); r.err == nil && v != version {
		return it, fmt.Errorf("%w: version %d", ErrMalformed, v)
	}
	it.kind = r.byte()
	copy(it.Node[:], r.bytes(len(it.Node)))
	it.Serial = r.uint64()
	it.Expires = time.UnixMilli(int64(r.uint64())).UTC()
	flags := r.byte()
	it.Relay, it.Full = flags&1 != 0, flags&2 != 0
	it.Nodes = int(r.uint32())
	it.Name, it.Area = r.string(MaxName), r.string(MaxName)
	n := r.count(MaxAddrs)
	for range n {
		it.Addrs = append(it.Addrs, Addr{r.string(MaxName), r.string(MaxAddr)})
	}
	n = r.count(maxListed)
	for range n {
		it.Services = append(it.Services, Service{r.string(MaxName), r.string(MaxName), r.string(MaxName)})
	}
	if flags&4 != 0 { // older nodes do not say
		it.Organization = r.string(MaxName)
	}
	return it, r.err
}

// check refuses what decodeItem would refuse.
func (it *item) check() error {
	_, err := decodeItem(it.encode())
	if len(it.Addrs) > MaxAddrs || len(it.Services) > maxListed {
		err = fmt.Errorf("directory: %d addresses and %d services; the limits are %d and %d", len(it.Addrs), len(it.Services), MaxAddrs, maxListed)
	}
	return err
}

func appendString(b []byte, s string) []byte {
	s = s[:min(len(s), 1<<16-1)]
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// reader reads a message; after an error it reads zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail() { r.err = ErrMalformed }

func (r *reader) bytes(n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.fail()
		return make([]byte, min(n, 16))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte     { return r.bytes(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.bytes(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.bytes(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.bytes(8)) }

// count reads how many things follow.
func (r *reader) count(limit int) int {
	n := int(r.uint16())
	if n > limit {
		r.fail()
	}
	if r.err != nil {
		return 0
	}
	return n
}

// string reads a text that is fit to be printed.
func (r *reader) string(limit int) string {
	n := int(r.uint16())
	if n > limit {
		r.fail()
	}
	if r.err != nil {
		return ""
	}
	s := string(r.bytes(n))
	if r.err != nil || !printable(s) {
		r.fail()
		return ""
	}
	return s
}

func printable(s string) bool {
	for _, c := range s {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return false
		}
	}
	return true
}

// key names an item.
type key struct {
	kind byte
	node identity.NodeID
}

func (k key) compare(o key) int {
	if k.kind != o.kind {
		return int(k.kind) - int(o.kind)
	}
	return slices.Compare(k.node[:], o.node[:])
}

// digest is what a node says that it has.
type digest struct {
	area string
	has  map[key]held
}

// held is how new an item is and, for summaries, of which area.
type held struct {
	serial uint64
	area   uint64
}

func areaHash(area string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(area))
	return h.Sum64()
}

func (d *digest) encode() []byte {
	keys := make([]key, 0, len(d.has))
	for k := range d.has {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, key.compare)
	b := make([]byte, 0, 3+len(d.area)+len(keys)*digestSize)
	b = appendString(append(b, version), d.area)
	for _, k := range keys {
		h := d.has[k]
		b = append(append(b, k.kind), k.node[:]...)
		b = binary.BigEndian.AppendUint64(b, h.serial)
		b = binary.BigEndian.AppendUint64(b, h.area)
	}
	return b
}

func decodeDigest(b []byte) (d digest, err error) {
	if len(b) > MaxDigest {
		return d, fmt.Errorf("%w: a digest of %d bytes", ErrMalformed, len(b))
	}
	r := reader{b: b}
	if v := r.byte(); r.err == nil && v != version {
		return d, fmt.Errorf("%w: a digest of version %d", ErrMalformed, v)
	}
	d.area = r.string(MaxName)
	if r.err != nil || len(r.b)%digestSize != 0 {
		return d, fmt.Errorf("%w: a digest", ErrMalformed)
	}
	d.has = make(map[key]held, len(r.b)/digestSize)
	for len(r.b) > 0 {
		k := key{kind: r.byte(), node: identity.NodeID(r.bytes(16))}
		d.has[k] = held{r.uint64(), r.uint64()}
	}
	return d, nil
}

// batch gathers signed items for a peer.
type batch struct{ b []byte }

// add takes an item in unless the batch would be too long.
func (x *batch) add(signed []byte) bool {
	if len(x.b) == 0 {
		x.b = []byte{version}
	}
	if len(x.b)+4+len(signed) > MaxBatch {
		return false
	}
	x.b = append(binary.BigEndian.AppendUint32(x.b, uint32(len(signed))), signed...)
	return true
}

// cutBatch returns the signed items of a batch.
func cutBatch(b []byte) (items [][]byte, err error) {
	if len(b) > MaxBatch {
		return nil, fmt.Errorf("%w: %d bytes of records", ErrMalformed, len(b))
	}
	r := reader{b: b}
	if v := r.byte(); r.err == nil && v != version {
		return nil, fmt.Errorf("%w: records of version %d", ErrMalformed, v)
	}
	for r.err == nil && len(r.b) > 0 {
		n := r.uint32()
		if n > MaxItem {
			r.fail()
		}
		if r.err == nil {
			items = append(items, r.bytes(int(n)))
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: records", ErrMalformed)
	}
	return items, nil
}
