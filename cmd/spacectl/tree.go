package main

import (
	"fmt"
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
	cmd.AddCommand(newTreeCreate(a), newTreeImport(a), newTreeExport(a), newTreeLs(a), newTreeQuota(a), newTreeList(a), newRemoveKind(a, capsule.Tree))
	return cmd
}

func newTreeCreate(a *app) *cobra.Command {
	var policy, bytes string
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
			if bytes != "" {
				if req.Quota.Bytes, err = parseSize("--quota-bytes", bytes); err != nil {
					return err
				}
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
	f.StringVar(&bytes, "quota-bytes", "", "most bytes that its files may take, before compression, such as 10GiB (default no limit)")
	f.Int64Var(&req.Quota.Inodes, "quota-inodes", 0, "most files and directories that it may hold (default no limit)")
	f.StringVar(&policy, "policy-file", "", "policy of the capsule (see spacectl policy)")
	return cmd
}

func newTreeQuota(a *app) *cobra.Command {
	var bytes string
	var inodes int64
	cmd := &cobra.Command{
		Use:   "quota REF [--bytes SIZE] [--inodes N]",
		Short: "Show what a tree may hold, or change it",
		Long: `Show how much of what a tree may hold is used, or with flags change the limits;
0 is no limit. What is beyond a new limit stays, and nothing comes to it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req := control.TreeQuotaRequest{}
			if req.Ref, err = refArg(args); err != nil {
				return err
			}
			if cmd.Flags().Changed("bytes") {
				n, err := parseSize("--bytes", bytes)
				if err != nil {
					return err
				}
				req.Bytes = &n
			}
			if cmd.Flags().Changed("inodes") {
				req.Inodes = &inodes
			}
			var u tree.Usage
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				u, err = api.TreeQuota(cmd.Context(), req)
				return err
			}, "tree quota %s", show(req.Ref))
			switch {
			case err != nil:
				return err
			case a.json():
				return a.printJSON(struct {
					Bytes       int64 `json:"bytes"`
					Inodes      int64 `json:"inodes"`
					QuotaBytes  int64 `json:"quota_bytes"`
					QuotaInodes int64 `json:"quota_inodes"`
				}{u.Bytes, u.Inodes, u.Quota.Bytes, u.Quota.Inodes})
			case req.Bytes != nil || req.Inodes != nil:
				return nil
			}
			of := func(used, limit string, limited bool) string {
				if !limited {
					return used + ", no limit"
				}
				return used + " of " + limit
			}
			a.fields("Bytes", of(size(u.Bytes), size(u.Quota.Bytes), u.Quota.Bytes > 0),
				"Inodes", of(fmt.Sprint(u.Inodes), fmt.Sprint(u.Quota.Inodes), u.Quota.Inodes > 0))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&bytes, "bytes", "", "most bytes that its files may take, before compression, such as 10GiB")
	f.Int64Var(&inodes, "inodes", 0, "most files and directories that it may hold")
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
