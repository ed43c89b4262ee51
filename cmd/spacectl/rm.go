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
			return a.removeAll(cmd, refs, "rm", func(api node.Conn, ref string, remove func(node.Conn, string) error) error {
				if recursive {
					return eachUnder(cmd, api, ref, remove)
				}
				return remove(api, ref)
			})
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "remove all capsules under a prefix")
	cmd.Flags().StringArrayVar(&ids, "id", nil, "the ID of a capsule to remove")
	return cmd
}

// removeAll calls each with every ref and with what removes a capsule. What
// fails is said, and the rest goes on.
func (a *app) removeAll(cmd *cobra.Command, refs []string, verb string, each func(node.Conn, string, func(node.Conn, string) error) error) error {
	var (
		failed  failures
		removed = []capsule.Info{}
		n       int64
	)
	remove := func(api node.Conn, ref string) error {
		info, err := api.Remove(cmd.Context(), ref)
		if err != nil {
			failed.add(a, verb, show(ref), err)
			return fatal(err)
		}
		if n++; a.json() {
			removed = append(removed, info)
		}
		return nil
	}
	err := a.with(cmd.Context(), func(api node.Conn) error {
		for _, ref := range refs {
			if err := each(api, ref, remove); fatal(err) != nil {
				return err
			} else if err != nil {
				failed.add(a, verb, show(ref), err)
			}
		}
		return nil
	}, "%s", verb)
	if err != nil {
		return err
	}
	if a.json() {
		if err := a.printJSON(map[string]any{"removed": removed, "failed": failed.list()}); err != nil {
			return err
		}
	}
	return failed.err("%s: %d of %d capsules were not removed", verb, failed.count(), n+failed.count())
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
