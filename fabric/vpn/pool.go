package vpn

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

// leaseKey is whom an address belongs to.
type leaseKey struct {
	peer   identity.NodeID
	tunnel fabric.TunnelID
}

// maxIdle bounds those of whom a pool remembers which address they had.
const maxIdle = 4096

// pool hands out a network's addresses. Who has had one gets it again, until
// it is needed by others, or many others had one since.
type pool struct {
	network netip.Prefix

	mu    sync.Mutex
	by    map[leaseKey]netip.Addr
	owner map[netip.Addr]leaseKey
	idle  []leaseKey // that have given theirs back, the longest ago first
	next  netip.Addr // where to look for one that nobody has
}

func newPool(network netip.Prefix) *pool {
	p := &pool{network: network, by: map[leaseKey]netip.Addr{}, owner: map[netip.Addr]leaseKey{}}
	p.next = p.gateway().Next()
	return p
}

// gateway is the exit's own address, the network's first.
func (p *pool) gateway() netip.Addr { return p.network.Addr().Next() }

// assigned is an address of the pool as a lease has it.
func (p *pool) assigned(a netip.Addr) Assigned {
	return Assigned{netip.PrefixFrom(a, p.network.Bits()), p.gateway()}
}

// lease returns an address: the one that k has or had, else the wanted one if
// nobody has it, else another.
func (p *pool) lease(k leaseKey, want netip.Addr) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.by[k]; ok {
		p.idle = slices.DeleteFunc(p.idle, func(o leaseKey) bool { return o == k })
		return a, nil
	}
	a, ok := want, false
	if p.mine(want) {
		o, taken := p.owner[want]
		switch {
		case !taken:
			ok = true
		case o.peer == k.peer && slices.Contains(p.idle, o): // its tunnel before this one
			p.forget(o)
			ok = true
		}
	}
	if !ok {
		a, ok = p.free()
	}
	if !ok && len(p.idle) > 0 {
		a, ok = p.by[p.idle[0]], true
		p.forget(p.idle[0])
	}
	if !ok {
		return a, fmt.Errorf("vpn: all %d addresses of the exit's %v are in use", len(p.owner), p.network)
	}
	p.by[k], p.owner[a] = a, k
	return a, nil
}

// mine reports whether the pool may hand an address out.
func (p *pool) mine(a netip.Addr) bool { return usable(p.network, a) && a != p.gateway() }

// free looks for an address that nobody has.
func (p *pool) free() (netip.Addr, bool) {
	for range len(p.owner) + 2 { // all that somebody has, the last one, and one more
		a := p.next
		if p.next = a.Next(); !p.network.Contains(p.next) {
			p.next = p.gateway().Next()
		}
		if _, taken := p.owner[a]; !taken && p.mine(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (p *pool) forget(k leaseKey) {
	delete(p.owner, p.by[k])
	delete(p.by, k)
	p.idle = slices.DeleteFunc(p.idle, func(o leaseKey) bool { return o == k })
}

// release gives an address back.
func (p *pool) release(k leaseKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle = append(p.idle, k); len(p.idle) > maxIdle {
		p.forget(p.idle[0])
	}
}
