package node

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/identity"
)

var (
	errNotAuthority = capsule.Errorf(capsule.Unsupported, "the fabric's authority is at another node, the one where `spacectl fabric init` ran: do this there")
	errRevokeSelf   = capsule.Errorf(capsule.Invalid, "this is the authority's own node; without it nobody could join or renew")
)

// fabricError gives an error of the fabric its kind.
func fabricError(err error) error {
	var refused *fabric.RefusedError
	var op *net.OpError
	kind := capsule.Other
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fabric.ErrNoAuthority):
		return errNotAuthority
	case errors.As(err, &refused):
		when := "try again later"
		if refused.Retry > 0 {
			when = fmt.Sprintf("try again in %v", max(refused.Retry.Round(time.Second), time.Second))
		}
		return capsule.Errorf(capsule.Conflict, "refused, for the limit is %s; %s", refused.Limit, when)
	case errors.Is(err, identity.ErrToken), errors.Is(err, identity.ErrRevoked):
		kind = capsule.Denied
	case errors.Is(err, identity.ErrDamaged):
		kind = capsule.Damaged
	case errors.Is(err, identity.ErrExists):
		kind = capsule.Exists
	case errors.Is(err, fabric.ErrNoProvider):
		kind = capsule.NotFound
	case errors.Is(err, fabric.ErrClosed), errors.Is(err, fabric.ErrUnreachable), errors.As(err, &op) && op.Op == "dial":
		kind = capsule.Unavailable
	}
	return capsule.Wrap(kind, err, "")
}

// noProvider explains that nobody has what was asked for.
func noProvider(pool, kind string, nodes []fabric.NodeState) error {
	var known, pools []string
	for _, n := range nodes {
		known = append(known, n.Name)
		for _, s := range n.Services {
			if s.Kind == kind && !slices.Contains(pools, s.Pool) {
				pools = append(pools, s.Pool)
			}
		}
	}
	text := fmt.Sprintf("no node provides the pool %s (%s) now; nodes that are known: %s", pool, kind, strings.Join(firstOf(known), ", "))
	if slices.Sort(pools); len(pools) > 0 {
		text += "; pools of that kind: " + strings.Join(firstOf(pools), ", ")
	}
	return capsule.Errorf(capsule.NotFound, "%s", text)
}

// firstOf shortens a list for an error.
func firstOf(list []string) []string {
	const most = 10
	slices.Sort(list)
	if len(list) <= most {
		return list
	}
	return append(list[:most:most], fmt.Sprintf("and %d more", len(list)-most))
}
