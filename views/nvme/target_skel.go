package nvme

import (
	"context"
	"net"

	"github.com/prometheus/client_golang/prometheus"
)

// Target serves subsystems on ports.
type Target struct{}

// New returns a target without subsystems.
func New(o Options) (*Target, error) { panic("being written") }

// Serve serves a port until the listener fails or the target is closed, which is no error.
func (t *Target) Serve(l net.Listener, port Port) error { panic("being written") }

// Close stops accepting, lets commands in flight finish until ctx ends, and closes all connections.
func (t *Target) Close(ctx context.Context) error { panic("being written") }

// AddSubsystem adds a subsystem.
func (t *Target) AddSubsystem(s Subsystem) error { panic("being written") }

// RemoveSubsystem ends a subsystem's controllers and removes it and its namespaces.
func (t *Target) RemoveSubsystem(nqn string) error { panic("being written") }

// SetHosts changes who may connect; controllers of hosts that no longer may are ended.
func (t *Target) SetHosts(nqn string, allowAny bool, hosts []Host) error { panic("being written") }

// AddNamespace adds a namespace; connected hosts are told.
func (t *Target) AddNamespace(nqn string, ns Namespace) error { panic("being written") }

// RemoveNamespace removes a namespace; when it returns its device is not used any more.
func (t *Target) RemoveNamespace(nqn string, nsid uint32) error { panic("being written") }

// Resized tells connected hosts that a namespace's device has another size.
func (t *Target) Resized(nqn string, nsid uint32) error { panic("being written") }

// SetANA sets the access that a port gives to an ANA group of a subsystem; hosts are told.
func (t *Target) SetANA(nqn string, port uint16, group uint32, state ANAState) error {
	panic("being written")
}

// Disconnect ends a controller.
func (t *Target) Disconnect(nqn string, cntlid uint16) error { panic("being written") }

// Controllers lists the controllers.
func (t *Target) Controllers() []ControllerInfo { panic("being written") }

// Totals returns the target's counters.
func (t *Target) Totals() Totals { panic("being written") }

// Collector returns the target's metrics.
func (t *Target) Collector() prometheus.Collector { panic("being written") }
