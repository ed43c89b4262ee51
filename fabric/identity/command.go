package identity

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Epoch names one life of a verifier: a command that was meant for an earlier
// one is refused, so that nothing has to be remembered over a restart.
type Epoch [16]byte

// Limits of commands.
const (
	MaxCommand = 64 << 10 // bytes of a command's body
	maxKind    = 64
	maxIssuers = 65536
	replayBits = 1024 // how many numbers behind the newest one are still told apart
)

// Command is a control command whose signature and freshness were checked.
type Command struct {
	From NodeID
	Kind string
	Body []byte
}

// Signer signs a node's commands. It may be used from many goroutines.
type Signer struct {
	node *Node
	life uint64 // grows from one life of the node to the next

	mu   sync.Mutex
	next uint64
}

// Signer returns the signer of this life of the node.
func (n *Node) Signer() *Signer {
	return &Signer{node: n, life: uint64(n.clock.Now().UnixNano())}
}

// Sign returns a command for one node in its present life.
func (s *Signer) Sign(to NodeID, life Epoch, kind string, body []byte) ([]byte, error) {
	if len(kind) == 0 || len(kind) > maxKind || len(body) > MaxCommand {
		return nil, fmt.Errorf("identity: command %.64q with %d bytes; the limit is %d", kind, len(body), MaxCommand)
	}
	s.mu.Lock()
	number := s.next
	s.next++
	s.mu.Unlock()
	// Receiver, its life, our life, number, kind, body.
	b := append(append([]byte(nil), to[:]...), life[:]...)
	b = binary.BigEndian.AppendUint64(b, s.life)
	b = binary.BigEndian.AppendUint64(b, number)
	b = append(append(b, byte(len(kind))), kind...)
	return s.node.seal(commandDomain, append(b, body...)), nil
}

// Verifier checks commands for one node. It may be used from many goroutines.
type Verifier struct {
	trust *Trust
	self  NodeID
	life  Epoch

	mu      sync.Mutex
	issuers map[NodeID]*issuer
}

// issuer is what has been accepted of a node's commands.
type issuer struct {
	life   uint64
	newest uint64
	until  time.Time               // by then all certificates have ended that it has signed with
	seen   [replayBits / 64]uint64 // by number modulo replayBits
}

// Verifier returns the verifier of this life of the node.
func (n *Node) Verifier() *Verifier {
	v := &Verifier{trust: n.Trust, self: n.id, issuers: map[NodeID]*issuer{}}
	rand.Read(v.life[:]) // never fails (crypto/rand.Read)
	return v
}

// Life returns what commands for this verifier have to name.
func (v *Verifier) Life() Epoch { return v.life }

// Verify accepts a command once.
func (v *Verifier) Verify(b []byte) (Command, error) {
	const fixed = 16 + 16 + 8 + 8 + 1
	bad := errors.New("identity: malformed command")
	from, signed, cert, err := v.trust.unseal(commandDomain, b)
	if err != nil {
		return Command{}, fmt.Errorf("command: %w", err)
	}
	if len(signed) < fixed {
		return Command{}, bad
	}
	if NodeID(signed[:16]) != v.self || Epoch(signed[16:32]) != v.life {
		return Command{}, errors.New("identity: the command is for another node, or for an earlier life of this one")
	}
	life, number := binary.BigEndian.Uint64(signed[32:]), binary.BigEndian.Uint64(signed[40:])
	kind := int(signed[48])
	if kind == 0 || kind > maxKind || len(signed) < fixed+kind || len(signed)-fixed-kind > MaxCommand {
		return Command{}, bad
	}
	if err := v.accept(from, life, number, cert.NotAfter); err != nil {
		return Command{}, err
	}
	return Command{From: from, Kind: string(signed[fixed : fixed+kind]), Body: signed[fixed+kind:]}, nil
}

// accept takes note of a number, or refuses one that was seen before.
func (v *Verifier) accept(from NodeID, life, number uint64, until time.Time) error {
	replayed := errors.New("identity: the command was seen before, or is too old to tell")
	v.mu.Lock()
	defer v.mu.Unlock()
	i := v.issuers[from]
	if i == nil {
		if v.forget(); len(v.issuers) >= maxIssuers {
			return errors.New("identity: commands from more nodes than can be remembered")
		}
		i = &issuer{life: life}
		v.issuers[from] = i
	}
	if until.After(i.until) {
		i.until = until
	}
	switch {
	case life < i.life:
		return replayed
	case life > i.life: // the node has restarted
		*i = issuer{life: life}
	}
	if number > i.newest {
		if number-i.newest >= replayBits {
			clear(i.seen[:])
		} else {
			for k := i.newest + 1; k < number; k++ {
				i.seen[k%replayBits/64] &^= 1 << (k % 64)
			}
		}
		i.seen[number%replayBits/64] &^= 1 << (number % 64)
		i.newest = number
	} else if i.newest-number >= replayBits {
		return replayed
	}
	word, bit := &i.seen[number%replayBits/64], uint64(1)<<(number%64)
	if *word&bit != 0 {
		return replayed
	}
	*word |= bit
	return nil
}

// forget makes room, if there is none, by forgetting those of whom nothing can be
// replayed any more, as their certificates have ended.
func (v *Verifier) forget() {
	if len(v.issuers) < maxIssuers {
		return
	}
	now := v.trust.clock.Now()
	for n, i := range v.issuers {
		if now.After(i.until) {
			delete(v.issuers, n)
		}
	}
}
