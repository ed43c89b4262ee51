package directory

import (
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/spacestore/space/fabric/identity"
)

type Addr struct{ Carrier, Addr string }
type Service struct{ Pool, Kind, Role string }
type Record struct {
	Node     identity.NodeID
	Name     string
	Area     string
	Addrs    []Addr
	Services []Service
	Relay    bool
	Serial   uint64
	Expires  time.Time
}
type Signed struct {
	Record Record
}
type Directory struct {
	mu  sync.Mutex
	all map[identity.NodeID]Record
}

func New() *Directory { return &Directory{all: map[identity.NodeID]Record{}} }
func (d *Directory) Set(r Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all[r.Node] = r
	return nil
}
func (d *Directory) Digest() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[string]uint64{}
	for id, r := range d.all {
		m[id.String()] = r.Serial
	}
	b, _ := json.Marshal(m)
	return b
}
func (d *Directory) Missing(b []byte) ([]byte, error) {
	m := map[string]uint64{}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Record
	for id, r := range d.all {
		if m[id.String()] < r.Serial {
			out = append(out, r)
		}
	}
	if out == nil {
		return nil, nil
	}
	return json.Marshal(out)
}
func (d *Directory) Merge(b []byte) (bool, error) {
	var in []Record
	if err := json.Unmarshal(b, &in); err != nil {
		return false, errors.New("bad")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	news := false
	for _, r := range in {
		if d.all[r.Node].Serial < r.Serial {
			d.all[r.Node] = r
			news = true
		}
	}
	return news, nil
}
func (d *Directory) All() (out []Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.all {
		out = append(out, r)
	}
	return
}
func (d *Directory) Node(id identity.NodeID) (Record, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, ok := d.all[id]
	return r, ok
}
func (d *Directory) Expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, r := range d.all {
		if time.Now().After(r.Expires) {
			delete(d.all, id)
		}
	}
}
