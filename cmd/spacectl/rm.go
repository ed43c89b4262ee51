package main

import (
	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/node"
)

func newRemove(a *app) *cobra.Command {
	var (
		recursive bool
		ids       []string
	)
	cmd := &cobra.Command{
		Use:     "rm REF...",
		Aliases: []string{"remove"},
		Short:   "Remove capsules",
		Long: `Remove capsules. Space that no other capsule shares is given back in the
background, or by spacectl gc. With -r each REF is a prefix, and all capsules
named PREFIX/path go.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			refs := append(args, ids...)
			if len(refs) == 0 {
				return capsule.Errorf(capsule.Invalid, "rm: name at least one capsule, by its ID or its name")
			}
			var (
				failed  failures
				removed = []capsule.Info{}
				n       int64
			)
			remove := func(api node.Conn, ref string) error {
				info, err := api.Remove(cmd.Context(), ref)
				if err != nil {
					failed.add(a, "rm", show(ref), err)
					return fatal(err)
				}
				if n++; a.json() {
					removed = append(removed, info)
				}
				return nil
			}
			err := a.with(cmd.Context(), func(api node.Conn) error {
				for _, ref := range refs {
					if !recursive {
						if err := remove(api, ref); err != nil {
							return err
						}
						continue
					}
					if err := eachUnder(cmd, api, ref, remove); err != nil {
						if failed.add(a, "rm -r", show(ref), err); fatal(err) != nil {
							return err
						}
					}
				}
				return nil
			}, "rm")
			if err != nil {
				return err
			}
			if a.json() {
				if err := a.printJSON(map[string]any{"removed": removed, "failed": failed.list()}); err != nil {
					return err
				}
			}
			return failed.err("rm: %d of %d capsules were not removed", failed.count(), n+failed.count())
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "remove all capsules under a prefix")
	cmd.Flags().StringArrayVar(&ids, "id", nil, "the ID of a capsule to remove")
	return cmd
}

// eachUnder calls fn with the ID of every capsule under a prefix. A cursor says
// where in the order of names to go on, so fn may remove what it is given.
func eachUnder(cmd *cobra.Command, api node.Conn, prefix string, fn func(node.Conn, string) error) error {
	if err := capsule.CheckName(prefix); err != nil {
		return err
	}
	found := false
	for q := (store.ListQuery{Prefix: prefix + "/", Limit: 1000}); ; {
		page, err := api.List(cmd.Context(), q)
		if err != nil {
			return err
		}
		for _, info := range page.Capsules {
			found = true
			if err := fn(api, info.ID.String()); err != nil {
				return err
			}
		}
		if page.Next == "" {
			break
		}
		q.Cursor = page.Next
	}
	if !found {
		return capsule.Errorf(capsule.NotFound, "no capsule has a name that starts with %q", prefix+"/")
	}
	return nil
}
