package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/node"
)

func newStat(a *app) *cobra.Command {
	var ref refFlags
	cmd := &cobra.Command{
		Use:   "stat REF",
		Short: "Show what is known of a capsule, and what it costs",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := ref.ref(args)
			if err != nil {
				return err
			}
			var st capsule.Stat
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				st, err = api.Stat(cmd.Context(), target)
				return err
			}, "stat %s", show(target))
			if err != nil {
				return err
			}
			if a.json() {
				st.NotEnforced = nonNil(st.NotEnforced)
				return a.printJSON(st)
			}
			name := st.Name
			if name == "" {
				name = "-"
			}
			a.fields(
				"ID", st.ID.String(),
				"Name", name,
				"Kind", st.Kind.String(),
				"Size", bytesText(st.Size),
				"Version", fmt.Sprint(st.Version),
				"Created", when(st.Created),
				"Modified", when(st.Modified),
				"Segments", fmt.Sprint(st.Segments),
				"Allocated", bytesText(st.AllocatedBytes),
				"Holes", bytesText(st.HoleBytes),
				"Unique", bytesText(st.UniqueBytes),
				"Stored", bytesText(st.StoredBytes),
				"Its own", bytesText(st.OwnBytes),
				"Ratio", ratio(st.Ratio),
			)
			if st.Policy != nil {
				a.printf("Policy\n%s", indent(string(st.Policy.YAML())))
			}
			if len(st.NotEnforced) > 0 {
				a.printf("Not enforced by this version: %s\n", printable(strings.Join(st.NotEnforced, ", ")))
			}
			return nil
		},
	}
	ref.add(cmd)
	return cmd
}

// bytesText is a size for people and exactly.
func bytesText(n int64) string {
	if n < 1000 {
		return size(n)
	}
	return fmt.Sprintf("%s (%d bytes)", size(n), n)
}

func ratio(r float64) string {
	if r == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", r)
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + printable(line))
	}
	return b.String()
}
