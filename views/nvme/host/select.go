package host

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/wire"
)

// The ports that NVMe/TCP has by registration: of subsystems, and of discovery services.
const (
	Port          = "4420"
	DiscoveryPort = "8009"
)

// WithPort returns address with a port: its own, or else the given one.
func WithPort(address, port string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), port)
}

// DiscoverAt asks the discovery service at address. Without a port, the
// service's own port is tried and then that of subsystems, where targets
// answer too.
func DiscoverAt(ctx context.Context, address string, o Options) (entries []wire.DiscoveryEntry, generation uint64, at string, err error) {
	at = WithPort(address, DiscoveryPort)
	entries, generation, err = discoverAt(ctx, at, o)
	if other := WithPort(address, Port); err != nil && other != at && capsule.KindOf(err) == capsule.Unavailable {
		if e, g, err2 := discoverAt(ctx, other, o); err2 == nil {
			return e, g, other, nil
		}
	}
	return entries, generation, at, err
}

func discoverAt(ctx context.Context, address string, o Options) ([]wire.DiscoveryEntry, uint64, error) {
	o.KeepAlive = 0
	c, err := Connect(ctx, address, wire.DiscoveryNQN, o)
	if err != nil {
		return nil, 0, err
	}
	entries, generation, err := c.Discover(ctx)
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return entries, generation, err
}

// OnlySubsystem returns the one subsystem that a target lists at address.
func OnlySubsystem(ctx context.Context, address string, o Options) (string, error) {
	entries, _, _, err := DiscoverAt(ctx, address, o)
	if err != nil {
		return "", err
	}
	var names []string
	for _, e := range entries {
		if e.SubType == wire.SubTypeNVM && (len(names) == 0 || names[len(names)-1] != e.SubNQN) {
			names = append(names, e.SubNQN)
		}
	}
	switch len(names) {
	case 0:
		return "", capsule.Errorf(capsule.NotFound, "%s lists no subsystem for this host (%s)", address, o.HostNQN)
	case 1:
		return names[0], nil
	}
	return "", capsule.Errorf(capsule.Invalid, "%s has several subsystems; choose one with --nqn: %s", address, strings.Join(names, ", "))
}

// OnlyNamespace returns namespace nsid of a controller, or with nsid 0 its only one.
func (c *Controller) OnlyNamespace(ctx context.Context, nsid uint32) (*Namespace, error) {
	if nsid == 0 {
		list, err := c.Namespaces(ctx)
		if err != nil {
			return nil, err
		}
		switch len(list) {
		case 0:
			return nil, capsule.Errorf(capsule.NotFound, "subsystem %s has no namespaces", c.subsys)
		case 1:
			nsid = list[0]
		default:
			return nil, capsule.Errorf(capsule.Invalid, "subsystem %s has %d namespaces; choose one with --nsid: %v", c.subsys, len(list), list[:min(len(list), 16)])
		}
	}
	return c.Namespace(ctx, nsid)
}

// Identity returns who this machine is to NVMe targets, as nvme-cli and the
// kernel have it in dir (/etc/nvme); a machine that was never told is nobody
// in particular, and gets a name for each connection.
func Identity(dir string) (nqn string, id [16]byte, err error) {
	read := func(name string) (string, error) {
		b, err := os.ReadFile(dir + "/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return strings.TrimSpace(string(b)), capsule.Wrap(capsule.IO, err, "this host's identity")
	}
	if nqn, err = read("hostnqn"); err != nil {
		return "", id, err
	}
	text, err := read("hostid")
	if err != nil || text == "" {
		return nqn, id, err
	}
	id, err = ParseHostID(text)
	return nqn, id, capsule.Wrap(capsule.Invalid, err, "%s/hostid", dir)
}

// ParseHostID reads a host identifier, a UUID.
func ParseHostID(s string) (id [16]byte, err error) {
	u, err := capsule.ParseID(s)
	if err != nil {
		return id, capsule.Errorf(capsule.Invalid, "%.40q is no host identifier, which is a UUID", s)
	}
	return [16]byte(u), nil
}
