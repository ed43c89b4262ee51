package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control"
)

func newFabricTransfers(a *app) *cobra.Command {
	cmd := stateCommand(a, "transfers", "transfers", "List the transfers of files that run, pause them, slow them down",
		`List the transfers that run at this node: what it receives, offers, sends to others
and takes from them, how far they are and how fast they go. The commands below
change one while it runs. What was set of one that is received is kept with what
has arrived, and holds when the same command is started again.`, (*control.FabricClient).Transfers, printTransfers)
	cmd.AddCommand(
		a.transferCommand("pause", "Let what is under way come in, and ask for no more", func(c *control.TransferChange) { c.Paused = new(true) }),
		a.transferCommand("resume", "Let a transfer go on that was paused", func(c *control.TransferChange) { c.Paused = new(false) }),
		a.transferCommand("cancel", "End a transfer, and its command with it; what has arrived is kept", func(c *control.TransferChange) { c.Cancel = true }),
		newFabricTransfersLimit(a))
	return cmd
}

// transferCommand makes a command that changes one transfer.
func (a *app) transferCommand(name, short string, set func(*control.TransferChange)) *cobra.Command {
	return &cobra.Command{
		Use:   name + " ID",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := control.TransferChange{ID: args[0]}
			set(&c)
			return a.changeTransfer(cmd.Context(), name, c)
		},
	}
}

func (a *app) changeTransfer(ctx context.Context, what string, c control.TransferChange) error {
	return a.withFabric(ctx, "transfers "+what, func(client *control.FabricClient) error {
		st, err := client.ChangeTransfer(ctx, c)
		if err == nil && a.json() {
			err = a.printJSON(st)
		}
		return err
	})
}

func newFabricTransfersLimit(a *app) *cobra.Command {
	var limit, priority string
	cmd := &cobra.Command{
		Use:   "limit ID",
		Short: "Change how fast a transfer may go, and what goes before it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := control.TransferChange{ID: args[0]}
			switch limit {
			case "":
			case "none":
				c.Rate = new(int64(0))
			default:
				n, err := rateFlag(limit)
				if err != nil {
					return err
				}
				c.Rate = &n
			}
			switch priority {
			case "":
			case control.PriorityNormal, control.PriorityBackground:
				c.Background = new(priority == control.PriorityBackground)
			default:
				return capsule.Errorf(capsule.Invalid, "--priority %.32q is not valid; want %s or %s", priority, control.PriorityNormal, control.PriorityBackground)
			}
			if c.Rate == nil && c.Background == nil {
				return capsule.Errorf(capsule.Invalid, "fabric transfers limit: say what, with --rate or --priority")
			}
			return a.changeTransfer(cmd.Context(), "limit", c)
		},
	}
	cmd.Flags().StringVar(&limit, "rate", "", "bytes a second at most, such as 50MB, or none")
	cmd.Flags().StringVar(&priority, "priority", "", "normal, or background: after all other traffic")
	return cmd
}

func printTransfers(w io.Writer, list []control.TransferState) {
	fmt.Fprintf(w, "ID\tKIND\tSTATE\tNAME\tPEER\tDONE\tOF\tRATE\tETA\tLIMIT\tPRIORITY\tPATH\n")
	for _, st := range list {
		total, limit, eta := "-", "-", "-"
		if st.Total >= 0 {
			total = size(st.Total)
		}
		if st.Limit > 0 {
			limit = size(st.Limit) + "/s"
		}
		if st.ETA != nil {
			eta = time.Duration(*st.ETA * float64(time.Second)).Round(time.Second).String()
		}
		peer := st.Peer
		if peer == "" && len(st.Mirrors) > 0 {
			peer = st.Mirrors[0].Node
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.8s\t%s\t%s\t%s/s\t%s\t%s\t%s\t%s\n", st.ID, st.Kind, st.State, oneLine(st.Name), cmp.Or(printable(peer), "-"),
			size(st.Bytes), total, size(st.Rate), eta, limit, st.Priority, oneLine(filepath.Clean(st.Path)))
	}
}
