package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

func newVolume(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Create, resize, import and export volumes",
		Long: `A volume is a disk: a fixed number of bytes that can be written anywhere. It
takes the space of what is written to it, not of its size. Sizes are bytes, or
have a unit: 10GiB, 500MB.`,
		Args: cobra.NoArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newVolumeCreate(a), newVolumeResize(a), newVolumeList(a), newRemoveKind(a, capsule.Volume), newVolumeImport(a), newVolumeExport(a))
	return cmd
}

// volumeFlags are the flags that describe a new volume.
type volumeFlags struct {
	size, policy string
	block        int
}

func (v *volumeFlags) add(cmd *cobra.Command, sizeHelp string) {
	f := cmd.Flags()
	f.StringVar(&v.size, "size", "", sizeHelp)
	f.IntVar(&v.block, "block-size", 4096, "logical block size: 512 or 4096")
	f.StringVar(&v.policy, "policy-file", "", "policy of the volume (see spacectl policy)")
	cmd.RegisterFlagCompletionFunc("block-size", cobra.FixedCompletions([]string{"512", "4096"}, cobra.ShellCompDirectiveNoFileComp))
}

func (v *volumeFlags) request(name string) (req store.CreateRequest, err error) {
	req = store.CreateRequest{Kind: capsule.Volume, Name: name, BlockSize: v.block}
	if name != "" {
		if err := capsule.CheckName(name); err != nil {
			return req, err
		}
	}
	if v.size != "" {
		if req.Size, err = parseSize("--size", v.size); err != nil {
			return req, err
		}
		if req.Size == 0 {
			return req, capsule.Errorf(capsule.Invalid, "--size is 0; a volume has at least one block")
		}
	}
	if v.policy != "" {
		req.Policy, err = readPolicy(v.policy)
	}
	return req, err
}

func newVolumeCreate(a *app) *cobra.Command {
	var v volumeFlags
	cmd := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create an empty volume",
		Long:  `Create an empty volume and print its ID. When create returns, the volume is durable.`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := capsule.CheckName(args[0]); err != nil {
				return err
			}
			if v.size == "" {
				return capsule.Errorf(capsule.Invalid, "volume create %s: how large? Give --size, such as 10GiB", show(args[0]))
			}
			req, err := v.request(args[0])
			if err != nil {
				return err
			}
			var info capsule.Info
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				info, err = api.CreateVolume(cmd.Context(), req)
				return err
			}, "volume create %s", show(args[0]))
			if err != nil {
				return err
			}
			return a.printNew(info)
		},
	}
	v.add(cmd, "size of the volume, such as 10GiB")
	return cmd
}

// printNew prints a capsule that was made: its ID, for scripts.
func (a *app) printNew(info capsule.Info) error {
	if a.json() {
		return a.printJSON(info)
	}
	a.printf("%s\n", info.ID)
	return nil
}

func newVolumeResize(a *app) *cobra.Command {
	var text string
	cmd := &cobra.Command{
		Use:   "resize REF --size SIZE",
		Short: "Make a volume larger",
		Long:  `Make a volume larger. Volumes do not shrink. Whoever uses it sees the new size.`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			if text == "" {
				return capsule.Errorf(capsule.Invalid, "volume resize %s: how large? Give --size, such as 20GiB", show(target))
			}
			bytes, err := parseSize("--size", text)
			if err != nil {
				return err
			}
			var info capsule.Info
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				info, err = api.ResizeVolume(cmd.Context(), target, bytes)
				return err
			}, "volume resize %s", show(target))
			if err == nil && a.json() {
				return a.printJSON(info)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&text, "size", "", "the new size, such as 20GiB")
	return cmd
}

func newVolumeList(a *app) *cobra.Command {
	q := store.ListQuery{Limit: 1000}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List all volumes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(api node.Conn) error { return a.list(cmd, api, q, true, capsule.Volume) }, "volume list")
		},
	}
	cmd.Flags().StringVar(&q.Prefix, "prefix", "", "only volumes whose names start so")
	return cmd
}

// newRemoveKind is rm for capsules of one kind.
func newRemoveKind(a *app, kind capsule.Kind) *cobra.Command {
	return &cobra.Command{
		Use:     "rm REF...",
		Aliases: []string{"remove"},
		Short:   fmt.Sprintf("Remove %ss, and nothing that is no %s", kind, kind),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removeAll(cmd, args, kind.String()+" rm", func(api node.Conn, ref string, remove func(node.Conn, string) error) error {
				info, err := api.Resolve(cmd.Context(), ref)
				if err == nil && info.Kind != kind {
					err = capsule.Errorf(capsule.Unsupported, "capsule %s is no %s, but of the kind %s; spacectl rm removes it", info.ID, kind, info.Kind)
				}
				if err != nil {
					return err
				}
				return remove(api, info.ID.String())
			})
		},
	}
}

func newVolumeImport(a *app) *cobra.Command {
	var v volumeFlags
	var name string
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Make a volume of a disk image, a device or standard input",
		Long: `Make a volume of a raw disk image, a block device, or with "-" standard input,
and print its ID. The volume appears when all of it is durable. Holes and runs
of zeros take no space. Without --size the volume is as large as what it is made
of, up to a whole block.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" && cmd.Flags().Changed("name") {
				return capsule.Errorf(capsule.Invalid, "--name is empty")
			}
			req, err := v.request(name)
			if err != nil {
				return err
			}
			return a.importVolume(cmd.Context(), args[0], req)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the volume")
	v.add(cmd, "size of the volume, such as 10GiB (default: that of the content)")
	return cmd
}

func (a *app) importVolume(ctx context.Context, path string, req store.CreateRequest) error {
	file := a.stdin
	if path != "-" {
		var err error
		if file, err = os.Open(path); err != nil {
			return transfer.FileError(err, "volume import")
		}
		defer file.Close()
	}
	var info capsule.Info
	start := time.Now()
	err := a.with(ctx, func(api node.Conn) (err error) {
		total := int64(-1)
		if st, err := file.Stat(); err == nil && st.Mode().IsRegular() {
			total = st.Size()
		}
		var progress transfer.Progress
		bar := a.newBar("volume import "+path, total)
		bar.follow(&progress)
		info, err = transfer.ImportFile(ctx, api, req, file, &progress)
		bar.finish()
		return err
	}, "volume import %s", show(path))
	if err != nil {
		return err
	}
	if err := a.printNew(info); err != nil {
		return err
	}
	a.fact("%s in %s (%s)", size(info.Size), time.Since(start).Round(time.Millisecond), rate(info.Size, time.Since(start)))
	return nil
}

func newVolumeExport(a *app) *cobra.Command {
	var snapshot string
	cmd := &cobra.Command{
		Use:   "export REF FILE|-",
		Short: "Write a volume to a file, a device or standard output",
		Long: `Write a volume, or with --snapshot a snapshot of it, to a sparse file, which
appears when it is whole; to a device, zeros included; or with "-" to standard
output. Of a volume that is written to meanwhile the result may show some of
that: export a snapshot instead.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			return a.exportVolume(cmd.Context(), control.ExportRequest{Ref: target, Snapshot: snapshot}, args[1])
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "name of the snapshot to write")
	return cmd
}

func (a *app) exportVolume(ctx context.Context, req control.ExportRequest, out string) error {
	var (
		progress transfer.Progress
		info     capsule.Info
		start    = time.Now()
	)
	err := a.with(ctx, func(api node.Conn) (err error) {
		var b *bar
		begin := func(i capsule.Info) {
			info = i
			b = a.newBar("volume export "+req.Ref, i.Size)
			b.follow(&progress)
		}
		if out == "-" {
			err = transfer.ExportTo(ctx, api, req, a.stdout, &progress, begin)
			if ferr := a.stdout.Flush(); err == nil {
				err = ferr
			}
		} else {
			err = transfer.ExportFile(ctx, api, req, out, &progress, begin)
		}
		if b != nil {
			b.finish()
		}
		return err
	}, "volume export %s", show(req.Ref))
	if err != nil || out == "-" {
		return err
	}
	if a.json() {
		return a.printJSON(getResult{info, out, info.Size})
	}
	a.fact("%s in %s (%s)", size(info.Size), time.Since(start).Round(time.Millisecond), rate(info.Size, time.Since(start)))
	return nil
}
