package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

func newFabric(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fabric",
		Short: "Connect machines: forward TCP services, copy files, carry packets",
		Long: `The fabric connects machines that trust one authority. Its tunnels lead to
services, not to addresses, and outlive connections, routes and restarts.

  spacectl fabric init                                 # on the first machine
  spacectl fabric serve --listen tls://:7420
  spacectl fabric token                                # prints a join token

  spacectl fabric join TOKEN                           # on another one
  spacectl fabric serve
  spacectl fabric expose ssh 127.0.0.1:22

  spacectl fabric forward 2222 ssh                     # on the first one
  ssh -p 2222 127.0.0.1

docs/fabric.md has more.`,
		RunE: needsSubcommand,
	}
	for _, c := range []func(*app) *cobra.Command{newFabricInit, newFabricToken, newFabricJoin, newFabricRevoke, newFabricServe, newFabricRelay,
		newFabricStatus, newFabricNodes, newFabricTunnels, newFabricRoutes, newFabricLimits, newFabricTop,
		newFabricExpose, newFabricForward, newFabricVPN, newFabricSend, newFabricReceive, newFabricAccept, newFabricTransfers} {
		cmd.AddCommand(c(a))
	}
	return cmd
}

// withFabric connects to the node of the fabric, calls fn, and closes.
func (a *app) withFabric(ctx context.Context, what string, fn func(*control.FabricClient) error) error {
	c, err := node.ConnectFabric(ctx, a.target)
	if err != nil {
		return capsule.Wrap(capsule.Other, err, "fabric %s", what)
	}
	err = fn(c)
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return capsule.Wrap(capsule.Other, err, "fabric %s", what)
}

func (a *app) printMember(m node.Member) error {
	if a.json() {
		return a.printJSON(m)
	}
	a.fields("Fabric", m.Fabric, "Node", m.Node, "Name", m.Name, "Area", m.Area, "Organization", m.Organization, "Authority", yesNo(m.Authority))
	return nil
}

func newFabricInit(a *app) *cobra.Command {
	var name, area, organization string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Begin a fabric: make its authority and this machine's identity",
		Long: `Make a new fabric: its authority, which admits nodes, renews their certificates
and revokes them, and the identity of this machine as its first node. Both are in
the directory "fabric" of SPACE_HOME. Who has the authority's key can let anybody
in: keep a copy of the directory in a safe place.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			m, err := node.InitFabricOf(a.target.Home, name, area, organization)
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "fabric init")
			}
			if err := a.printMember(m); err != nil {
				return err
			}
			a.fact("Next: `spacectl fabric serve` here, `spacectl fabric token` for each node that is to join.")
			return nil
		},
	}
	addMemberFlags(cmd, &name, &area)
	cmd.Flags().StringVar(&organization, "organization", "", "whose node this one is, for limits (default "+identity.DefaultOrganization+")")
	return cmd
}

func addMemberFlags(cmd *cobra.Command, name, area *string) {
	cmd.Flags().StringVar(name, "name", "", "this node's name, for people (default: the host's)")
	cmd.Flags().StringVar(area, "area", "", "the area, whose nodes know all of each other (default "+node.DefaultArea+")")
}

func newFabricToken(a *app) *cobra.Command {
	req := control.TokenRequest{}
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make a join token and print it",
		Long: `Print a token with which --uses nodes can join until --expires has passed. It is a
secret, it says where the fabric can be joined, and by it the node that joins
knows the authority. The authority's node has to run when it is used. Nodes that
join with it are of --organization for good: limits count by that.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Uses < 1 || req.Life <= 0 {
				return capsule.Errorf(capsule.Invalid, "fabric token: --uses and --expires have to be more than zero")
			}
			text, err := node.NewFabricToken(cmd.Context(), a.target, req)
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "fabric token")
			}
			if a.json() {
				return a.printJSON(map[string]any{"token": text, "uses": req.Uses, "expires": time.Now().Add(req.Life).UTC().Truncate(time.Second)})
			}
			a.printf("%s\n", text)
			return nil
		},
	}
	cmd.Flags().IntVar(&req.Uses, "uses", 1, "how many nodes may join with it")
	cmd.Flags().DurationVar(&req.Life, "expires", time.Hour, "how long it is good")
	cmd.Flags().StringVar(&req.Organization, "organization", "", "whose nodes may join with it, for limits (default "+identity.DefaultOrganization+")")
	cmd.Flags().StringSliceVar(&req.Addresses, "address", nil, "where the fabric can be joined, such as tls://10.0.0.1:7420 (default: where the node listens)")
	return cmd
}

// maxToken is more than any token has.
const maxToken = 8 << 10

func newFabricJoin(a *app) *cobra.Command {
	var name, area string
	cmd := &cobra.Command{
		Use:   "join TOKEN|-",
		Short: "Join a fabric with a token",
		Long: `Make this machine a node of the fabric that the token is for: ask its authority
for a certificate, having made sure by the token that it is the right one. With
"-" the token is read from standard input, where other users cannot see it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := args[0]
			if text == "-" {
				b, err := io.ReadAll(io.LimitReader(a.stdin, maxToken))
				if err != nil {
					return transfer.FileError(err, "fabric join")
				}
				text = string(b)
			}
			m, err := node.JoinFabric(cmd.Context(), a.target.Home, strings.TrimSpace(text), name, area)
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "fabric join")
			}
			if err := a.printMember(m); err != nil {
				return err
			}
			a.fact("Next: `spacectl fabric serve`.")
			return nil
		},
	}
	addMemberFlags(cmd, &name, &area)
	return cmd
}

func newFabricRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NODE",
		Short: "Shut a node out of the fabric, for good",
		Long: `Make all certificates of a node worthless, by its ID, or by its name while the
authority's node runs. Its sessions end wherever it has some, as soon as the news
arrives, and nobody lets it in again. Runs where the authority is.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := node.RevokeFabricNode(cmd.Context(), a.target, args[0])
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "fabric revoke %s", show(args[0]))
			}
			if a.json() {
				return a.printJSON(map[string]string{"revoked": id})
			}
			a.printf("%s\n", id)
			return nil
		},
	}
}

// settingFlag says that a flag is a setting of another name than its own.
const settingFlag = "space_setting"

func addFabricFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	for _, one := range [][2]string{
		{"listen", "where other nodes connect to, such as tls://:7420,quic://:7420; none: nowhere (default " + node.DefaultFabricListen + ")"},
		{"advertise", "what others dial instead, in the order of --listen"},
		{"seeds", "nodes to begin with, such as tls://10.0.0.1:7420, beside those that the token had"},
		{"name", "this node's name, for people (default: as init or join was told)"},
		{"area", "the area, whose nodes know all of each other (default: as init or join was told)"},
		{"organization", "for whom tunnels count at this node that it opens itself (default: the one of its certificate)"},
		{"https_web", "the servers of https:// seeds show certificates that this system trusts, not the fabric's: true or false (default false)"},
		{"relay", "pass on the links of nodes that cannot reach each other: true or false (default false)"},
	} {
		name := strings.ReplaceAll(one[0], "_", "-")
		f.String(name, "", one[1])
		f.SetAnnotation(name, settingFlag, []string{"fabric_" + one[0]})
	}
	f.Lookup("relay").NoOptDefVal = "true"
	f.Lookup("https-web").NoOptDefVal = "true"
	f.String("drain-timeout", "", "how long tunnels and requests have at the end (default 30s)")
	f.String("log-format", "", "text or json (default text)")
	f.String("log-level", "", "debug, info, warn or error (default info)")
	f.String("metrics", "", "address at which to serve /metrics (Prometheus) and /healthz (default: nowhere)")
	f.SetAnnotation("metrics", settingFlag, []string{"metrics_listen"})
}

func newFabricServe(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run this machine's node of the fabric, without a store",
		Long: `Run this machine's node of the fabric in the foreground until SIGTERM or SIGINT.
Tunnels that others have to it then move to other nodes, where there are some. A
second signal cuts that short. Under systemd (Type=notify) it reports readiness.
Commands talk to it through fabric.sock in SPACE_HOME.

"spacectl serve" does the same beside the store, where space.yaml has a section
"fabric". Settings come from flags, SPACE_FABRIC_* variables and that section,
in this order.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serveFabric(cmd, "serve") },
	}
	addFabricFlags(cmd)
	return cmd
}

func (a *app) serveFabric(cmd *cobra.Command, what string) error {
	o := node.Options{Target: a.target, Force: a.force}
	o.Log = newLogger(a.stderr, o.Config.LogFormat, o.Config.LogLevel)
	return capsule.Wrap(capsule.Other, node.RunFabric(cmd.Context(), o), "fabric %s", what)
}

func newFabricRelay(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Run a node that others reach over HTTPS, and each other through it",
		Long: `Run this machine's node of the fabric as "fabric serve" does, with --relay, and
listen for HTTPS: for nodes in networks where nothing but outbound HTTPS works,
and for nodes that can't reach each other. What passes is encrypted end to end:
a relay sees who talks to whom and how much, and nothing else.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := a.target.Config.Fabric
			if cfg == nil || !cfg.ListensFor("https") {
				return capsule.Errorf(capsule.Invalid, "fabric relay: say where with --listen https://:443, or in space.yaml")
			}
			cfg.Relay = true
			return a.serveFabric(cmd, "relay")
		},
	}
	addFabricFlags(cmd)
	return cmd
}
