package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
	"github.com/spacestore/space/views"
)

// mountFlags are those of project and project mount.
type mountFlags struct {
	ref        refFlags
	req        control.MountRequest
	policy     string
	foreground bool
}

func (m *mountFlags) add(cmd *cobra.Command) {
	m.ref.add(cmd)
	m.addCommon(cmd)
}

func (m *mountFlags) addCommon(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&m.req.All, "all", false, "project the whole namespace: all capsules by name")
	f.StringVar(&m.req.Target, "target", "", "directory to mount at")
	f.BoolVar(&m.req.AllowOther, "allow-other", false, "let other users in too")
	f.BoolVar(&m.req.ReadOnly, "ro", false, "let nobody write")
	f.StringVar(&m.req.Snapshot, "snapshot", "", "show this snapshot of a tree or volume; nobody can write")
	f.BoolVar(&m.foreground, "foreground", false, "stay until the projection ends; Ctrl-C ends it")
	f.StringVar(&m.policy, "policy-file", "", "give the capsule this policy first")
}

func newProject(a *app) *cobra.Command {
	var m mountFlags
	var n projectNVMeFlags
	cmd := &cobra.Command{
		Use:   "project",
		Short: "Project capsules where programs can use them",
		Long: `Project a capsule, or the whole namespace, where programs can use it.

  spacectl project --view fuse --id ID --target DIR
  spacectl project --view nvme --id ID [--id ID…] [--listen ADDR]

"--view fuse" is the long form of "project mount". "--view nvme" makes disks of
volumes, and read-only ones of objects and snapshots, for every host that has
NVMe/TCP; it prints the nvme(1) command that connects. A node in the background
serves them, started if none runs. They last until "project unmount ID" ends
them: the next node serves them again, under the same names.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch m.req.View {
			case "":
				return needsSubcommand(cmd, args)
			case views.NVMe:
				return a.projectNVMe(cmd.Context(), m, n)
			}
			if n.given() {
				return capsule.Errorf(capsule.Invalid, "project: --listen, --nqn, --nsid and --host are for --view nvme")
			}
			refs, err := n.refs()
			if err != nil {
				return err
			}
			if len(refs) > 1 {
				return capsule.Errorf(capsule.Invalid, "project: --view fuse shows one capsule, or --all")
			}
			if len(refs) == 1 {
				m.ref.name = refs[0] // an ID serves as well
			}
			return a.mount(cmd.Context(), m, nil)
		},
	}
	f := cmd.Flags()
	f.StringVar(&m.req.View, "view", "", "how to project: fuse or nvme")
	n.add(cmd)
	m.addCommon(cmd)
	cmd.AddCommand(newMount(a), newUnmount(a), newProjections(a))
	return cmd
}

func newMount(a *app) *cobra.Command {
	m := mountFlags{req: control.MountRequest{View: views.FUSE}}
	cmd := &cobra.Command{
		Use:   "mount [REF] --target DIR",
		Short: "Mount a tree, a capsule as DIR/content, or all capsules by name",
		Long: `Mount a capsule at a directory: a tree as it is, an object or volume as the
file "content"; or with --all every object under its name. Trees and volumes can
be written, unless --ro or --snapshot is given. Returns when the mount is ready, as mount(8) does. A
node in the background serves it, started if none runs, and ends with the last
projection.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.mount(cmd.Context(), m, args) },
	}
	m.add(cmd)
	return cmd
}

func (a *app) mount(ctx context.Context, m mountFlags, args []string) error {
	req := m.req
	if req.View != views.FUSE {
		return capsule.Errorf(capsule.Invalid, "the view %.32q is not in this version of SPACE; there are fuse and nvme", req.View)
	}
	if req.Target == "" {
		return capsule.Errorf(capsule.Invalid, "project: say where with --target DIR")
	}
	var err error
	if !req.All {
		if req.Ref, err = m.ref.ref(args); err != nil {
			return err
		}
	} else if len(args) > 0 || m.ref != (refFlags{}) || m.policy != "" || req.Snapshot != "" {
		return capsule.Errorf(capsule.Invalid, "project: --all goes with no single capsule, snapshot or policy")
	}
	shown := show(req.Target)
	if req.Target, err = filepath.Abs(req.Target); err != nil {
		return transfer.FileError(err, "project mount %s", shown)
	}
	if err := a.setPolicyFirst(ctx, m.policy, req.Ref); err != nil {
		return err
	}
	if !m.foreground {
		info, err := node.Mount(ctx, a.target, req)
		if err != nil {
			return capsule.Wrap(capsule.Other, err, "project mount %s", shown)
		}
		return a.printProjection(info)
	}
	err = node.RunMount(ctx, node.Options{Target: a.target, Force: a.force}, req, func(info views.Info) error {
		if err := a.printProjection(info); err != nil {
			return err
		}
		return a.stdout.Flush() // whoever waits for the line should get it now
	})
	return capsule.Wrap(capsule.Other, err, "project mount %s", shown)
}

// setPolicyFirst gives a capsule the policy in a file, if one is named.
func (a *app) setPolicyFirst(ctx context.Context, file, ref string) error {
	if file == "" {
		return nil
	}
	p, err := readPolicy(file)
	if err != nil {
		return err
	}
	return a.with(ctx, func(api node.Conn) error {
		_, err := api.SetPolicy(ctx, ref, p)
		return err
	}, "policy set %s", show(ref))
}

func (a *app) printProjection(info views.Info) error {
	if info.Note != "" && !a.json() {
		a.note("%s: %s", info.Target, info.Note)
	}
	if a.json() {
		return a.printJSON(info)
	}
	return nil
}

func newUnmount(a *app) *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:     "unmount DIR|ID...",
		Aliases: []string{"umount"},
		Short:   "End projections",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed failures
			ended := []views.Info{}
			for _, arg := range args {
				info, err := node.Unmount(cmd.Context(), a.target, arg, lazy)
				if err != nil {
					if len(args) == 1 {
						return capsule.Wrap(capsule.Other, err, "project unmount %s", show(arg))
					}
					failed.add(a, "project unmount", show(arg), err)
					continue
				}
				ended = append(ended, info)
				if info.Note != "" && !a.json() {
					a.note("%s: %s", info.Target, info.Note)
				}
			}
			if a.json() {
				if err := a.printJSON(map[string]any{"ended": ended, "failed": failed.list()}); err != nil {
					return err
				}
			}
			return failed.err("project unmount: %d of %d projections did not end", failed.count(), len(args))
		},
	}
	cmd.Flags().BoolVar(&lazy, "lazy", false, "detach now, though files are open or hosts connected; files can be read until they close")
	return cmd
}

func newProjections(a *app) *cobra.Command {
	var clients bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the running projections",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := node.Projections(cmd.Context(), a.target)
			if err != nil && !errors.Is(err, control.ErrNoNode) {
				return capsule.Wrap(capsule.Other, err, "project list")
			}
			out := map[string]any{"projections": nonNil(list)}
			if !a.json() {
				a.printProjections(list)
			}
			if clients {
				now, err := a.sampleClients(cmd.Context())
				if err != nil {
					return capsule.Wrap(capsule.Other, err, "project list")
				}
				out["clients"] = nonNil(now)
				if !a.json() {
					a.printf("\n")
					a.printClients(now)
				}
			}
			if a.json() {
				return a.printJSON(out)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&clients, "clients", false, "also who uses them over the network: queues, rates (of one second) and latencies")
	return cmd
}

func (a *app) printProjections(list []views.Info) {
	a.printf("%-8s  %-4s  %-19s  %-36s  %s\n", "ID", "VIEW", "SINCE", "CAPSULE", "TARGET")
	for _, p := range list {
		id := "all"
		if !p.Capsule.IsZero() {
			id = p.Capsule.String()
		}
		target := p.Target
		if p.NVMe != nil {
			target += " at " + strings.Join(p.NVMe.Addresses, ", ")
		}
		a.printf("%-8s  %-4s  %-19s  %-36s  %s\n", printable(p.ID), printable(p.View), when(p.Since), id, oneLine(target))
	}
}
