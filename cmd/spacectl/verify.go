package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/node"
)

func newVerify(a *app) *cobra.Command {
	var (
		req       control.VerifyRequest
		speed, id string
	)
	cmd := &cobra.Command{
		Use:   "verify [REF]",
		Short: "Check that everything stored can be read",
		Long: `Read and verify all segments and metadata, or those of one capsule, and report
every damaged range. The exit code is 6 if there is damage.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) > 0 || id != "" {
				if req.Ref, err = (&refFlags{id: id}).ref(args); err != nil {
					return err
				}
			}
			if speed != "" {
				if req.Rate, err = parseRate(speed); err != nil {
					return err
				}
			}
			var report store.VerifyReport
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				b := a.newBar("verify", -1)
				defer b.finish()
				report, err = api.Verify(cmd.Context(), req, b.set)
				return err
			}, "verify")
			if err != nil {
				return err
			}
			return a.printVerify(report)
		},
	}
	f := cmd.Flags()
	f.StringVar(&id, "id", "", "the capsule's ID")
	f.StringVar(&speed, "rate", "", "read no faster than this, such as 50MB/s")
	f.BoolVar(&req.Resume, "resume", false, "go on where an interrupted verify stopped")
	return cmd
}

func (a *app) printVerify(r store.VerifyReport) error {
	if a.json() {
		r.Damage, r.Problems = nonNil(r.Damage), nonNil(r.Problems)
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else {
		for _, d := range r.Damage {
			name := d.Name
			if name == "" {
				name = "-"
			}
			a.printf("damaged  %s  %s  bytes %d-%d  log %d at %d  %s\n", d.Capsule, printable(name), d.Off, d.Off+d.Len-1, d.Log, d.LogOff, printable(d.Why))
		}
		for _, p := range r.Problems {
			a.printf("problem  %s\n", printable(p))
		}
		a.printf("%s, %s, %s checked; %s\n", count(r.Capsules, "capsule", "capsules"), count(r.Segments, "segment", "segments"), size(r.Bytes), verdict(r))
	}
	if len(r.Damage)+len(r.Problems) > 0 {
		return capsule.Errorf(capsule.Damaged, "verify: %s; get the data from another copy and put it again", verdict(r))
	}
	return nil
}

func verdict(r store.VerifyReport) string {
	if len(r.Damage)+len(r.Problems) == 0 {
		return "no damage"
	}
	return fmt.Sprintf("%s and %s", count(int64(len(r.Damage)), "damaged range", "damaged ranges"), count(int64(len(r.Problems)), "problem", "problems"))
}
