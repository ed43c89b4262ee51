package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/spacestore/space/internal/control/transfer"
)

func newMan(*app) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages into a directory",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o777); err != nil {
				return transfer.FileError(err, "man")
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			epoch := time.Unix(0, 0).UTC() // the same pages from every build
			return transfer.FileError(doc.GenManTree(root, &doc.GenManHeader{Title: "SPACECTL", Section: "1", Source: "SPACE", Date: &epoch}, args[0]), "man")
		},
	}
}
