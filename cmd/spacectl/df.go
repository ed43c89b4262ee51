package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/node"
)

func newDf(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "df",
		Short: "Show how much the store holds and takes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var u capsule.Usage
			err := a.with(cmd.Context(), func(api node.Conn) (err error) {
				u, err = api.Usage(cmd.Context())
				return err
			}, "df")
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(u)
			}
			a.fields(
				"Capsules", fmt.Sprint(u.Capsules),
				"Segments", fmt.Sprint(u.Segments),
				"Logical", bytesText(u.LogicalBytes),
				"Unique", bytesText(u.UniqueBytes),
				"Stored", bytesText(u.StoredBytes),
				"Dead", bytesText(u.DeadBytes),
				"Metadata", bytesText(u.MetaBytes),
				"On disk", bytesText(u.DiskBytes),
				"Pending", bytesText(u.PendingBytes),
				"Free", bytesText(u.FreeBytes),
				"Ratio", ratio(u.Ratio),
				"Dedup ratio", ratio(u.DedupRatio),
			)
			return nil
		},
	}
}
