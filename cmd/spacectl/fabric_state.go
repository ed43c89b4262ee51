package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/internal/control"
)

func newFabricStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show who this node is and what it does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withFabric(cmd.Context(), "status", func(c *control.FabricClient) error {
				st, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(st)
				}
				return a.printFabricStatus(st)
			})
		},
	}
}

func (a *app) printFabricStatus(st fabric.Status) error {
	role := []string{}
	if st.Authority {
		role = append(role, "authority")
	}
	if st.Relay {
		role = append(role, "relay")
	}
	pairs := []string{"Node", st.Node.String(), "Name", st.Name, "Area", st.Area, "Organization", st.Organization, "Fabric", st.Fabric.String(),
		"Listens at", dash(strings.Join(st.Addrs, " ")), "Roles", dash(strings.Join(role, ", "))}
	if st.Draining {
		pairs = append(pairs, "Draining", "yes")
	}
	if !st.Rejected.IsZero() {
		pairs = append(pairs, "Shut out", "other nodes do not take the certificate ("+when(st.Rejected)+"): revoked, ended, or a clock is wrong")
	}
	a.fields(append(pairs, "Started", when(st.Started), "Certificate", "renewed from "+when(st.CertRenewal),
		"Nodes known", fmt.Sprint(st.Nodes), "Sessions", fmt.Sprint(st.Sessions), "Tunnels", fmt.Sprint(st.Tunnels), "Streams", fmt.Sprint(st.Streams),
		"Links passed on", fmt.Sprint(st.PassedOn), "Failovers", fmt.Sprint(st.Failovers), "Refused", fmt.Sprint(st.Refused), "Windows", size(st.Windows)+" of "+size(st.WindowLimit))...)
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nCLASS\tSENT\tRECEIVED\tDROPPED\tQUEUED\tMEAN DELAY\tLONGEST\n")
	for _, c := range st.Classes {
		mean, frames := time.Duration(0), int64(0)
		for _, n := range c.Delay.Buckets {
			frames += n
		}
		if frames > 0 {
			mean = c.Delay.Sum / time.Duration(frames)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%v\t%v\n", c.Class, size(c.Sent), size(c.Received), c.Dropped, size(c.Queued),
			mean.Round(time.Microsecond), c.Delay.Max.Round(time.Microsecond))
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// stateCommand lists one thing that the node knows.
func stateCommand[T any](a *app, name, key, short, long string, list func(*control.FabricClient, context.Context) ([]T, error), table func(io.Writer, []T)) *cobra.Command {
	return &cobra.Command{
		Use:   name,
		Short: short,
		Long:  long,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withFabric(cmd.Context(), name, func(c *control.FabricClient) error {
				items, err := list(c, cmd.Context())
				if err != nil {
					return err
				}
				if a.json() {
					l := a.newJSONList(key)
					for _, item := range items {
						if err := l.add(item); err != nil {
							return err
						}
					}
					return l.end(nil)
				}
				w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
				table(w, items)
				return w.Flush()
			})
		},
	}
}

func newFabricNodes(a *app) *cobra.Command {
	return stateCommand(a, "nodes", "nodes", "List the nodes that this one knows",
		`List the nodes that this one knows: all of its own area, and of other areas those
that pass links on. A star marks this node, a plus those that it has a session
with.`, (*control.FabricClient).Nodes, func(w io.Writer, nodes []fabric.NodeState) {
			fmt.Fprintf(w, "NODE\tNAME\tAREA\tORGANIZATION\tADDRESSES\tPROVIDES\n")
			for _, n := range nodes {
				mark := " "
				switch {
				case n.Self:
					mark = "*"
				case n.Session:
					mark = "+"
				}
				var services []string
				for _, s := range n.Services {
					services = append(services, s.Pool+"/"+s.Kind)
				}
				if n.Relay {
					services = append(services, "(relay)")
				}
				fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\t%s\t%s\n", n.Node, mark, printable(dash(n.Name)), printable(dash(n.Area)), printable(dash(n.Organization)),
					printable(dash(strings.Join(n.Addrs, " "))), printable(dash(strings.Join(services, " "))))
			}
		})
}

func newFabricTunnels(a *app) *cobra.Command {
	return stateCommand(a, "tunnels", "tunnels", "List the tunnels that end here",
		`List the tunnels that end at this node, their peers, routes and traffic. With
-o json the contract and the streams of each are shown too.`,
		(*control.FabricClient).Tunnels, printTunnels)
}

func printTunnels(w io.Writer, tunnels []fabric.TunnelState) {
	fmt.Fprintf(w, "TUNNEL\tPOOL/KIND\tSTATE\tPEER\tROUTE\tSTREAMS\tSENT\tRECEIVED\tAGE\n")
	for _, t := range tunnels {
		side := "<"
		if t.Opener {
			side = ">"
		}
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s %.8s\t%s\t%d\t%s\t%s\t%s\n", t.Contract.TunnelID, printable(t.Contract.PoolID), printable(t.Contract.ServiceKind),
			t.State, side, printable(t.Peer), printable(dash(t.Route)), len(t.Streams)+t.Omitted, size(t.Sent), size(t.Received), age(t.Opened))
	}
}

func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}

func newFabricRoutes(a *app) *cobra.Command {
	return stateCommand(a, "routes", "routes", "List the routes to other nodes, and how good they are",
		`List the routes to the nodes that this one has sessions with: over which carrier,
through whom, and how good they are.`, (*control.FabricClient).Routes, printRoutes)
}

func printRoutes(w io.Writer, routes []fabric.RouteState) {
	fmt.Fprintf(w, "PEER\tNAME\tSTATE\tCARRIER\tVIA\tLINKS\tTUNNELS\tRTT\tLOSS\tRATE\tGENERATION\tAGE\n")
	for _, r := range routes {
		rtt := "-"
		if r.RTT > 0 {
			rtt = r.RTT.Round(10 * time.Microsecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.8s\t%d\t%d\t%s\t%.1f%%\t%s/s\t%d\t%s\n", r.Peer, printable(dash(r.Name)), r.State, dash(r.Carrier),
			printable(dash(r.Via)), r.Links, r.Tunnels, rtt, 100*r.Loss, size(r.Throughput), r.Generation, age(r.Since))
	}
}

func newFabricLimits(a *app) *cobra.Command {
	return stateCommand(a, "limits", "limits", "List what is in use, by whom, and the limits",
		`List what the node, and each route, pool, organization and service, has in use, of
what limit: sessions, tunnels, streams, bytes of windows, and bytes a second. The
limits are in the fabric section of space.yaml.`, (*control.FabricClient).Usage, func(w io.Writer, list []control.FabricUsage) {
			of := func(used, limit int64) string {
				if limit == 0 {
					return fmt.Sprint(used)
				}
				return fmt.Sprintf("%d of %d", used, limit)
			}
			fmt.Fprintf(w, "SCOPE\tNAME\tSESSIONS\tTUNNELS\tSTREAMS\tWINDOWS\tPASSED\tRATE LIMIT\tREFUSED\n")
			for _, u := range list {
				rate := "-"
				if u.Limit.Rate > 0 {
					rate = size(u.Limit.Rate) + "/s"
				}
				window := size(u.Used.Window)
				if u.Limit.Window > 0 {
					window += " of " + size(u.Limit.Window)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n", u.Scope, printable(dash(u.Name)), of(u.Used.Sessions, u.Limit.Sessions),
					of(u.Used.Tunnels, u.Limit.Tunnels), of(u.Used.Streams, u.Limit.Streams), window, size(u.Used.Passed), rate, u.Refused)
			}
		})
}

// fabricView is what top shows: the node, and what moved within an interval.
type fabricView struct {
	Status  fabric.Status        `json:"status"`
	Classes []classRate          `json:"rates"`
	Routes  []fabric.RouteState  `json:"routes"`
	Tunnels []fabric.TunnelState `json:"tunnels"` // the busiest first
}

// classRate is bytes a second.
type classRate struct {
	Class    string `json:"class"`
	Sent     int64  `json:"sent_bytes_per_second"`
	Received int64  `json:"received_bytes_per_second"`
	Dropped  int64  `json:"dropped"` // within the interval
	Queued   int64  `json:"queued_bytes"`
}

// fabricTop looks at a node again and again.
type fabricTop struct {
	c      *control.FabricClient
	at     time.Time
	status fabric.Status
	moved  map[fabric.TunnelID]int64 // bytes ever, at the last look
	rates  map[fabric.TunnelID]float64
}

// look takes a look and compares with the one before.
func (t *fabricTop) look(ctx context.Context) (v fabricView, err error) {
	if v.Status, err = t.c.Status(ctx); err != nil {
		return v, err
	}
	if v.Routes, err = t.c.Routes(ctx); err != nil {
		return v, err
	}
	if v.Tunnels, err = t.c.Tunnels(ctx); err != nil {
		return v, err
	}
	now := time.Now()
	passed := now.Sub(t.at).Seconds()
	before := map[string]fabric.ClassState{}
	for _, c := range t.status.Classes {
		before[c.Class.String()] = c
	}
	for _, c := range v.Status.Classes {
		b := before[c.Class.String()]
		v.Classes = append(v.Classes, classRate{c.Class.String(), int64(float64(c.Sent-b.Sent) / passed), int64(float64(c.Received-b.Received) / passed), c.Dropped - b.Dropped, c.Queued})
	}
	moved := map[fabric.TunnelID]int64{}
	t.rates = map[fabric.TunnelID]float64{}
	for _, one := range v.Tunnels {
		id, sum := one.Contract.TunnelID, one.Sent+one.Received
		t.rates[id] = float64(sum-t.moved[id]) / passed
		moved[id] = sum
	}
	slices.SortStableFunc(v.Tunnels, func(x, y fabric.TunnelState) int {
		return cmp.Compare(t.rates[y.Contract.TunnelID], t.rates[x.Contract.TunnelID])
	})
	t.at, t.status, t.moved = now, v.Status, moved
	return v, nil
}

func newFabricTop(a *app) *cobra.Command {
	var interval time.Duration
	var most int
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch what moves: classes, routes and the busiest tunnels",
		Long: `Show what moved within the last --interval, by class, and the routes and the
busiest tunnels. On a terminal again and again until Ctrl-C, elsewhere once.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return capsule.Errorf(capsule.Invalid, "fabric top: --interval has to be 100ms or more")
			}
			ctx := cmd.Context()
			again := a.stdout.terminal() && !a.json()
			err := a.withFabric(ctx, "top", func(c *control.FabricClient) error {
				t := &fabricTop{c: c}
				if _, err := t.look(ctx); err != nil {
					return err
				}
				tick := time.NewTicker(interval)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
					case <-ctx.Done():
						return context.Cause(ctx)
					}
					v, err := t.look(ctx)
					if err != nil {
						return err
					}
					if again {
						a.printf("\x1b[H\x1b[2J")
					}
					if err := a.printTop(t, v, most); err != nil || !again {
						return err
					}
					if err := a.stdout.Flush(); err != nil {
						return err
					}
				}
			})
			if again && ctx.Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "how often to look")
	cmd.Flags().IntVar(&most, "tunnels", 20, "how many tunnels to show")
	return cmd
}

func (a *app) printTop(t *fabricTop, v fabricView, most int) error {
	v.Tunnels = v.Tunnels[:min(len(v.Tunnels), max(most, 0))]
	if a.json() {
		return a.printJSON(v)
	}
	st := v.Status
	a.printf("%s (%s), area %s: %s, %s, %s, %s\n\n", printable(st.Name), st.Node, printable(st.Area), count(int64(st.Nodes), "node", "nodes"),
		count(int64(st.Sessions), "session", "sessions"), count(int64(st.Tunnels), "tunnel", "tunnels"), count(int64(st.Streams), "stream", "streams"))
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "CLASS\tSENT\tRECEIVED\tDROPPED\tQUEUED\n")
	for _, c := range v.Classes {
		fmt.Fprintf(w, "%s\t%s/s\t%s/s\t%d\t%s\n", c.Class, size(c.Sent), size(c.Received), c.Dropped, size(c.Queued))
	}
	fmt.Fprintf(w, "\nPEER\tSTATE\tROUTE\tLINKS\tTUNNELS\tRTT\tLOSS\tRATE\n")
	for _, r := range v.Routes {
		route := r.Carrier
		if r.Via != "" {
			route += " via " + r.Via
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%v\t%.1f%%\t%s/s\n", printable(cmp.Or(r.Name, r.Peer.String())), r.State, printable(dash(route)), r.Links, r.Tunnels,
			r.RTT.Round(10*time.Microsecond), 100*r.Loss, size(r.Throughput))
	}
	fmt.Fprintf(w, "\nTUNNEL\tPOOL/KIND\tSTATE\tSTREAMS\tRATE\n")
	for _, one := range v.Tunnels {
		c := one.Contract
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%d\t%s/s\n", c.TunnelID, printable(c.PoolID), printable(c.ServiceKind), one.State, len(one.Streams)+one.Omitted,
			size(int64(t.rates[c.TunnelID])))
	}
	return w.Flush()
}
