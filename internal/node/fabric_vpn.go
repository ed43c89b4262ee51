package node

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"sync"
	"time"

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
	o, err := exitOptions(r)
	if err != nil {
		return err
	}
	dev, err := openTUN(r.Device)
	if err != nil {
		return err
	}
	o.Device, o.Log = dev, f.log
	e, err := vpn.NewExit(o)
	if err != nil {
		dev.Close()
		return capsule.Wrap(capsule.IO, err, "vpn")
	}
	defer e.Close()
	defer f.counts.vpnExit.track(e.Stats)()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-e.Done():
			cancel(e.Err())
		case <-ctx.Done():
		}
	}()
	at := deviceAt(dev, e.Gateways())
	err = f.provide(ctx, fabric.Service{Profile: profile("vpn-packets"), Pool: r.Pool}, func(control.JobEvent) error {
		return tell(control.JobEvent{Ready: at})
	}, func(ctx context.Context, t *fabric.Tunnel) error { return e.Serve(ctx, t, t.ID(), t.Peer()) })
	if failed := e.Err(); failed != nil {
		return failed
	}
	return err
}

func (f *fabricNode) vpnClient(ctx context.Context, r control.VPNRequest, tell func(control.JobEvent) error) error {
	o, err := clientOptions(r)
	if err != nil {
		return err
	}
	var t *fabric.Tunnel
	ask := func() error {
		next, err := f.tunnel(ctx, fabric.Request{Profile: profile("vpn-packets"), Pool: r.Pool})
		if err == nil {
			t = next
		}
		return err
	}
	if err := f.patiently(ctx, r.Wait, ask); err != nil {
		return unlessEnded(ctx, err)
	}
	defer func() { t.Close() }()
	dev, err := openTUN(r.Device)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var once sync.Once
	o.Device, o.Log, o.Around = dev, f.log, func() []netip.Addr {
		return f.reach.around(ctx, f.seeds, f.Node.Linked(), f.Node.Nodes())
	}
	o.Again = func(ctx context.Context) (vpn.Tunnel, error) {
		t.Close()
		for pause := jobPause / 4; ; pause = min(2*pause, maxJobPause/6) {
			err := ask()
			if err == nil {
				return t, nil
			}
			f.log.Warn("there is no exit now", "pool", r.Pool, "error", err, "again_in", pause.String())
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
	o.Leased = func(l vpn.Lease) {
		at := deviceAt(dev, l.Addrs())
		e := control.JobEvent{Note: "the exit has given an address anew: " + at}
		once.Do(func() { e = control.JobEvent{Ready: at} })
		if err := tell(e); err != nil {
			cancel(err)
		}
	}
	c, err := vpn.NewClient(o)
	if err != nil {
		dev.Close()
		return capsule.Wrap(capsule.Invalid, err, "vpn")
	}
	defer f.counts.vpnClient.track(c.Stats)()
	return unlessEnded(ctx, c.Run(ctx, t))
}

// deviceAt says which device has which addresses.
func deviceAt(dev vpn.Device, addrs []netip.Prefix) string {
	at := dev.Name()
	for _, a := range addrs {
		at += " " + a.String()
	}
	return at
}

// exitOptions reads what an exit is told.
func exitOptions(r control.VPNRequest) (o vpn.ExitOptions, err error) {
	if o.Pools, err = prefixes(r.Networks); err != nil {
		return o, err
	}
	o.MTU = r.MTU
	return o, capsule.Wrap(capsule.Invalid, o.Check(), "")
}

// clientOptions reads what a client is told.
func clientOptions(r control.VPNRequest) (o vpn.ClientOptions, err error) {
	if o.Routes, err = prefixes(r.Routes); err != nil {
		return o, err
	}
	if o.Bypass, err = prefixes(r.Bypass); err != nil {
		return o, err
	}
	o.MTU = r.MTU
	return o, capsule.Wrap(capsule.Invalid, o.Check(), "")
}

func prefixes(texts []string) (list []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, capsule.Errorf(capsule.Invalid, "vpn: %.64q is no network such as 10.0.0.0/8 or fd00::/8", text)
		}
		list = append(list, p)
	}
	return list, nil
}
