package main

import (
	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/node"
)

// fsckResult is what fsck prints with -o json.
type fsckResult struct {
	Trees    int64         `json:"trees"`    // checked
	Problems []fsckProblem `json:"problems"` // in trees
	Metadata []string      `json:"metadata"` // counts and sums that contradict each other
}

type fsckProblem struct {
	Capsule  capsule.ID `json:"capsule"`
	Inode    uint64     `json:"inode,omitempty"`
	What     string     `json:"what"`
	Repaired bool       `json:"repaired"`
}

func newFsck(a *app) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "fsck [REF]",
		Short: "Check that trees and metadata are consistent",
		Long: `Check one tree, or all trees and the store's metadata: names, inodes, link
counts, directories, quotas, allocated bytes, references to segments. A tree in
use is checked as it is at one moment. With --repair what can be put right is,
and files without a name go to lost+found; nobody may use the trees meanwhile.
The exit code is 6 if anything is wrong that was not repaired. To read all
content too, use spacectl verify.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r := fsckResult{Problems: []fsckProblem{}, Metadata: []string{}}
			left := int64(0)
			err := a.with(ctx, func(api node.Conn) error {
				check := func(id capsule.ID, name string) error {
					r.Trees++
					return api.CheckTree(ctx, id.String(), repair, func(p tree.Problem) {
						if !p.Repaired {
							left++
						}
						if a.json() {
							r.Problems = append(r.Problems, fsckProblem{id, p.Ino, p.What, p.Repaired})
							return
						}
						state := "problem"
						if p.Repaired {
							state = "repaired"
						}
						a.printf("%s  %s  %s  inode %d: %s\n", state, id, printable(name), p.Ino, printable(p.What))
					})
				}
				if len(args) > 0 {
					ref, err := refArg(args)
					if err != nil {
						return err
					}
					info, err := api.Resolve(ctx, ref)
					if err != nil {
						return err
					}
					return check(info.ID, info.Name)
				}
				for q := (store.ListQuery{}); ; {
					page, err := api.List(ctx, q)
					if err != nil {
						return err
					}
					for _, info := range page.Capsules {
						if info.Kind == capsule.Tree {
							if err := check(info.ID, info.Name); err != nil {
								return err
							}
						}
					}
					if q.Cursor = page.Next; q.Cursor == "" {
						break
					}
				}
				rep, err := api.Verify(ctx, control.VerifyRequest{Metadata: true}, nil)
				r.Metadata = append(r.Metadata, rep.Problems...)
				return err
			}, "fsck")
			if err != nil {
				return err
			}
			left += int64(len(r.Metadata))
			if a.json() {
				if err := a.printJSON(r); err != nil {
					return err
				}
			} else {
				for _, p := range r.Metadata {
					a.printf("problem  metadata  %s\n", printable(p))
				}
				a.printf("%s checked; %s\n", count(r.Trees, "tree", "trees"), count(left, "problem left", "problems left"))
			}
			if left > 0 {
				return capsule.Errorf(capsule.Damaged, "fsck: %s; see --repair, and spacectl verify for damaged content", count(left, "problem is left", "problems are left"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "put right what can be")
	return cmd
}
