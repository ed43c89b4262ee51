package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

func newGet(a *app) *cobra.Command {
	var (
		ref       refFlags
		out       string
		off, n    int64
		recursive bool
	)
	cmd := &cobra.Command{
		Use:   "get REF",
		Short: "Fetch a capsule's content",
		Long: `Write a capsule's content, or a range of it, to standard output or a file. A
file appears under its name when it is whole, with the capsule's time of
modification. Content goes to a terminal only if --out - asks for it.

With -r, REF is a prefix: every capsule named PREFIX/path becomes the file
DIR/path, DIR being --out.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := ref.ref(args)
			if err != nil {
				return err
			}
			if off < 0 || n < 0 && cmd.Flags().Changed("length") {
				return capsule.Errorf(capsule.Invalid, "--offset and --length can't be negative")
			}
			if recursive {
				if out == "" || out == "-" {
					return capsule.Errorf(capsule.Invalid, "get -r needs a directory: --out DIR")
				}
				if off != 0 || n >= 0 {
					return capsule.Errorf(capsule.Invalid, "get -r takes neither --offset nor --length")
				}
				return a.getDir(cmd.Context(), target, out)
			}
			if out == "" && a.stdout.terminal() {
				return capsule.Errorf(capsule.Invalid, "get %s: the content may not suit a terminal; use --out FILE, a pipe, or --out - to see it all the same", show(target))
			}
			return a.getFile(cmd.Context(), control.GetRequest{Ref: target, Offset: off, Length: n}, out)
		},
	}
	ref.add(cmd)
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "file to write, or - for standard output; with -r a directory")
	f.Int64Var(&off, "offset", 0, "first byte to fetch")
	f.Int64Var(&n, "length", -1, "number of bytes to fetch (default: to the end)")
	f.BoolVarP(&recursive, "recursive", "r", false, "fetch all capsules under a prefix into a directory")
	return cmd
}

// getResult is what get prints with -o json when the content goes to a file.
type getResult struct {
	capsule.Info
	Out   string `json:"out"`
	Bytes int64  `json:"bytes"` // written
}

func (a *app) getFile(ctx context.Context, req control.GetRequest, out string) error {
	var (
		progress transfer.Progress
		info     capsule.Info
		start    = time.Now()
	)
	err := a.with(ctx, func(api node.Conn) (err error) {
		var b *bar
		begin := func(i capsule.Info) {
			info = i
			total := i.Size - req.Offset
			if req.Length >= 0 {
				total = min(total, req.Length)
			}
			b = a.newBar("get "+req.Ref, total)
			b.follow(&progress)
		}
		if out == "" || out == "-" {
			err = transfer.GetTo(ctx, api, req, a.stdout, &progress, begin)
			if ferr := a.stdout.Flush(); err == nil {
				err = ferr
			}
		} else {
			err = transfer.GetFile(ctx, api, req, out, &progress, begin)
		}
		if b != nil {
			b.finish()
		}
		return err
	}, "get %s", show(req.Ref))
	if err != nil || out == "" || out == "-" {
		return err
	}
	if a.json() {
		return a.printJSON(getResult{info, out, progress.Bytes.Load()})
	}
	a.fact("%s in %s (%s)", size(progress.Bytes.Load()), time.Since(start).Round(time.Millisecond), rate(progress.Bytes.Load(), time.Since(start)))
	return nil
}

func (a *app) getDir(ctx context.Context, prefix, dir string) error {
	var (
		progress transfer.Progress
		failed   failures
		list     *jsonList
		fetched  int64
		start    = time.Now()
	)
	if a.json() {
		list = a.newJSONList("files")
	}
	err := a.with(ctx, func(api node.Conn) error {
		bar := a.newBar("get -r "+prefix, -1)
		bar.follow(&progress)
		defer bar.finish()
		return transfer.GetDir(ctx, api, prefix, dir, &progress, func(o transfer.Outcome) error {
			if o.Err != nil {
				failed.add(a, "get", o.Path, o.Err)
				return fatal(o.Err)
			}
			fetched++
			if a.json() {
				return list.add(getResult{o.Info, o.Path, o.Info.Size})
			}
			return nil
		})
	}, "get -r %s", show(prefix))
	if a.json() {
		if err := list.end(map[string]any{"failed": failed.list()}); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	a.fact("%s, %s in %s (%s)", count(fetched, "file", "files"), size(progress.Bytes.Load()),
		time.Since(start).Round(time.Millisecond), rate(progress.Bytes.Load(), time.Since(start)))
	return failed.err("get -r %s: %d of %d files were not fetched", show(prefix), failed.count(), fetched+failed.count())
}
