package main

import (
	"github.com/spf13/cobra"

	"github.com/spacestore/space/internal/node"
)

func newHold(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "hold",
		Short:  "Keep mounts while no node serves them; nodes start it",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := node.HolderOptions{Target: a.target, LogFormat: a.target.Config.LogFormat, Log: newLogger}
			return node.RunHolder(cmd.Context(), o)
		},
	}
}
