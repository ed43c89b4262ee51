package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/control/transfer"
)

// runService runs a job that lasts until a signal ends it, which is no error.
// When it works, done is called with where.
func (a *app) runService(ctx context.Context, what string, job func(*control.FabricClient, func(control.JobEvent) error) error, ready func(at string) error) error {
	err := a.withFabric(ctx, what, func(c *control.FabricClient) error {
		return job(c, func(e control.JobEvent) error {
			if e.Note != "" {
				a.note("%s", e.Note)
			}
			if e.Ready == "" {
				return nil
			}
			if err := ready(e.Ready); err != nil {
				return err
			}
			return a.stdout.Flush()
		})
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// addWait adds the flag --wait.
func addWait(cmd *cobra.Command, wait *time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", 5*time.Second, "how long to wait for a node that provides it")
}

// localAddress lets a port alone stand for one of this machine.
func localAddress(text string) string {
	if _, err := strconv.ParseUint(text, 10, 16); err == nil {
		return net.JoinHostPort("127.0.0.1", text)
	}
	return text
}

func newFabricExpose(a *app) *cobra.Command {
	var r control.ExposeRequest
	cmd := &cobra.Command{
		Use:   "expose NAME [ADDRESS]",
		Short: "Offer a TCP service to the fabric, as long as the command runs",
		Long: `Offer the TCP service at ADDRESS (host:port, a port of this machine, or unix:PATH)
to the fabric as the pool NAME. Nodes that expose the same name back each other
up. Prints the name when others can find it, and ends with Ctrl-C.

With --allow those who forward may ask for other addresses, by rules such as
10.0.0.0/8:22, *.internal:443 or db:5000-5100; without ADDRESS they have to.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Pool = args[0]; len(args) == 2 {
				r.Address = localAddress(args[1])
			}
			return a.runService(cmd.Context(), "expose "+show(r.Pool), func(c *control.FabricClient, tell func(control.JobEvent) error) error {
				return c.Expose(cmd.Context(), r, tell)
			}, func(string) error {
				if a.json() {
					return a.printJSON(map[string]string{"pool": r.Pool, "address": r.Address})
				}
				a.printf("%s\n", r.Pool)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&r.Allow, "allow", nil, "what else may be asked for: HOST:PORTS, with addresses, prefixes, names or *.DOMAIN")
	f.StringSliceVar(&r.Peers, "peer", nil, "the nodes, by ID, that may use it (default: all)")
	f.BoolVar(&r.ProxyProtocol, "proxy-protocol", false, "tell the service who calls, by the PROXY protocol, version 2")
	f.IntVar(&r.Connections, "connections", 0, "how many connections at a time (default 1024)")
	return cmd
}

func newFabricForward(a *app) *cobra.Command {
	var r control.ForwardRequest
	cmd := &cobra.Command{
		Use:   "forward LISTEN POOL[/KIND]",
		Short: "Reach a service of the fabric at an address of this machine",
		Long: `Listen at LISTEN (host:port, or a port of this machine alone) and carry each
connection to a node that exposes POOL. Prints the address when it listens: with
port 0 the system chooses one. Ends with Ctrl-C.

Which node serves is the fabric's business. When it fails, new connections go to
another one that exposes the pool; those that it had end.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Listen = localAddress(args[0])
			r.Pool, r.Kind, _ = strings.Cut(args[1], "/")
			return a.runService(cmd.Context(), "forward "+show(args[1]), func(c *control.FabricClient, tell func(control.JobEvent) error) error {
				return c.Forward(cmd.Context(), r, tell)
			}, func(at string) error {
				if a.json() {
					return a.printJSON(map[string]string{"listen": at, "pool": r.Pool})
				}
				a.printf("%s\n", at)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Target, "target", "", "what to ask the other end for: host:port (default: what it exposes)")
	addWait(cmd, &r.Wait)
	f.BoolVar(&r.Bulk, "bulk", false, "let interactive traffic go first: for backups, images and the like")
	return cmd
}

func newFabricVPN(a *app) *cobra.Command {
	var r control.VPNRequest
	cmd := &cobra.Command{
		Use:   "vpn",
		Short: "Carry IP packets between this machine and an exit",
		Long: `Make a network device whose packets go to an exit of the fabric, which gives it
its address; --route says which networks are reached through it. With --exit be
such an exit, for the addresses of --network. Takes the right to make network
devices (root, or CAP_NET_ADMIN) at the node, and ends with Ctrl-C.

An exit passes packets on if its kernel is told to (net.ipv4.ip_forward,
net.ipv6.conf.all.forwarding);
docs/fabric.md has the lines.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case r.Exit && len(r.Networks) == 0:
				return capsule.Errorf(capsule.Invalid, "fabric vpn: an exit needs the network whose addresses it gives out, such as --network 10.77.0.0/24,fd77::/64")
			case !r.Exit && len(r.Networks) > 0:
				return capsule.Errorf(capsule.Invalid, "fabric vpn: --network is for --exit; a client gets its address from the exit")
			case r.Exit && len(r.Routes)+len(r.Bypass) > 0:
				return capsule.Errorf(capsule.Invalid, "fabric vpn: --route and --bypass are for clients")
			}
			return a.runService(cmd.Context(), "vpn", func(c *control.FabricClient, tell func(control.JobEvent) error) error {
				return c.VPN(cmd.Context(), r, tell)
			}, func(at string) error {
				if a.json() {
					device, addresses, _ := strings.Cut(at, " ")
					return a.printJSON(map[string]any{"device": device, "addresses": strings.Fields(addresses), "exit": r.Exit})
				}
				a.printf("%s\n", at)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.Exit, "exit", false, "be the way out for others")
	f.StringSliceVar(&r.Networks, "network", nil, "with --exit: the network whose addresses are given out, one of IPv4, one of IPv6, or both")
	f.StringVar(&r.Device, "device", "", "name of the network device (default: the kernel's choice)")
	f.IntVar(&r.MTU, "mtu", 0, "the device's MTU (default: as usual)")
	addWait(cmd, &r.Wait)
	f.StringVar(&r.Pool, "pool", "", "pool of exits (default ipv4-egress)")
	f.StringSliceVar(&r.Routes, "route", nil, "networks that are reached through the tunnel, such as 10.0.0.0/8, 0.0.0.0/0 or ::/0")
	f.StringSliceVar(&r.Bypass, "bypass", nil, "networks that are not, although a route covers them: such as those of the fabric's nodes")
	return cmd
}

// absolute makes a path good for the node, which works elsewhere.
func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	return abs, transfer.FileError(err, "path")
}

// rateFlag reads the flag --rate.
func rateFlag(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	return parseSize("--rate", text)
}

// transferLine is a line that transfers print with -o json.
type transferLine struct {
	Event string `json:"event"` // progress; done, with the result; ended, where that was not to come
	control.TransferState
	Seconds float64 `json:"seconds"`
}

// follower shows how far a transfer is.
type follower struct {
	a     *app
	b     *bar
	start time.Time
	last  control.TransferState
}

func (a *app) follow(what string) *follower {
	return &follower{a: a, b: a.newBar(what, -1), start: time.Now(), last: control.TransferState{Total: -1}}
}

// see takes in what a transfer says.
func (f *follower) see(st control.TransferState) error {
	f.last = st
	f.b.set(st.Bytes, st.Total)
	if !f.a.json() || st.State == control.TransferDone {
		return nil
	}
	if err := f.print("progress"); err != nil {
		return err
	}
	return f.a.stdout.Flush()
}

func (f *follower) print(event string) error {
	return f.a.printJSONLine(transferLine{event, f.last, time.Since(f.start).Seconds()})
}

// end takes the bar off the screen and prints the last line of one that has not failed.
func (f *follower) end(err error) error {
	f.b.finish()
	if err != nil || !f.a.json() {
		return err
	}
	if f.last.State == control.TransferDone {
		return f.print("done")
	}
	return f.print("ended")
}

func newFabricSend(a *app) *cobra.Command {
	var r control.SendRequest
	var limit string
	cmd := &cobra.Command{
		Use:   "send PATH",
		Short: "Offer a file or directory to other nodes, or send it to one",
		Long: `Offer a file or directory to the other nodes of the fabric under its own name, or
--name, for "fabric receive". Prints the name when others can find it. It is
offered until --times nodes have received it whole, by default one; with --times
0 until Ctrl-C. Nodes that offer the same content under one name are mirrors of
each other.

With --to it is sent to one node, which has to have agreed beforehand: by
"fabric accept" there, or by its space.yaml. The command ends when all of it is
there. What has arrived stays if the command, either node or the network fails:
the same command goes on from there.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.Path, err = absolute(args[0]); err != nil {
				return err
			}
			if r.Name == "" {
				r.Name = filepath.Base(r.Path)
			}
			if r.Rate, err = rateFlag(limit); err != nil {
				return err
			}
			if r.To == "" && r.Background {
				return capsule.Errorf(capsule.Invalid, "fabric send: --background is for --to; otherwise who receives it says so")
			}
			if r.To != "" && cmd.Flags().Changed("times") {
				return capsule.Errorf(capsule.Invalid, "fabric send: --times is for what is offered; --to sends it once")
			}
			if _, err := os.Lstat(r.Path); err != nil {
				return transfer.FileError(err, "fabric send")
			}
			f := a.follow("send " + r.Name)
			err = a.runService(cmd.Context(), "send "+show(args[0]), func(c *control.FabricClient, tell func(control.JobEvent) error) error {
				return c.Send(cmd.Context(), r, func(e control.JobEvent) error {
					if e.Transfer != nil {
						if err := f.see(*e.Transfer); err != nil {
							return err
						}
					}
					return tell(e)
				})
			}, func(at string) error {
				if !a.json() && r.To == "" {
					a.printf("%s\n", at)
				}
				return nil
			})
			if r.To != "" && cmd.Context().Err() != nil && f.last.State != control.TransferDone { // it is not there
				f.b.finish()
				a.interrupted = "interrupted; what has arrived is kept, and the same command goes on from there"
				return context.Cause(cmd.Context())
			}
			if err := f.end(err); err != nil {
				return err
			}
			if r.To != "" {
				f.fact()
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&r.Name, "name", "", "the name under which it is offered, or made (default: the last part of PATH)")
	fl.BoolVar(&r.SkipUnreadable, "skip-unreadable", false, "leave out what can't be read, instead of sending nothing")
	fl.IntVar(&r.Times, "times", 1, "end when so many nodes have received it whole; 0: never")
	fl.StringVar(&r.To, "to", "", "the node, by ID or name, to send it to (default: whoever asks for it)")
	fl.StringVar(&limit, "rate", "", "bytes a second at most, such as 50MB (default: as fast as it goes)")
	fl.BoolVar(&r.Background, "background", false, "with --to: let all other traffic go first")
	addWait(cmd, &r.Wait)
	return cmd
}

// fact tells people how it went.
func (f *follower) fact() {
	took := time.Since(f.start)
	f.a.fact("%s in %s (%s)", size(f.last.Bytes), took.Round(time.Millisecond), rate(f.last.Bytes-f.last.Resumed, took))
}

func newFabricAccept(a *app) *cobra.Command {
	var r control.AcceptRequest
	var most string
	cmd := &cobra.Command{
		Use:   "accept DIR --from NODE",
		Short: "Take what some nodes send to this one, as long as the command runs",
		Long: `Have the nodes that --from names (by ID, as "fabric nodes" shows it: a name will
not do, for a node chooses it itself) send files and directories to this one,
with "fabric send --to". They are made in DIR under the names that the senders
give. Nothing that is there is replaced, and nothing is made elsewhere: names
with slashes or control characters, or a dot or dash at the beginning, are refused. Prints the path of each
when it is whole.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.Into, err = absolute(args[0]); err != nil {
				return err
			}
			if most != "" {
				if r.MaxSize, err = parseSize("--max-size", most); err != nil {
					return err
				}
			}
			start := time.Now()
			return a.runService(cmd.Context(), "accept "+show(args[0]), func(c *control.FabricClient, tell func(control.JobEvent) error) error {
				return c.Accept(cmd.Context(), r, func(e control.JobEvent) error {
					if st := e.Transfer; st != nil {
						f := &follower{a: a, b: &bar{}, start: start}
						if err := f.see(*st); err != nil {
							return err
						}
						if st.State == control.TransferDone {
							if a.json() {
								if err := f.print("done"); err != nil {
									return err
								}
							} else {
								a.printf("%s\n", st.Path)
							}
							return a.stdout.Flush()
						}
					}
					return tell(e)
				})
			}, func(at string) error {
				if a.json() {
					return a.printJSONLine(map[string]string{"event": "ready", "path": at})
				}
				a.fact("What comes goes to %s.", at)
				return nil
			})
		},
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&r.From, "from", nil, "the nodes, by ID, that may send something")
	fl.StringVar(&most, "max-size", "", "refuse what is larger, such as 100GB; a file or directory in it counts as 4 KiB at least (default: anything that fits)")
	fl.IntVar(&r.Times, "times", 0, "end when so many have come; 0: never")
	return cmd
}

func newFabricReceive(a *app) *cobra.Command {
	var r control.ReceiveRequest
	var out, limit string
	var deadline time.Duration
	cmd := &cobra.Command{
		Use:   "receive NAME",
		Short: "Fetch a file or directory that other nodes offer",
		Long: `Fetch what other nodes offer under NAME (see fabric send) into the working
directory, or to --out. Every chunk is verified. What is there stays if the
command, either node or the network fails: the same command goes on from there.
The file appears under its name when it is whole.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.Name = args[0]; out == "" {
				out = r.Name
			}
			if r.Target, err = absolute(out); err != nil {
				return err
			}
			if r.Rate, err = rateFlag(limit); err != nil {
				return err
			}
			f := a.follow("receive " + r.Name)
			ctx := cmd.Context()
			if deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, deadline)
				defer cancel()
			}
			err = a.withFabric(ctx, "receive "+show(r.Name), func(c *control.FabricClient) error {
				return c.Receive(ctx, r, func(e control.JobEvent) error {
					if e.Note != "" {
						a.note("%s", e.Note)
					}
					if e.Transfer != nil {
						return f.see(*e.Transfer)
					}
					return nil
				})
			})
			if err := f.end(err); err != nil {
				if f.last.Bytes > 0 {
					a.interrupted = "interrupted; what has arrived is kept, and the same command goes on from there"
				}
				if cmd.Context().Err() == nil && ctx.Err() != nil {
					err = capsule.Errorf(capsule.Canceled, "fabric receive: it is not whole after %s; what has arrived is kept, and the same command goes on from there", deadline)
				}
				return err
			}
			f.fact()
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "file or directory to make (default: NAME)")
	f.StringVar(&limit, "rate", "", "bytes a second at most, such as 50MB (default: as before, or as fast as it goes)")
	addWait(cmd, &r.Wait)
	f.BoolVar(&r.Background, "background", false, "let all other traffic go first")
	f.DurationVar(&deadline, "deadline", 0, "end after so long, such as 2h; what has arrived is kept (default: never)")
	f.StringSliceVar(&r.From, "from", nil, "nodes to fetch from, by ID or name, in the order of trust (default: any)")
	f.IntVar(&r.Mirrors, "mirrors", 0, "nodes to fetch from at once (default 2)")
	return cmd
}
