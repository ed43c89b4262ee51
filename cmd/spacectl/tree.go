package main

import (
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

func newTree(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Directory trees to work in",
		Long: `A tree is a capsule that holds directories and files with everything POSIX says
of them. Mount it with "spacectl project mount" and work in it.`,
		Args: cobra.NoArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newTreeCreate(a), newTreeImport(a), newTreeExport(a), newTreeLs(a), newTreeList(a), newRemoveKind(a, capsule.Tree))
	return cmd
}

func newTreeCreate(a *app) *cobra.Command {
	var policy string
	req := control.CreateTreeRequest{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	cmd := &cobra.Command{
		Use:   "create [NAME]",
		Short: "Make an empty tree",
		Long:  `Make an empty tree, whose top directory is yours, and print the capsule's ID.`,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) > 0 {
				if err := capsule.CheckName(args[0]); err != nil {
					return err
				}
				req.Name = args[0]
			}
			if policy != "" {
				if req.Policy, err = readPolicy(policy); err != nil {
					return err
				}
			}
			var info capsule.Info
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				info, err = api.CreateTree(cmd.Context(), req)
				return err
			}, "tree create %s", show(req.Name))
			switch {
			case err != nil:
				return err
			case a.json():
				return a.printJSON(info)
			}
			a.printf("%s\n", info.ID)
			return nil
		},
	}
	f := cmd.Flags()
	f.Int64Var(&req.Quota.Bytes, "quota-bytes", 0, "most bytes that its files may take, before compression (default no limit)")
	f.Int64Var(&req.Quota.Inodes, "quota-inodes", 0, "most files and directories that it may hold (default no limit)")
	f.StringVar(&policy, "policy-file", "", "policy of the capsule (see spacectl policy)")
	return cmd
}

func newTreeImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import REF DIR|TAR|-",
		Short: "Copy a directory or a tar into a tree",
		Long: `Copy what is in a directory, or in a tar (- is one on standard input), into a
tree, with owners, times, links, extended attributes and ACLs. What has the same
name is replaced. When it returns, all of it is durable.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := refArg(args)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(api node.Conn) error {
				take := func(r io.Reader) error { return api.ImportTree(cmd.Context(), ref, r) }
				if args[1] == "-" {
					return take(cmd.InOrStdin())
				}
				f, err := os.Open(args[1])
				if err != nil {
					return transfer.FileError(err, "open")
				}
				defer f.Close()
				if st, err := f.Stat(); err != nil {
					return transfer.FileError(err, "stat")
				} else if !st.IsDir() {
					return take(f)
				}
				return tree.Pipe(func(w io.Writer) error { return tree.PackDir(cmd.Context(), args[1], w) }, take)
			}, "tree import %s", show(ref))
		},
	}
}

func newTreeExport(a *app) *cobra.Command {
	var snapshot string
	cmd := &cobra.Command{
		Use:   "export REF DIR|-",
		Short: "Copy a tree to a directory, or to standard output as a tar",
		Long: `Copy a tree, or with --snapshot a snapshot of it, into a directory, where nothing
of the same names may be, or with "-" to standard output as a tar. A tree in use
is copied as it is at one moment.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := refArg(args)
			if err != nil {
				return err
			}
			if args[1] == "-" && a.stdout.terminal() {
				return capsule.Errorf(capsule.Invalid, "tree export %s: a tar does not suit a terminal; use a pipe", show(ref))
			}
			return a.with(cmd.Context(), func(api node.Conn) error {
				give := func(w io.Writer) error {
					return api.ExportTree(cmd.Context(), control.ExportRequest{Ref: ref, Snapshot: snapshot}, w)
				}
				if args[1] == "-" {
					err := give(a.stdout)
					if ferr := a.stdout.Flush(); err == nil {
						err = ferr
					}
					return err
				}
				if err := os.MkdirAll(args[1], 0o777); err != nil {
					return transfer.FileError(err, "make the directory")
				}
				return tree.Pipe(give, func(r io.Reader) error { return tree.UnpackDir(cmd.Context(), args[1], r) })
			}, "tree export %s", show(ref))
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "name of the snapshot to copy")
	return cmd
}

func newTreeLs(a *app) *cobra.Command {
	var snapshot string
	cmd := &cobra.Command{
		Use:   "ls REF [PATH]",
		Short: "List a directory of a tree",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := refArg(args)
			if err != nil {
				return err
			}
			req := control.ListTreeRequest{Ref: ref, Snapshot: snapshot}
			if len(args) > 1 {
				req.Path = args[1]
			}
			var list *jsonList
			if a.json() {
				list = a.newJSONList("entries")
			}
			err = a.with(cmd.Context(), func(api node.Conn) error {
				return api.ListTree(cmd.Context(), req, func(e control.TreeEntry) error {
					if a.json() {
						return list.add(e)
					}
					to := ""
					if e.Target != "" {
						to = " -> " + oneLine(e.Target)
					}
					a.printf("%s %3d %5d %5d %12d %s %s%s\n", fileMode(e.Mode), e.Nlink, e.UID, e.GID, e.Size,
						e.Mtime.Local().Format(time.DateTime), oneLine(e.Name), to)
					return nil
				})
			}, "tree ls %s", show(ref))
			if a.json() {
				if lerr := list.end(nil); err == nil {
					err = lerr
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "name of the snapshot to look at")
	return cmd
}

// fileMode is how ls(1) shows what stat(2) says.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, b := range []struct {
		mask, bits uint32
		to         fs.FileMode
	}{
		{0o170000, 0o040000, fs.ModeDir}, {0o170000, 0o120000, fs.ModeSymlink}, {0o170000, 0o010000, fs.ModeNamedPipe},
		{0o170000, 0o140000, fs.ModeSocket}, {0o170000, 0o060000, fs.ModeDevice}, {0o170000, 0o020000, fs.ModeDevice | fs.ModeCharDevice},
		{0o4000, 0o4000, fs.ModeSetuid}, {0o2000, 0o2000, fs.ModeSetgid}, {0o1000, 0o1000, fs.ModeSticky},
	} {
		if mode&b.mask == b.bits {
			m |= b.to
		}
	}
	return m
}

func newTreeList(a *app) *cobra.Command {
	q := store.ListQuery{Limit: 1000}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List all trees",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(api node.Conn) error { return a.list(cmd, api, q, true, capsule.Tree) }, "tree list")
		},
	}
	cmd.Flags().StringVar(&q.Prefix, "prefix", "", "only trees whose names start so")
	return cmd
}
