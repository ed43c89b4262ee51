package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

// commands are the constructors of all commands, one file each.
var commands = []func(*app) *cobra.Command{
	newPut, newGet, newList, newStat, newRename, newRemove, newPolicy,
	newVolume, newTree, newSnapshot, newClone,
	newProject,
	newVerify, newFsck, newGC, newDf, newKey, newBench, newNVMe, newFabric,
	newServe, newHold, newVersion, newMan,
}

// app is what every command shares.
type app struct {
	stdin  *os.File
	stdout *output
	stderr *os.File
	force  context.Context // ended by a second signal
	home   string
	format string // -o
	// started is set when a command begins to run: what fails before is the
	// command line.
	started bool
	target  node.Target
	// interrupted is what to say after a signal, if not that nothing was kept.
	interrupted string
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "spacectl",
		Short: "Store data in capsules and project them as files",
		Long: `spacectl keeps data in capsules, deduplicated, compressed and encrypted, and
projects them where programs can read them.

  spacectl put ./big.tar --name big           # prints the capsule's ID
  spacectl project mount --name big --target d
  cmp big.tar d/content && spacectl project unmount d

A capsule is named by its ID or its name, wherever REF stands. Nothing needs to
be set up, and no server started: commands open the store themselves, or use
the node that holds it. Exit codes are listed in docs/cli.md.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	flags := root.PersistentFlags()
	flags.StringVar(&a.home, "home", "", "directory of the store (SPACE_HOME; default $XDG_DATA_HOME/space or ~/.local/share/space)")
	flags.StringVarP(&a.format, "output", "o", "table", "output: table or json")
	flags.String("lock-timeout", "", "how long to wait for another command to leave the store (default 10s)")
	for _, c := range commands {
		root.AddCommand(c(a))
	}
	return root
}

// settingFlags are the flags that are settings, by their names in space.yaml.
var settingFlags = []string{"background", "cache-size", "drain-timeout", "lock-timeout", "log-format", "log-level", "memory-limit", "metrics-listen", "mount-wait"}

// prepare does what comes before any command: output, store, settings.
func (a *app) prepare(cmd *cobra.Command) error {
	if a.format != "table" && a.format != "json" {
		bad := a.format
		a.format = "table"
		return capsule.Errorf(capsule.Invalid, "output %.32q does not exist; there are table and json", bad)
	}
	a.started = true
	home, err := homeDir(a.home, os.Getenv)
	if err != nil {
		return err
	}
	given := map[string]string{}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if name := f.Annotations[settingFlag]; name != nil {
			given[name[0]] = f.Value.String()
			return
		}
		for _, name := range settingFlags {
			if f.Name == name {
				given[strings.ReplaceAll(name, "-", "_")] = f.Value.String()
			}
		}
	})
	cfg, err := node.LoadConfig(home, given, os.Getenv)
	if err != nil {
		return err
	}
	keys := keyring.SourceFromEnv(os.Getenv)
	keys.Prompt = passphrasePrompt(cmd.Context())
	a.target = node.Target{Home: home, Keys: keys, Config: cfg, Version: version(),
		Log:     newLogger(a.stderr, "text", max(cfg.LogLevel, slog.LevelWarn)),
		Waiting: func(msg string) { a.note("%s", msg) }}
	if cfg.LogLevel < slog.LevelInfo { // asked for
		a.target.Log = newLogger(a.stderr, "text", cfg.LogLevel)
	}
	return nil
}

// newLogger returns the log of a command or node.
func newLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// homeDir decides where the store is.
func homeDir(flag string, getenv func(string) string) (string, error) {
	dir := flag
	if dir == "" {
		dir = getenv("SPACE_HOME")
	}
	if dir == "" {
		if data := getenv("XDG_DATA_HOME"); filepath.IsAbs(data) { // others are to be ignored, says its specification
			dir = filepath.Join(data, "space")
		}
	}
	if dir == "" {
		home := getenv("HOME")
		if home == "" {
			return "", capsule.Errorf(capsule.Invalid, "where is the store? Neither --home nor SPACE_HOME nor HOME is set")
		}
		dir = filepath.Join(home, ".local", "share", "space")
	}
	if strings.ContainsRune(dir, 0) {
		return "", capsule.Errorf(capsule.Invalid, "--home holds a NUL byte")
	}
	abs, err := filepath.Abs(dir)
	return abs, transfer.FileError(err, "store directory")
}

// connect returns the API of the store.
func (a *app) connect(ctx context.Context) (node.Conn, error) { return node.Connect(ctx, a.target) }

// with connects, calls fn, and closes. An error gets the context that format
// and args describe.
func (a *app) with(ctx context.Context, fn func(node.Conn) error, format string, args ...any) error {
	api, err := a.connect(ctx)
	if err != nil {
		return capsule.Wrap(capsule.Other, err, format, args...)
	}
	err = fn(api)
	if cerr := api.Close(); err == nil {
		err = cerr
	}
	return capsule.Wrap(capsule.Other, err, format, args...)
}

// refFlags are the flags that name one capsule, beside a plain argument.
type refFlags struct{ id, name string }

func (r *refFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.id, "id", "", "the capsule's ID")
	cmd.Flags().StringVar(&r.name, "name", "", "the capsule's name")
}

// ref is the one capsule that arguments and flags name.
func (r *refFlags) ref(args []string) (string, error) {
	given := args
	if r.id != "" {
		if _, err := capsule.ParseID(r.id); err != nil {
			return "", err
		}
		given = append(given, r.id)
	}
	if r.name != "" {
		given = append(given, r.name)
	}
	switch {
	case len(given) != 1:
		return "", capsule.Errorf(capsule.Invalid, "name one capsule: by its ID or its name, as an argument or with --id or --name")
	case given[0] == "":
		return "", capsule.Errorf(capsule.Invalid, "the empty string names no capsule")
	}
	return given[0], nil
}

// refArg is the capsule that the first of several arguments names.
func refArg(args []string) (string, error) { return (&refFlags{}).ref(args[:1]) }

// show shortens what a user typed for use in an error.
func show(s string) string {
	if len(s) > 80 {
		return s[:77] + "…"
	}
	return s
}
