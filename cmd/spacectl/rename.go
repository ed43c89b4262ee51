package main

import (
	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/node"
)

func newRename(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rename REF NAME",
		Aliases: []string{"mv"},
		Short:   "Give a capsule another name",
		Long:    `Give a capsule another name, or with the empty string ("") none. Its ID stays.`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := refArg(args)
			if err != nil {
				return err
			}
			if args[1] != "" {
				if err := capsule.CheckName(args[1]); err != nil {
					return err
				}
			}
			var info capsule.Info
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				info, err = api.Rename(cmd.Context(), target, args[1])
				return err
			}, "rename %s", show(target))
			if err == nil && a.json() {
				return a.printJSON(info)
			}
			return err
		},
	}
}
