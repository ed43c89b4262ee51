package fabric

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spacestore/space/fabric/directory"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// A node holds the records of its own area. Of another one it knows what is
// provided there and which nodes pass links on; who it is that provides
// something, it asks one of them, and remembers for a while.

const (
	callFind = "find" // findBody in, signed records out

	afarLife = time.Minute // what was learned of another area's nodes
	maxAfar  = 1024        // of them
	maxFound = 64          // records in an answer
	askAreas = 4           // areas that are asked for one service, and
	askNodes = 2           // nodes in each
)

// findBody is what callFind asks.
type findBody struct {
	Pool string `json:"pool"`
	Kind string `json:"kind"`
	Role string `json:"role"`
}

// afar is a record of another area's node.
type afar struct {
	directory.Record
	until time.Time
}

// record returns what is known of a node.
func (n *Node) record(id identity.NodeID) (directory.Record, bool) {
	if rec, ok := n.dir.d.Node(id); ok {
		return rec, true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.dir.afar[id]
	return a.Record, ok && time.Now().Before(a.until)
}

// findAfar asks other areas who provides a service.
func (n *Node) findAfar(ctx context.Context, k serviceKey) (ids []identity.NodeID) {
	now := time.Now()
	n.mu.Lock()
	for id, a := range n.dir.afar {
		if now.After(a.until) {
			delete(n.dir.afar, id)
		} else if provides(a.Record, k) {
			ids = append(ids, id)
		}
	}
	n.mu.Unlock()
	if len(ids) > 0 {
		return ids
	}
	request, err := json.Marshal(findBody{k.pool, k.kind, k.role})
	if err != nil {
		panic(err) // it has no values that JSON lacks
	}
	asked := 0
	for area, gates := range n.dir.d.Areas(k.pool, k.kind) {
		if asked++; asked > askAreas {
			break
		}
		n.ring(gates)
		for _, id := range gates[:min(len(gates), askNodes)] {
			answer, err := n.call(ctx, id, callFind, request)
			var found []directory.Record
			if err == nil {
				found, err = n.dir.d.Check(answer)
			}
			if err != nil {
				n.log.Debug("area not asked", "area", area, "through", id.String(), "error", err)
				continue
			}
			ids = append(ids, n.learn(found, k)...)
			break
		}
	}
	return ids
}

// learn remembers records of another area, and returns who of them provides k.
func (n *Node) learn(found []directory.Record, k serviceKey) (ids []identity.NodeID) {
	until := time.Now().Add(afarLife)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, rec := range found {
		if rec.Area == n.o.Area || len(n.dir.afar) >= maxAfar {
			continue
		}
		n.dir.afar[rec.Node] = afar{rec, until}
		if provides(rec, k) {
			ids = append(ids, rec.Node)
		}
	}
	return ids
}

func provides(rec directory.Record, k serviceKey) bool {
	for _, s := range rec.Services {
		if s.Pool == k.pool && s.Kind == k.kind && (k.role == "" || s.Role == k.role) {
			return true
		}
	}
	return false
}

// answerFind answers a node of another area.
func (n *Node) answerFind(request []byte) ([]byte, error) {
	var b findBody
	if err := json.Unmarshal(request, &b); err != nil {
		return nil, fmt.Errorf("%w: find: %w", frame.ErrProtocol, err)
	}
	return n.dir.d.Export(b.Pool, b.Kind, b.Role, maxFound)
}
