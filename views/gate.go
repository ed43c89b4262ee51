package views

import "github.com/spacestore/space/capsule"

// The views' names in policies and listings.
const (
	FUSE = "fuse"
	NVMe = "nvme"
)

// Gate reports whether a capsule with policy p may be exposed through view:
// nil, or an error of kind [capsule.Denied]. A view asks at every open, not
// only when the projection starts, because policies change.
func Gate(p *capsule.Policy, view string) error {
	if !p.AllowsView(view) {
		return capsule.Errorf(capsule.Denied,
			"the capsule's policy does not allow the %s view; add %q to its `views` to allow it", view, view)
	}
	return nil
}
