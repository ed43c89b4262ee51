package main

import (
	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/node"
)

func newClone(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "clone REF SNAPSHOT NAME",
		Short: "Make a new capsule of a snapshot",
		Long: `Make a capsule that begins as a snapshot of another one, and print its ID. It
takes no time, and no space until one of the two changes; neither sees the
other's changes, and each can be removed.`,
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			if err := capsule.CheckSnapshotName(args[1]); err != nil {
				return err
			}
			if err := capsule.CheckName(args[2]); err != nil {
				return err
			}
			var info capsule.Info
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				info, err = api.Clone(cmd.Context(), target, args[1], args[2])
				return err
			}, "clone %s", show(target))
			if err != nil {
				return err
			}
			return a.printNew(info)
		},
	}
}
