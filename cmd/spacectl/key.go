package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

func newKey(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Show, change, export and import the store's keys",
		Args:  cobra.NoArgs,
		RunE:  needsSubcommand,
	}
	var toTerminal bool
	export := &cobra.Command{
		Use:   "export",
		Short: "Print the master key, to be kept in a safe place",
		Long: `Print the master key as one line. Whoever has it and the store can read
everything; without it, if the store's own copy is lost, nobody can. Prints to a
terminal only with --show.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.stdout.terminal() && !toTerminal {
				return capsule.Errorf(capsule.Denied, "key export: this would show the key on the terminal; redirect it to a file, or add --show")
			}
			var text string
			err := a.with(cmd.Context(), func(api node.Conn) (err error) {
				text, err = api.ExportKey(cmd.Context())
				return err
			}, "key export")
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]string{"master_key": text})
			}
			a.printf("%s\n", text)
			return nil
		},
	}
	export.Flags().BoolVar(&toTerminal, "show", false, "print to a terminal too")
	cmd.AddCommand(
		&cobra.Command{
			Use:   "show",
			Short: "Show which keys there are, without their secrets",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.keyInfo(cmd.Context(), "key show", node.Conn.Keys)
			},
		},
		newKeyRotate(a),
		export,
		&cobra.Command{
			Use:   "import FILE|-",
			Short: "Install an exported master key",
			Long:  `Install a master key that key export printed, after the store's own copy was lost.`,
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				text, err := readKey(args[0])
				if err != nil {
					return err
				}
				return capsule.Wrap(capsule.Other, node.ImportKey(cmd.Context(), a.target, text), "key import")
			},
		})
	return cmd
}

func newKeyRotate(a *app) *cobra.Command {
	var keyFile, passphraseFile string
	var own bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make new keys",
		Long: `Make a new data key, and a new master key if it is the store's own. Old data
stays readable, and is sealed again under the new key in the background or by
spacectl gc.

With --new-key-file or --new-passphrase-file the store gets that master key or
passphrase ("-": standard input), which must be given from then on (SPACE_MASTER_KEY,
SPACE_PASSPHRASE, …). With --own-key the store makes one and keeps it itself.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var master *keyring.Source
			switch {
			case keyFile != "":
				text, err := readKey(keyFile)
				if err != nil {
					return err
				}
				master = &keyring.Source{MasterKey: strings.TrimSpace(text)}
				if master.MasterKey == "" {
					return capsule.Errorf(capsule.Invalid, "key rotate: %s holds no key", show(keyFile))
				}
			case passphraseFile != "":
				text, err := readKey(passphraseFile)
				if err != nil {
					return err
				}
				line, rest, _ := strings.Cut(text, "\n")
				master = &keyring.Source{Passphrase: strings.TrimSuffix(line, "\r")}
				if master.Passphrase == "" || strings.TrimSpace(rest) != "" {
					return capsule.Errorf(capsule.Invalid, "key rotate: %s must hold one line with the passphrase", show(passphraseFile))
				}
			case own:
				master = &keyring.Source{}
			}
			return a.keyInfo(cmd.Context(), "key rotate", func(api node.Conn, ctx context.Context) (keyring.Info, error) {
				return api.RotateKey(ctx, master)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyFile, "new-key-file", "", "file with the new master key: 64 hex digits, or an exported key")
	f.StringVar(&passphraseFile, "new-passphrase-file", "", "file with the new passphrase")
	f.BoolVar(&own, "own-key", false, "let the store make and keep its master key")
	cmd.MarkFlagsMutuallyExclusive("new-key-file", "new-passphrase-file", "own-key")
	return cmd
}

func (a *app) keyInfo(ctx context.Context, what string, get func(node.Conn, context.Context) (keyring.Info, error)) error {
	var info keyring.Info
	err := a.with(ctx, func(api node.Conn) (err error) {
		info, err = get(api, ctx)
		return err
	}, "%s", what)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(info)
	}
	a.fields(
		"Store", info.StoreID,
		"Master key", fmt.Sprintf("%s, from %s", info.Source, info.Found),
		"Fingerprint", info.Fingerprint,
		"Generation", fmt.Sprint(info.Generation),
	)
	for _, v := range info.Versions {
		state := "kept for older data"
		if v.Current {
			state = "current"
		}
		a.printf("Data key %d, made %s, %s\n", v.Version, when(v.Created), state)
	}
	return nil
}

// maxKeyFile is more than any exported key takes.
const maxKeyFile = 4096

func readKey(path string) (string, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return "", transfer.FileError(err, "key file")
		}
		defer f.Close()
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	return string(data), transfer.FileError(err, "key file")
}
