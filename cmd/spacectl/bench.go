package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/bench"
	"github.com/spacestore/space/internal/control/transfer"
)

func newBench(a *app) *cobra.Command {
	var o bench.Options
	var corpus string
	cmd := &cobra.Command{
		Use:   "bench [FILE...]",
		Short: "Measure the store beside the limits of this machine",
		Long: `Measure put, get, random reads, verify and small puts, on generated text and
random bytes or on the files given, and in the same run the disk, the hash, the
cipher and the codecs, and print each figure beside the limit that binds it.

Works in a temporary directory with stores of its own, and removes it at the
end. No other store is touched. docs/bench.md says how to read the result.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Size, err = parseSize("--size", corpus); err != nil {
				return err
			}
			if o.Dir == "" {
				if o.Dir, err = os.Getwd(); err != nil {
					return transfer.FileError(err, "bench")
				}
			}
			o.Files = args
			o.Logger = a.target.Log
			o.Progress = func(done, total int) { a.fact("bench: round %d of %d", done+1, total) }
			report, err := bench.Run(cmd.Context(), o)
			if err != nil {
				return capsule.Wrap(capsule.Other, err, "bench")
			}
			if a.json() {
				return a.printJSON(report)
			}
			return a.printBench(report)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", "", "directory on the disk to measure (default: the current one)")
	f.StringVar(&corpus, "size", "256MiB", "bytes of each generated corpus")
	f.IntVar(&o.Rounds, "rounds", 3, "rounds to take the medians of; one more is run first and discarded")
	return cmd
}

func (a *app) printBench(r *bench.Report) error {
	a.printf("Encryption %s, durability %s, %s, medians of %s.\n\n", r.Encryption, r.Durability,
		count(int64(r.Cores), "core", "cores"), count(int64(r.Rounds), "round", "rounds"))

	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "THIS MACHINE\tRATE\n")
	for _, m := range r.Machine {
		fmt.Fprintf(w, "%s\t%s\n", m.Name, benchValue(m.Value.Value, m.Unit))
	}
	fmt.Fprintf(w, "\nCODEC\tCORPUS\tENCODE\tDECODE\tRATIO\n")
	for _, c := range r.Codecs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Name, printable(c.Corpus), benchValue(c.Encode, bench.BytesPerSecond),
			benchValue(c.Decode, bench.BytesPerSecond), ratio(c.Ratio))
	}
	fmt.Fprintf(w, "\nCORPUS\tSIZE\tSTORED\n")
	for _, c := range r.Corpora {
		fmt.Fprintf(w, "%s\t%s\t%s\n", printable(c.Name), size(c.Size), size(int64(c.Stored)))
	}
	fmt.Fprintf(w, "\nTHE STORE\tCORPUS\tRATE\tREACHES\tOF\tLIMIT\n")
	for _, o := range r.Operations {
		reached, of, limit := "-", "-", "-"
		if o.Limit != "" {
			reached, of, limit = fmt.Sprintf("%.0f %%", o.Reached), benchValue(o.LimitValue, o.Unit), o.Limit
		}
		corpus := printable(o.Corpus)
		if corpus == "" {
			corpus = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", o.Name, corpus, benchValue(o.Value.Value, o.Unit), reached, of, limit)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	a.printf("\n32 writers put %.1f times as many small capsules as one (group commit).\n", r.GroupCommit)
	if r.PeakRSS > 0 {
		a.printf("Peak resident memory while storing and reading: %s.\n", size(r.PeakRSS))
	}
	if r.Available > 0 && r.Available < 0.9 {
		a.printf("Other programs took %.0f %% of the cores: measure again when the machine is idle.\n", 100*(1-r.Available))
	}
	for _, m := range r.Missing {
		a.printf("Not measured: %s.\n", m)
	}
	return nil
}

// benchValue formats a measured value for people.
func benchValue(v float64, u bench.Unit) string {
	switch u {
	case bench.BytesPerSecond:
		return size(int64(v)) + "/s"
	case bench.Seconds:
		return time.Duration(v * float64(time.Second)).Round(100 * time.Microsecond).String()
	}
	return fmt.Sprintf("%.0f/s", v)
}
