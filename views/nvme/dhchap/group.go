package dhchap

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"math/big"
	"sync"

	"filippo.io/bigmod"

	"github.com/spacestore/space/capsule"
)

// Group is a Diffie-Hellman group by its number on the wire.
type Group uint8

// The groups: no exchange at all, and RFC 7919's finite fields.
const (
	Null      Group = 0
	FFDHE2048 Group = 1
	FFDHE3072 Group = 2
	FFDHE4096 Group = 3
	FFDHE6144 Group = 4
	FFDHE8192 Group = 5
)

// groups has what RFC 7919, appendix A, says of each: the number that makes its
// prime, and how long an exponent has to be at least for the group's strength,
// here in bytes.
var groups = [...]struct {
	name     string
	bits     uint
	x        int64
	exponent int
	modulus  func() *bigmod.Modulus
}{
	Null:      {name: "null"},
	FFDHE2048: {name: "ffdhe2048", bits: 2048, x: 560316, exponent: 29},
	FFDHE3072: {name: "ffdhe3072", bits: 3072, x: 2625351, exponent: 35},
	FFDHE4096: {name: "ffdhe4096", bits: 4096, x: 5736041, exponent: 41},
	FFDHE6144: {name: "ffdhe6144", bits: 6144, x: 15705020, exponent: 47},
	FFDHE8192: {name: "ffdhe8192", bits: 8192, x: 10965728, exponent: 50},
}

func init() {
	for g := FFDHE2048; g <= FFDHE8192; g++ {
		groups[g].modulus = sync.OnceValue(func() *bigmod.Modulus {
			m, err := bigmod.NewModulus(g.prime().Bytes())
			if err != nil {
				panic(err) // only for numbers that are no modulus
			}
			return m
		})
	}
}

// prime returns the group's prime by its definition,
//
//	p = 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1
//
// which is shorter than the number, and shows that nothing hides in it.
func (g Group) prime() *big.Int {
	b, x := groups[g].bits, groups[g].x
	// e is the sum of 1/k!, here times 2^(b-130), and by 64 bits more so that
	// the terms' rounding cannot be seen.
	e, term := new(big.Int), new(big.Int).Lsh(big.NewInt(1), b-130+64)
	for k := int64(1); term.Sign() > 0; k++ {
		e.Add(e, term)
		term.Quo(term, big.NewInt(k))
	}
	e.Rsh(e, 64)

	p := new(big.Int).Lsh(big.NewInt(1), b)
	p.Sub(p, new(big.Int).Lsh(big.NewInt(1), b-64))
	p.Add(p, e.Lsh(e.Add(e, big.NewInt(x)), 64))
	return p.Sub(p, big.NewInt(1))
}

// ParseGroup returns the group called name: null, ffdhe2048 and so on.
func ParseGroup(name string) (Group, error) {
	for g := range groups {
		if groups[g].name == name {
			return Group(g), nil
		}
	}
	return Null, capsule.Errorf(capsule.Invalid,
		"%q is no group of DH-HMAC-CHAP: it has null, ffdhe2048, ffdhe3072, ffdhe4096, ffdhe6144 and ffdhe8192", name)
}

func (g Group) valid() bool { return int(g) < len(groups) }

// size is the length of the group's public values in bytes; of Null, 0.
func (g Group) size() int { return int(groups[g].bits / 8) }

// generator returns 2, as long as the group's values.
func (g Group) generator() []byte {
	b := make([]byte, g.size())
	b[len(b)-1] = 2
	return b
}

func (g Group) String() string {
	if g.valid() {
		return groups[g].name
	}
	return fmt.Sprintf("group(%d)", uint8(g))
}

// exchange is one side of one Diffie-Hellman exchange.
type exchange struct {
	group   Group
	private []byte
	public  []byte // nil for Null, as is the shared value
}

func newExchange(g Group) exchange {
	x := exchange{group: g}
	if g == Null {
		return x
	}
	x.private = make([]byte, groups[g].exponent)
	rand.Read(x.private) // never fails; see its documentation
	m := groups[g].modulus()
	base, err := bigmod.NewNat().SetBytes(g.generator(), m)
	if err != nil {
		panic(err) // 2 is below every modulus
	}
	x.public = bigmod.NewNat().Exp(base, x.private, m).Bytes(m)
	return x
}

// shared returns what both sides compute from the other's public value, of the
// group's size with its leading zeros. ok is false if public is no value that a
// peer may send.
func (x *exchange) shared(public []byte) (secret []byte, ok bool) {
	if len(public) != x.group.size() {
		return nil, false
	}
	if x.group == Null {
		return nil, true
	}
	mod := groups[x.group].modulus()
	// 0, 1 and p-1 would make the result known. No other value generates a small
	// group, for p is a safe prime. All of this is public.
	last := mod.Nat().Bytes(mod)
	last[len(last)-1]-- // p is odd
	if bytes.Compare(public, x.group.generator()) < 0 || bytes.Compare(public, last) >= 0 {
		return nil, false
	}
	y, err := bigmod.NewNat().SetBytes(public, mod)
	if err != nil {
		return nil, false
	}
	return bigmod.NewNat().Exp(y, x.private, mod).Bytes(mod), true
}
