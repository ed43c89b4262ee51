package node

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/views/nvme"
)

// nvmePort is an address that hosts connect to.
type nvmePort struct {
	address    string // with a port number that is not 0, once it has been listened at
	port       nvme.Port
	ana        nvme.ANAState
	configured bool // by space.yaml: it stays open whoever uses it
	users      int  // projections that asked for it
	l          net.Listener
	down       error // why nobody can connect; nil: they can
}

func (p *nvmePort) loopback() bool {
	host, _, err := net.SplitHostPort(p.address)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// openConfigured opens the addresses of space.yaml. v.mu is held.
func (v *nvmeView) openConfigured() error {
	if v.configured {
		return nil
	}
	add := func(text string, port nvme.Port, ana nvme.ANAState) error {
		addr, err := listenAddress(text)
		if p := v.findPort(addr); err == nil && p != nil && p.port.DiscoveryOnly == port.DiscoveryOnly {
			// Open for a projection that asked for it, or since another address failed.
			p.configured, p.ana = true, ana
			return nil
		}
		if err == nil {
			_, err = v.addPort(&nvmePort{address: addr, port: port, ana: ana, configured: true}, false)
		}
		return capsule.Wrap(capsule.Other, err, "%s: nvme", ConfigName)
	}
	for _, l := range v.config.Listen {
		if err := add(l.Address, nvme.Port{ID: l.PortID}, l.ANA); err != nil {
			return err
		}
	}
	for _, text := range v.config.Discovery {
		if err := add(text, nvme.Port{DiscoveryOnly: true}, nvme.Optimized); err != nil {
			return err
		}
	}
	v.configured = true
	for nqn := range v.subsystems {
		if err := v.setPaths(nqn); err != nil {
			return err
		}
	}
	return nil
}

// openPorts opens the addresses that a projection asks for, or those that hold
// where it asks for none. Of a projection that is restored an address may be
// out of order for now.
func (v *nvmeView) openPorts(p *nvmeProjection, mayFail bool) (err error) {
	defer func() {
		if err != nil {
			v.releasePorts(p.ports)
		}
	}()
	if len(p.Listen) == 0 {
		if p.configured || len(v.config.Listen) > 0 {
			return v.openConfigured()
		}
		p.Listen = []string{defaultNVMe}
	}
	for i, addr := range p.Listen {
		port, err := v.usePort(addr, mayFail)
		if err != nil {
			return err
		}
		p.ports = append(p.ports, port)
		p.Listen[i] = port.address // with the number that 0 became
	}
	return nil
}

// addPorts opens more addresses for a projection.
func (v *nvmeView) addPorts(ctx context.Context, p *nvmeProjection, listen []string) error {
	had := len(p.ports)
	undo := func(err error) error {
		v.releasePorts(p.ports[had:])
		p.ports, p.Listen = p.ports[:had], p.Listen[:had]
		return err
	}
	for _, addr := range listen {
		if slices.Contains(p.Listen, addr) {
			continue
		}
		if had == 0 {
			return capsule.Errorf(capsule.Conflict, "%s is served at the addresses of %s", p.targetName(), ConfigName)
		}
		port, err := v.usePort(addr, false)
		if err != nil {
			return undo(err)
		}
		p.ports, p.Listen = append(p.ports, port), append(p.Listen, port.address)
	}
	if len(p.ports) == had {
		return nil
	}
	if err := v.noteAgain(ctx, p); err != nil {
		return undo(err)
	}
	return v.setPaths(p.NQN)
}

// usePort returns the port at an address, which it opens where there is none.
func (v *nvmeView) usePort(addr string, mayFail bool) (*nvmePort, error) {
	port := v.findPort(addr)
	if port == nil {
		var err error
		if port, err = v.addPort(&nvmePort{address: addr, ana: nvme.Optimized}, mayFail); err != nil {
			return nil, err
		}
	}
	if port.down != nil && !mayFail {
		if err := v.listen(port); err != nil {
			return nil, err
		}
	}
	if port.port.DiscoveryOnly {
		return nil, capsule.Errorf(capsule.Conflict, "%s is for discovery alone (%s)", addr, ConfigName)
	}
	port.users++
	return port, nil
}

func (v *nvmeView) findPort(addr string) *nvmePort {
	for _, p := range v.ports {
		if p.address == addr {
			return p
		}
	}
	return nil
}

// addPort opens an address. If it cannot be listened at, that is an error, or,
// with mayFail, tried again until it can.
func (v *nvmeView) addPort(p *nvmePort, mayFail bool) (*nvmePort, error) {
	if err := v.needTarget(); err != nil {
		return nil, err
	}
	taken := func(id uint16) bool {
		return slices.ContainsFunc(v.ports, func(p *nvmePort) bool { return p.port.ID == id }) ||
			slices.ContainsFunc(v.config.Listen, func(l NVMeListen) bool { return l.PortID == id })
	}
	if p.port.ID == 0 {
		// Not one of a port that may not have ended quite yet.
		for v.lastPort++; v.lastPort == 0 || taken(v.lastPort); v.lastPort++ {
		}
		p.port.ID = v.lastPort
	}
	if err := v.listen(p); err != nil && !mayFail {
		return nil, err
	}
	v.ports = append(v.ports, p)
	return p, nil
}

// listen has a port take connections.
func (v *nvmeView) listen(p *nvmePort) error {
	l, err := net.Listen("tcp", p.address)
	if p.down = err; err != nil {
		return capsule.Wrap(capsule.IO, err, "nvme")
	}
	p.l, p.address = l, l.Addr().String()
	v.log.Info("nvme target listens", "address", p.address, "port_id", p.port.ID, "discovery_only", p.port.DiscoveryOnly)
	v.serving.Go(func() {
		err := v.target.Serve(l, p.port)
		if err == nil || errors.Is(err, net.ErrClosed) { // we did that
			return
		}
		l.Close()
		v.log.Error("nvme target has stopped listening; it tries again", "address", l.Addr().String(), "error", err)
		// Not from here: whoever waits for us to end may hold the lock.
		go v.portFailed(p, l, err)
	})
	return nil
}

func (v *nvmeView) portFailed(p *nvmePort, l net.Listener, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.l == l {
		p.l, p.down = nil, err
		v.stir()
	}
}

// releasePorts gives up ports that a projection has used.
func (v *nvmeView) releasePorts(ports []*nvmePort) {
	for _, p := range ports {
		if p.users--; p.users > 0 || p.configured {
			continue
		}
		v.ports = slices.DeleteFunc(v.ports, func(q *nvmePort) bool { return q == p })
		if p.l != nil {
			p.l.Close()
			p.l = nil
		}
	}
}

// pathsOf returns the ports through which a projection is reached.
func (v *nvmeView) pathsOf(p *nvmeProjection) []*nvmePort {
	if len(p.ports) > 0 {
		return p.ports
	}
	return v.configuredPorts()
}

// configuredPorts are those of space.yaml at which disks are reached.
func (v *nvmeView) configuredPorts() []*nvmePort {
	var list []*nvmePort
	for _, port := range v.ports {
		if port.configured && !port.port.DiscoveryOnly {
			list = append(list, port)
		}
	}
	return list
}

func (v *nvmeView) portsDown() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.ContainsFunc(v.ports, func(p *nvmePort) bool { return p.down != nil })
}

// retryPorts tries again to listen where that failed.
func (v *nvmeView) retryPorts() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.ports {
		if p.down != nil && !v.closed {
			_ = v.listen(p) // p.down says so; listings show it
		}
	}
}

// setPaths tells the target at which ports a subsystem is reached: those of its
// namespaces, of which also is about to be one, and how good a path each is.
func (v *nvmeView) setPaths(nqn string, also ...*nvmeProjection) error {
	sub := v.subsystems[nqn]
	ids := []uint16{}
	add := func(ports []*nvmePort) error {
		for _, p := range ports {
			if slices.Contains(ids, p.port.ID) {
				continue
			}
			ids = append(ids, p.port.ID)
			if p.ana == nvme.Optimized {
				continue
			}
			if err := v.target.SetANA(nqn, p.port.ID, 1, p.ana); err != nil {
				return err
			}
		}
		return nil
	}
	if sub.configured {
		if err := add(v.configuredPorts()); err != nil {
			return err
		}
	}
	for _, p := range append(also, slices.Collect(maps.Values(sub.namespaces))...) {
		if err := add(v.pathsOf(p)); err != nil {
			return err
		}
	}
	slices.Sort(ids)
	return v.target.SetPorts(nqn, ids)
}

// configHosts reads what space.yaml says of hosts, secrets in files included.
func configHosts(home string, list []NVMeConfigHost) ([]control.NVMeHost, error) {
	var hosts []control.NVMeHost
	for _, c := range list {
		h := control.NVMeHost{NQN: c.NQN, Secret: c.Secret, CtrlSecret: c.CtrlSecret}
		for _, f := range []struct {
			path   string
			secret *string
		}{{c.SecretFile, &h.Secret}, {c.CtrlSecretFile, &h.CtrlSecret}} {
			if f.path == "" {
				continue
			}
			if !filepath.IsAbs(f.path) {
				f.path = filepath.Join(home, f.path)
			}
			text, err := ReadNVMeSecret(f.path)
			if err != nil {
				return nil, capsule.Wrap(capsule.Other, err, "host %s", c.NQN)
			}
			*f.secret = text
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// maxSecretFile is more than any secret has.
const maxSecretFile = 4 << 10

// ReadNVMeSecret reads a DH-HMAC-CHAP secret from a file.
func ReadNVMeSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", capsule.Wrap(capsule.IO, err, "secret")
	}
	defer f.Close()
	buf := make([]byte, maxSecretFile)
	n, err := f.Read(buf)
	if err != nil {
		return "", capsule.Wrap(capsule.IO, err, "secret in %s", path)
	}
	var text string
	if setSecret(&text)(strings.TrimSpace(string(buf[:n]))) != nil {
		return "", capsule.Errorf(capsule.Invalid, "%s holds no secret; want a line DHHC-1:…, as `nvme gen-dhchap-key` prints it", path)
	}
	return text, nil
}
