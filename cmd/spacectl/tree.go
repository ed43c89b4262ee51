package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
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
	cmd.AddCommand(newTreeCreate(a))
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
