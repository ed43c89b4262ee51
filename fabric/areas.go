package fabric

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// A node holds the records of its own area. Of another one it knows what is
// provided there and which nodes pass links on; who it is that provides
// something, it asks one of them, and the directory remembers.

const (
	callFind = "find" // findBody in, signed records out

	askAreas = 4 // areas that are asked for one service, and
	askNodes = 2 // nodes in each
)

// findBody is what callFind asks.
type findBody struct {
	Pool string `json:"pool"`
	Kind string `json:"kind"`
	Role string `json:"role"`
}

// find returns who provides a service: nodes that are known, or else those of
// areas that say that they have it.
func (n *Node) find(ctx context.Context, k serviceKey) ([]identity.NodeID, error) {
	found := n.dir.d.Find(k.pool, k.kind, k.role)
	if len(found) == 0 {
		n.askAfar(ctx, k)
		found = n.dir.d.Find(k.pool, k.kind, k.role)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: kind %s in pool %s", ErrNoProvider, k.kind, k.pool)
	}
	ids := make([]identity.NodeID, len(found))
	for i, rec := range found {
		ids[i] = rec.Node
	}
	return ids, nil
}

// askAfar asks nodes of other areas who provides a service there.
func (n *Node) askAfar(ctx context.Context, k serviceKey) {
	request, err := json.Marshal(findBody{k.pool, k.kind, k.role})
	if err != nil {
		panic(err) // it has no values that JSON lacks
	}
	asked := map[string]int{}
	answered := 0
	for _, s := range n.dir.d.Where(k.pool, k.kind, k.role) {
		if answered == askAreas || ctx.Err() != nil {
			return
		}
		if asked[s.Area] == askNodes || len(asked) == askAreas && asked[s.Area] == 0 {
			continue
		}
		asked[s.Area]++
		answer, err := n.call(ctx, s.Node, callFind, request)
		if err == nil && len(answer) > 0 {
			_, err = n.dir.d.Merge(answer)
		}
		if err != nil {
			n.log.Debug("area not asked", "area", s.Area, "through", s.Node.String(), "error", err)
			continue
		}
		asked[s.Area] = askNodes
		answered++
	}
}

// answerFind answers a node of another area.
func (n *Node) answerFind(request []byte) ([]byte, error) {
	var b findBody
	if err := json.Unmarshal(request, &b); err != nil {
		return nil, fmt.Errorf("%w: find: %w", frame.ErrProtocol, err)
	}
	return n.dir.d.Answer(b.Pool, b.Kind, b.Role), nil
}
