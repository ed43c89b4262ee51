package main

import (
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

func newPolicy(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show, check and change what capsules ask for",
		Args:  cobra.NoArgs,
		RunE:  needsSubcommand,
	}
	var showRef, setRef refFlags
	showCmd := &cobra.Command{
		Use:   "show REF",
		Short: "Show a capsule's policy",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := showRef.ref(args)
			if err != nil {
				return err
			}
			var p *capsule.Policy
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				p, err = api.Policy(cmd.Context(), target)
				return err
			}, "policy show %s", show(target))
			if err != nil {
				return err
			}
			return a.printPolicy(p)
		},
	}
	showRef.add(showCmd)
	setCmd := &cobra.Command{
		Use:   "set REF FILE|-",
		Short: "Give a capsule another policy",
		Long: `Give a capsule the policy in a file. What is stored already stays as it was
sealed until garbage collection rewrites it.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := setRef.ref(args[:len(args)-1])
			if err != nil {
				return err
			}
			p, err := readPolicy(args[len(args)-1])
			if err != nil {
				return err
			}
			var info capsule.Info
			err = a.with(cmd.Context(), func(api node.Conn) (err error) {
				info, err = api.SetPolicy(cmd.Context(), target, p)
				return err
			}, "policy set %s", show(target))
			if err != nil {
				return err
			}
			a.noteNotEnforced(p)
			if a.json() {
				return a.printJSON(info)
			}
			return nil
		},
	}
	setRef.add(setCmd)
	cmd.AddCommand(showCmd, setCmd,
		&cobra.Command{
			Use:   "validate FILE|-",
			Short: "Check a policy file",
			Args:  cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				p, err := readPolicy(args[0])
				if err != nil {
					return err
				}
				a.noteNotEnforced(p)
				if a.json() {
					return a.printJSON(map[string]any{"valid": true, "policy": p, "not_enforced": nonNil(p.NotEnforced())})
				}
				return nil
			},
		},
		&cobra.Command{
			Use:   "default",
			Short: "Show the policy of capsules that were given none",
			Args:  cobra.NoArgs,
			RunE:  func(*cobra.Command, []string) error { return a.printPolicy(capsule.DefaultPolicy()) },
		})
	return cmd
}

func (a *app) printPolicy(p *capsule.Policy) error {
	if a.json() {
		return a.printJSON(p)
	}
	_, err := a.stdout.Write(p.YAML())
	return err
}

func (a *app) noteNotEnforced(p *capsule.Policy) {
	if keys := p.NotEnforced(); len(keys) > 0 && !a.json() {
		a.note("valid and kept, but not enforced by this version: %s", strings.Join(keys, ", "))
	}
}

// maxPolicyFile is more than any policy needs; the parser has its own limits.
const maxPolicyFile = 1 << 20

func readPolicy(path string) (*capsule.Policy, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, transfer.FileError(err, "policy file")
		}
		defer f.Close()
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPolicyFile+1))
	if err != nil {
		return nil, transfer.FileError(err, "policy file")
	}
	return capsule.ParsePolicy(path, data)
}

// needsSubcommand is for commands that only group others.
func needsSubcommand(cmd *cobra.Command, _ []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return capsule.Errorf(capsule.Invalid, "%s needs a subcommand: %s", cmd.Name(), strings.Join(names, ", "))
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
