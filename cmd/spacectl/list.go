package main

import (
	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/node"
)

func newList(a *app) *cobra.Command {
	q := store.ListQuery{}
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List capsules",
		Long: `List capsules: first those without a name, by ID, then the others by name. One
page at a time: a note says how to get the next; --all prints all pages.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Limit < 1 || q.Limit > 1000 {
				return capsule.Errorf(capsule.Invalid, "--limit %d is not between 1 and 1000; --all lists everything", q.Limit)
			}
			return a.with(cmd.Context(), func(api node.Conn) error { return a.list(cmd, api, q, all, 0) }, "list")
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Prefix, "prefix", "", "only capsules whose names start so")
	f.StringVar(&q.Cursor, "cursor", "", "go on where an earlier page ended")
	f.IntVar(&q.Limit, "limit", 1000, "capsules on a page")
	f.BoolVar(&all, "all", false, "all pages")
	return cmd
}

// list prints capsules, if kind is not 0 only those of that kind.
func (a *app) list(cmd *cobra.Command, api node.Conn, q store.ListQuery, all bool, kind capsule.Kind) error {
	var js *jsonList
	for first := true; ; first = false {
		page, err := api.List(cmd.Context(), q)
		if err != nil {
			return err
		}
		switch {
		case !first:
		case a.json():
			js = a.newJSONList("capsules")
		default:
			a.printf("%-36s  %-6s  %10s  %-19s  %s\n", "ID", "KIND", "SIZE", "MODIFIED", "NAME")
		}
		for _, c := range page.Capsules {
			if kind != 0 && c.Kind != kind {
				continue
			}
			if js != nil {
				if err := js.add(c); err != nil {
					return err
				}
				continue
			}
			name := printable(c.Name)
			if name == "" {
				name = "-"
			}
			a.printf("%s  %-6s  %10s  %s  %s\n", c.ID, c.Kind, size(c.Size), when(c.Modified), name)
		}
		if page.Next == "" || !all {
			if js != nil {
				return js.end(map[string]any{"next": page.Next})
			}
			if page.Next != "" {
				a.note("there are more: list --cursor '%s' goes on, --all lists everything", page.Next)
			}
			return nil
		}
		q.Cursor = page.Next
	}
}
