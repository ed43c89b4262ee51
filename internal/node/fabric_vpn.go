package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/vpn"
	"github.com/spacestore/space/internal/control"
)

// VPN implements control.Fabric.
func (f *fabricNode) VPN(ctx context.Context, r control.VPNRequest, tell func(control.JobEvent) error) error {
	if r.Pool != "" {
		if err := checkPool(r.Pool); err != nil {
			return err
		}
	}
	if err := setDevice(&r.Device, r.Device); err != nil {
		return capsule.Errorf(capsule.Invalid, "the device %.32q: %v", r.Device, err)
	}
	return f.job(ctx, func(ctx context.Context) error { return f.vpn(ctx, r, tell) })
}

func (f *fabricNode) vpn(ctx context.Context, r control.VPNRequest, tell func(control.JobEvent) error) error {
	if r.Exit {
		return f.vpnExit(ctx, r, tell)
	}
	return f.vpnClient(ctx, r, tell)
}

// openTUN makes a network device.
func openTUN(name string) (vpn.Device, error) {
	dev, err := vpn.OpenTUN(name)
	if errors.Is(err, fs.ErrPermission) {
		return nil, capsule.Wrap(capsule.Denied, err, "network device: it takes root, or CAP_NET_ADMIN, to make one")
	}
	return dev, capsule.Wrap(capsule.IO, err, "network device")
}

func (f *fabricNode) vpnExit(ctx context.Context, r control.VPNRequest, tell func(control.JobEvent) error) error {
	network, err := netip.ParsePrefix(r.Network)
	if err != nil {
		return capsule.Errorf(capsule.Invalid, "vpn: %.64q is no network such as 10.77.0.0/24", r.Network)
	}
	dev, err := openTUN(r.Device)
	if err != nil {
		return err
	}
	e, err := vpn.NewExit(vpn.ExitOptions{Device: dev, Pool: network, MTU: r.MTU, Log: f.log})
	if err != nil {
		dev.Close()
		return capsule.Wrap(capsule.Invalid, err, "vpn")
	}
	defer e.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-e.Done():
			cancel(e.Err())
		case <-ctx.Done():
		}
	}()
	at := fmt.Sprintf("%s %s", dev.Name(), netip.PrefixFrom(e.Gateway(), network.Bits()))
	err = f.provide(ctx, fabric.Service{Profile: profile("vpn-packets"), Pool: r.Pool}, func(control.JobEvent) error {
		return tell(control.JobEvent{Ready: at})
	}, func(ctx context.Context, t *fabric.Tunnel) error { return e.Serve(ctx, t, t.ID(), t.Peer()) })
	if failed := e.Err(); failed != nil {
		return failed
	}
	return err
}

func (f *fabricNode) vpnClient(ctx context.Context, r control.VPNRequest, tell func(control.JobEvent) error) error {
	routes, err := prefixes(r.Routes)
	if err != nil {
		return err
	}
	bypass, err := prefixes(r.Bypass)
	if err != nil {
		return err
	}
	var t *fabric.Tunnel
	if err := f.patiently(ctx, r.Wait, func() (err error) {
		t, err = f.tunnel(ctx, fabric.Request{Profile: profile("vpn-packets"), Pool: r.Pool})
		return err
	}); err != nil {
		return unlessEnded(ctx, err)
	}
	defer t.Close()
	dev, err := openTUN(r.Device)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var once sync.Once
	c, err := vpn.NewClient(vpn.ClientOptions{Device: dev, MTU: r.MTU, Routes: routes, Bypass: bypass, Log: f.log, Leased: func(l vpn.Lease) {
		addr := netip.PrefixFrom(l.Addr, l.Bits)
		e := control.JobEvent{Note: fmt.Sprintf("the address is now %s, of the exit %s", addr, l.Gateway)}
		once.Do(func() { e = control.JobEvent{Ready: fmt.Sprintf("%s %s", dev.Name(), addr)} })
		if err := tell(e); err != nil {
			cancel(err)
		}
	}})
	if err != nil {
		dev.Close()
		return capsule.Wrap(capsule.Invalid, err, "vpn")
	}
	return unlessEnded(ctx, c.Run(ctx, t))
}

func prefixes(texts []string) (list []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, capsule.Errorf(capsule.Invalid, "vpn: %.64q is no network such as 10.0.0.0/8", text)
		}
		list = append(list, p)
	}
	return list, nil
}
