package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/node"
)

func newGC(a *app) *cobra.Command {
	var o store.GCOptions
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Give the space of removed data back to the file system",
		Long: `Rewrite segment logs that are mostly dead and remove dead ones, while reads and
writes go on. A node does so by itself when idle.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !(o.MinDead >= 0 && o.MinDead <= 1) {
				return capsule.Errorf(capsule.Invalid, "--min-dead %v is not between 0 and 1", o.MinDead)
			}
			var report store.GCReport
			err := a.with(cmd.Context(), func(api node.Conn) (err error) {
				b := a.newBar("gc", -1)
				defer b.finish()
				report, err = api.GC(cmd.Context(), o, b.set)
				return err
			}, "gc")
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(report)
			}
			a.fields(
				"Freed", bytesText(report.FreedBytes),
				"Moved", bytesText(report.MovedBytes),
				"Logs removed", fmt.Sprint(report.LogsRemoved),
				"Logs rewritten", fmt.Sprint(report.LogsMoved),
				"Logs kept, damaged", fmt.Sprint(report.Unmovable),
				"Segments recompressed", fmt.Sprint(report.Recompressed),
				"Segments re-sealed", fmt.Sprint(report.Resealed),
			)
			return nil
		},
	}
	cmd.Flags().Float64Var(&o.MinDead, "min-dead", 0, "rewrite logs of which at least this share is dead (default 0.1)")
	cmd.Flags().BoolVar(&o.Recompress, "recompress", false, "compress harder what went in fast")
	return cmd
}

// parseRate reads bytes per second: a size, with or without "/s".
func parseRate(s string) (int64, error) {
	n, err := node.ParseSize(strings.TrimSuffix(s, "/s"))
	if err != nil || n <= 0 {
		return 0, capsule.Errorf(capsule.Invalid, "rate %.32q is not valid; want something such as 50MB/s", s)
	}
	return n, nil
}
