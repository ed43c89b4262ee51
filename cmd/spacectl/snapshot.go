package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/node"
)

func newSnapshot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snap"},
		Short:   "Keep capsules as they are now, and go back to it",
		Long: `A snapshot keeps a capsule as it is at one moment. Taking one takes no time and
no space, whatever the capsule's size; what changes later does.`,
		Args: cobra.NoArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newSnapshotCreate(a), newSnapshotList(a), newSnapshotRemove(a), newSnapshotRollback(a), newSnapshotDiff(a), newSnapshotPolicy(a))
	return cmd
}

func newSnapshotCreate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "create REF [NAME]",
		Short: "Take a snapshot",
		Long: `Take a snapshot and print its name. Without NAME it is named by the time in UTC.
All that was written before is in it, and durable when create returns.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			name := capsule.SnapshotName(time.Now())
			if len(args) > 1 {
				name = args[1]
			}
			if err := capsule.CheckSnapshotName(name); err != nil {
				return err
			}
			var snap capsule.Snapshot
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				snap, err = api.Snapshot(cmd.Context(), target, name)
				return err
			}, "snapshot create %s %s", show(target), show(name))
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(snap)
			}
			a.printf("%s\n", printable(snap.Name))
			return nil
		},
	}
}

func newSnapshotList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list REF",
		Aliases: []string{"ls"},
		Short:   "List a capsule's snapshots, the oldest first",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			var list []capsule.Snapshot
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				list, err = api.Snapshots(cmd.Context(), target)
				return err
			}, "snapshot list %s", show(target))
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]any{"snapshots": nonNil(list)})
			}
			a.printf("%-19s  %10s  %s\n", "CREATED", "SIZE", "NAME")
			for _, s := range list {
				a.printf("%s  %10s  %s\n", when(s.Created), size(s.Size), printable(s.Name))
			}
			return nil
		},
	}
}

func newSnapshotRemove(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rm REF NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove snapshots",
		Long: `Remove snapshots. Space that only they took is given back in the background, or
by spacectl gc.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			var failed failures
			removed := []string{}
			err = a.with(cmd.Context(), func(api node.Conn) error {
				for _, name := range args[1:] {
					err := capsule.CheckSnapshotName(name)
					if err == nil {
						err = api.DeleteSnapshot(cmd.Context(), target, name)
					}
					if err == nil {
						removed = append(removed, name)
					} else if failed.add(a, "snapshot rm", show(name), err); fatal(err) != nil {
						return err
					}
				}
				return nil
			}, "snapshot rm %s", show(target))
			if err != nil {
				return err
			}
			if a.json() {
				if err := a.printJSON(map[string]any{"removed": removed, "failed": failed.list()}); err != nil {
					return err
				}
			}
			return failed.err("snapshot rm: %d of %d snapshots were not removed", failed.count(), len(args)-1)
		},
	}
}

func newSnapshotRollback(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rollback REF NAME",
		Short: "Make a capsule again what it was",
		Long: `Make a capsule again what it was when a snapshot was taken. What changed since
is lost, unless there is a snapshot of it; all snapshots stay. A capsule that is
in use is not rolled back.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			if err := capsule.CheckSnapshotName(args[1]); err != nil {
				return err
			}
			var info capsule.Info
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				info, err = api.Rollback(cmd.Context(), target, args[1])
				return err
			}, "snapshot rollback %s %s", show(target), show(args[1]))
			if err == nil && a.json() {
				return a.printJSON(info)
			}
			return err
		},
	}
}

func newSnapshotDiff(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "diff REF A [B]",
		Short: "Show what changed between two snapshots, or since one",
		Long: `Print the ranges of a volume that changed from snapshot A to B, or to now; the
paths of a tree, with + for added, - for removed, M for modified (content,
attributes) and R for renamed ones; for an object, whether it did. Only metadata
is read: everything else is the same for certain, while bytes that were written
again as they were may show too.`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			for _, name := range args[1:] {
				if err := capsule.CheckSnapshotName(name); err != nil {
					return err
				}
			}
			req := control.DiffRequest{From: args[1]}
			if len(args) > 2 {
				req.To = args[2]
			}
			return a.with(cmd.Context(), func(api node.Conn) error {
				info, err := api.Resolve(cmd.Context(), target)
				if err != nil {
					return err
				}
				req.Ref = info.ID.String()
				if info.Kind == capsule.Tree {
					return a.diffTree(cmd, api, req)
				}
				return a.diff(cmd, api, req, info.Kind)
			}, "snapshot diff %s", show(target))
		},
	}
}

func (a *app) diff(cmd *cobra.Command, api node.Conn, req control.DiffRequest, kind capsule.Kind) error {
	var (
		js       *jsonList
		n, bytes int64
	)
	if a.json() {
		js = a.newJSONList("changed")
	}
	err := api.Diff(cmd.Context(), req, func(r store.Range) error {
		n++
		bytes += r.Len
		switch {
		case js != nil:
			return js.add(r)
		case kind == capsule.Object:
			a.printf("different\n")
			return nil
		case n == 1:
			a.printf("%15s  %15s\n", "OFFSET", "LENGTH")
		}
		_, err := fmt.Fprintf(a.stdout, "%15d  %15d\n", r.Off, r.Len)
		return err
	})
	switch {
	case err != nil:
		return err
	case js != nil:
		return js.end(map[string]any{"bytes": bytes})
	case n == 0:
		a.printf("same\n")
	case kind != capsule.Object:
		a.fact("%s in %s", size(bytes), count(n, "range", "ranges"))
	}
	return nil
}

func (a *app) diffTree(cmd *cobra.Command, api node.Conn, req control.DiffRequest) error {
	var js *jsonList
	if a.json() {
		js = a.newJSONList("changed")
	}
	n := 0
	err := api.DiffTree(cmd.Context(), req, func(c control.TreeChange) error {
		n++
		if js != nil {
			return js.add(c)
		}
		path := oneLine(c.Path)
		if c.From != "" {
			path = oneLine(c.From) + " -> " + path
		}
		mark := map[string]string{"added": "+", "removed": "-", "modified": "M", "renamed": "R"}[c.Change]
		_, err := fmt.Fprintf(a.stdout, "%s %s\n", mark, path)
		return err
	})
	switch {
	case err != nil:
		return err
	case js != nil:
		return js.end(nil)
	case n == 0:
		a.printf("same\n")
	default:
		a.fact("%s", count(int64(n), "path", "paths"))
	}
	return nil
}

func newSnapshotPolicy(a *app) *cobra.Command {
	var (
		p     capsule.SnapshotPolicy
		every time.Duration
		off   bool
	)
	cmd := &cobra.Command{
		Use:   "policy REF [--every INTERVAL --keep N | --off]",
		Short: "Have snapshots taken and removed automatically",
		Long: `Show a capsule's snapshot policy, or with flags change it. Under a policy, a node
takes a snapshot named auto-TIME every so often, the first one at once, and
removes the oldest ones named so beyond those to keep. That takes a running
node: what was missed while none ran is made up for by one snapshot.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			given := func(flag string) bool { return cmd.Flags().Changed(flag) }
			set := off || given("every") || given("keep")
			switch {
			case off && (given("every") || given("keep")):
				return capsule.Errorf(capsule.Invalid, "--off goes neither with --every nor with --keep")
			case set && !off && !(given("every") && given("keep")):
				return capsule.Errorf(capsule.Invalid, "a snapshot policy has both --every and --keep, such as --every 1h --keep 24")
			}
			if set && !off {
				if p.Every = capsule.Duration(every); every == 0 {
					return capsule.Errorf(capsule.Invalid, "--every is 0; --off ends a snapshot policy")
				}
				if err := p.Check(); err != nil {
					return err
				}
			}
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				if set {
					p, err = api.SetSnapshotPolicy(cmd.Context(), target, p)
				} else {
					p, err = api.SnapshotPolicy(cmd.Context(), target)
				}
				return err
			}, "snapshot policy %s", show(target))
			switch {
			case err != nil:
				return err
			case a.json():
				return a.printJSON(p)
			case set:
			case p.Every == 0:
				a.printf("no automatic snapshots\n")
			default:
				a.fields("Every", p.Every.String(), "Keep", fmt.Sprint(p.Keep), "Last due", when(p.Last))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.DurationVar(&every, "every", 0, "time between snapshots, such as 1h")
	f.IntVar(&p.Keep, "keep", 0, "how many automatic snapshots to keep")
	f.BoolVar(&off, "off", false, "take no more snapshots automatically; those there stay")
	return cmd
}
