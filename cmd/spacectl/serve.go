package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/node"
)

func newServe(a *app) *cobra.Command {
	var ephemeral, unmount bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a node: hold the store and serve commands and projections",
		Long: `Run a node in the foreground until SIGTERM or SIGINT. It then takes no new
requests, finishes those under way and leaves; a second signal cuts that short.
After SIGINT its projections end. After SIGTERM its mounts stay, unless --unmount
is given, and whoever uses them waits: for the next node, as long as --mount-wait
says. Under systemd (Type=notify) it reports readiness and
feeds the watchdog. Logs go to standard error.

Settings come from flags, SPACE_* variables (SPACE_LOG_LEVEL, …) and space.yaml
in the store's directory, in this order.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ephemeral {
				return a.serveBackground(cmd.Context())
			}
			o := node.Options{Target: a.target, Force: a.force, HandOver: func(cause error) bool {
				var sig interrupted
				return errors.As(cause, &sig) && sig.sig == syscall.SIGTERM && !unmount
			}}
			o.Log = newLogger(a.stderr, o.Config.LogFormat, o.Config.LogLevel)
			return capsule.Wrap(capsule.Other, node.Run(cmd.Context(), o), "serve")
		},
	}
	f := cmd.Flags()
	f.String("background", "", "collect garbage, re-seal and recompress when idle: true or false (default true)")
	f.String("cache-size", "", "memory for decoded segments (default 64MiB)")
	f.String("drain-timeout", "", "how long to wait for requests and busy mounts at the end (default 30s)")
	f.String("log-format", "", "text or json (default text)")
	f.String("log-level", "", "debug, info, warn or error (default info)")
	f.String("memory-limit", "", "memory that the node stays below (default 1GiB)")
	f.String("metrics-listen", "", "address at which to serve /metrics (Prometheus) and /healthz (default: nowhere)")
	f.String("mount-wait", "", "how long mounts wait for the next node when this one has ended; 0: they end too (default 1m)")
	f.BoolVar(&unmount, "unmount", false, "end all mounts on SIGTERM too")
	f.BoolVar(&ephemeral, "ephemeral", false, "how project mount starts a node")
	f.MarkHidden("ephemeral")
	return cmd
}

// serveBackground is a node that project mount started: its starter waits for
// its report, and nobody reads its standard error.
func (a *app) serveBackground(ctx context.Context) error {
	b, err := node.JoinBackground(a.target.Home)
	if err != nil {
		return err
	}
	o := node.Options{Target: a.target, Force: a.force, Ephemeral: true, Ready: func(control.API) error {
		b.Report(nil)
		return nil
	}}
	o.Keys.Prompt = b.Prompt()
	o.Log = newLogger(b.Log, o.Config.LogFormat, o.Config.LogLevel)
	o.Waiting = func(msg string) { o.Log.Info(msg) }
	err = node.Run(ctx, o)
	if err != nil {
		b.Report(err)
	}
	if errors.Is(err, node.ErrRunning) {
		return nil
	}
	return err
}
