package main

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/node"
	"github.com/spacestore/space/views"
)

// projectNVMeFlags are those of project --view nvme.
type projectNVMeFlags struct {
	ids, names []string
	listen     []string
	nqn        string
	nsid       uint32
	hosts      []string
}

func (n *projectNVMeFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&n.ids, "id", nil, "the capsule's ID; several are namespaces of one subsystem")
	f.StringArrayVar(&n.names, "name", nil, "the capsule's name")
	f.StringArrayVar(&n.listen, "listen", nil, "nvme: address that hosts connect to; may be given several times (default 127.0.0.1:4420, or what space.yaml says)")
	f.StringVar(&n.nqn, "nqn", "", "nvme: name of the subsystem (default: made of the capsule's ID)")
	f.Uint32Var(&n.nsid, "nsid", 0, "nvme: namespace ID (default: the lowest that is free)")
	f.StringArrayVar(&n.hosts, "host", nil, "nvme: NQN[=SECRET[,CTRL-SECRET]] of a host that may connect; a secret may be @FILE (default: any host, without a secret)")
}

// given reports whether any flag is set that means nothing to other views.
func (n *projectNVMeFlags) given() bool {
	return len(n.listen) > 0 || n.nqn != "" || n.nsid != 0 || len(n.hosts) > 0
}

// refs are the capsules that the flags name.
func (n *projectNVMeFlags) refs() ([]string, error) {
	for _, id := range n.ids {
		if _, err := capsule.ParseID(id); err != nil {
			return nil, err
		}
	}
	for _, name := range n.names {
		if name == "" {
			return nil, capsule.Errorf(capsule.Invalid, "the empty string names no capsule")
		}
	}
	return append(append([]string{}, n.ids...), n.names...), nil
}

// parseHost reads NQN[=SECRET[,CTRL-SECRET]].
func parseHost(text string) (control.NVMeHost, error) {
	nqn, secrets, _ := strings.Cut(text, "=")
	h := control.NVMeHost{NQN: nqn}
	h.Secret, h.CtrlSecret, _ = strings.Cut(secrets, ",")
	for _, s := range []*string{&h.Secret, &h.CtrlSecret} {
		if file, ok := strings.CutPrefix(*s, "@"); ok {
			var err error
			if *s, err = node.ReadNVMeSecret(file); err != nil {
				return h, capsule.Wrap(capsule.Other, err, "host %s", show(nqn))
			}
		}
	}
	return h, nil
}

func (a *app) projectNVMe(ctx context.Context, m mountFlags, n projectNVMeFlags) error {
	refs, err := n.refs()
	switch {
	case err != nil:
		return err
	case len(refs) == 0:
		return capsule.Errorf(capsule.Invalid, "project: name the capsules with --id or --name")
	case m.req.All || m.req.Target != "" || m.req.AllowOther:
		return capsule.Errorf(capsule.Invalid, "project: --all, --target and --allow-other are for --view fuse")
	case len(refs) > 1 && (n.nsid != 0 || m.req.Snapshot != "" || m.foreground):
		return capsule.Errorf(capsule.Invalid, "project: --nsid, --snapshot and --foreground go with one capsule")
	}
	req := m.req
	req.NVMe = control.NVMeExport{Listen: n.listen, NQN: n.nqn, NSID: n.nsid}
	for _, text := range n.hosts {
		h, err := parseHost(text)
		if err != nil {
			return err
		}
		req.NVMe.Hosts = append(req.NVMe.Hosts, h)
	}
	for _, ref := range refs {
		if err := a.setPolicyFirst(ctx, m.policy, ref); err != nil {
			return err
		}
	}
	if m.foreground {
		req.Ref = refs[0]
		err := node.RunMount(ctx, node.Options{Target: a.target, Force: a.force}, req, func(info views.Info) error {
			if err := a.printNamespaces([]views.Info{info}); err != nil {
				return err
			}
			return a.stdout.Flush() // whoever waits for the line should get it now
		})
		return capsule.Wrap(capsule.Other, err, "project %s", show(req.Ref))
	}
	var done []views.Info
	start := time.Now()
	for _, ref := range refs {
		req.Ref = ref
		info, err := node.Mount(ctx, a.target, req)
		if err != nil {
			for _, d := range done { // all of them or none; what was there before has its hosts
				if d.Since.Before(start) {
					continue
				}
				if _, uerr := node.Unmount(ctx, a.target, d.ID, true); uerr != nil {
					a.note("%s stays projected as %s: %v", d.Capsule, d.ID, uerr)
				}
			}
			return capsule.Wrap(capsule.Other, err, "project %s", show(ref))
		}
		done = append(done, info)
		// The others become namespaces of the same subsystem, at the same port
		// even where that was left open.
		req.NVMe.NQN, req.NVMe.Listen = info.NVMe.NQN, info.NVMe.Addresses
	}
	return a.printNamespaces(done)
}

// printNamespaces says how to connect.
func (a *app) printNamespaces(list []views.Info) error {
	if a.json() {
		return a.printJSON(map[string]any{"projections": list})
	}
	for i, p := range list {
		if p.Note != "" {
			a.note("%s: %s", p.Target, p.Note)
		}
		if i > 0 && p.NVMe.NQN == list[i-1].NVMe.NQN {
			continue // one connection has all namespaces of a subsystem
		}
		for _, addr := range p.NVMe.Addresses {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				continue
			}
			a.printf("nvme connect -t tcp -a %s -s %s -n %s\n", printable(host), printable(port), printable(p.NVMe.NQN))
		}
	}
	return nil
}

// clientRates is a client with what it did in the last second.
type clientRates struct {
	views.Client
	ReadRate  rates `json:"read_rate"`
	WriteRate rates `json:"write_rate"`
}

type rates struct {
	Operations float64 `json:"operations_per_second"`
	Bytes      float64 `json:"bytes_per_second"`
}

func rateOf(was, is views.Traffic, d time.Duration) rates {
	return rates{float64(is.Operations-was.Operations) / d.Seconds(), float64(is.Bytes-was.Bytes) / d.Seconds()}
}

// sampleClients looks at the clients twice, a second apart.
func (a *app) sampleClients(ctx context.Context) ([]clientRates, error) {
	before, err := node.Clients(ctx, a.target)
	if err != nil || len(before) == 0 {
		return nil, err
	}
	start := time.Now()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	now, err := node.Clients(ctx, a.target)
	took := time.Since(start)
	type key struct {
		subsystem  string
		controller uint16
		since      time.Time
	}
	was := map[key]views.Client{}
	for _, c := range before {
		was[key{c.Subsystem, c.Controller, c.Since}] = c
	}
	var list []clientRates
	for _, c := range now {
		b := was[key{c.Subsystem, c.Controller, c.Since}]
		list = append(list, clientRates{c, rateOf(b.Reads, c.Reads, took), rateOf(b.Writes, c.Writes, took)})
	}
	return list, err
}

func (a *app) printClients(list []clientRates) {
	a.printf("%-22s  %6s  %-19s  %9s  %11s  %-13s  %9s  %11s  %-13s  %s\n", "CLIENT", "QUEUES", "SINCE",
		"READS/S", "READ", "P50 P99", "WRITES/S", "WRITTEN", "P50 P99", "HOST AND SUBSYSTEM")
	for _, c := range list {
		a.printf("%-22s  %6d  %-19s  %9.0f  %9s/s  %-13s  %9.0f  %9s/s  %-13s  %s %s\n", printable(c.Address), c.Queues, when(c.Since),
			c.ReadRate.Operations, size(int64(c.ReadRate.Bytes)), latencies(c.Reads),
			c.WriteRate.Operations, size(int64(c.WriteRate.Bytes)), latencies(c.Writes), printable(c.Host), printable(c.Subsystem))
	}
}

func latencies(t views.Traffic) string {
	if t.Operations == 0 {
		return "-"
	}
	short := func(d capsule.Duration) string { return time.Duration(d).Round(time.Microsecond).String() }
	return short(t.P50) + " " + short(t.P99)
}
