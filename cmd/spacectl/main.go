package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
)

func main() {
	if os.Getenv("SPACE_DEBUG") == "" {
		debug.SetTraceback("none")
	}
	if os.Getenv("GOGC") == "" {
		// The heap is small and bounded; collecting it less often saves a
		// tenth of the processor time of a put.
		debug.SetGCPercent(300)
	}
	os.Exit(run(os.Args[1:]))
}

// interrupted is why the context of a command ends when a signal came.
type interrupted struct{ sig syscall.Signal }

func (i interrupted) Error() string { return "interrupted" }
func (interrupted) Unwrap() error   { return context.Canceled }

// run is the whole program: it returns the exit code.
func run(args []string) (code int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "spacectl: internal error: %v\nThis is a bug. Please report it with the command and the output of SPACE_DEBUG=1.\n", p)
			if os.Getenv("SPACE_DEBUG") != "" {
				fmt.Fprintf(os.Stderr, "%s", debug.Stack())
			}
			code = exitInternal
		}
	}()

	// The first signal asks the command to end, the second cuts short what it
	// does to end well, the third kills.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	force, forceNow := context.WithCancel(context.Background())
	defer forceNow()
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for n := 1; ; n++ {
			sig := (<-signals).(syscall.Signal)
			switch n {
			case 1:
				cancel(interrupted{sig})
			case 2:
				forceNow()
			default:
				os.Exit(exitSignal + int(sig))
			}
		}
	}()
	// A reader of our output that left is no reason to die on the spot: the
	// write fails, and the command ends as it does for any error. (A handler,
	// and not to ignore it, for that would be inherited.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	a := &app{stdin: os.Stdin, stdout: newOutput(os.Stdout), stderr: os.Stderr, force: force}
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if ferr := a.stdout.Flush(); err == nil {
		err = ferr
	}
	if err == nil {
		return 0
	}
	if !a.started && capsule.KindOf(err) == capsule.Other {
		err = usageError(cmd, err)
	}
	return a.fail(ctx, err)
}

// usageError is what cobra finds wrong with a command line, with how it should be.
func usageError(cmd *cobra.Command, err error) error {
	why, similar, _ := strings.Cut(err.Error(), "\n\nDid you mean this?\n")
	if names := strings.Fields(similar); len(names) > 0 {
		why += "; did you mean " + strings.Join(names, " or ") + "?"
	}
	why, _, _ = strings.Cut(why, ": strconv.") // how Go says it
	if cmd.HasSubCommands() {
		return capsule.Errorf(capsule.Invalid, "%s; see %s --help", why, cmd.CommandPath())
	}
	if arg, ok := strings.CutPrefix(why, "unknown command "); ok { // of one that takes no arguments
		why = "unexpected argument " + arg
	}
	return capsule.Errorf(capsule.Invalid, "%s; usage: %s (see %s --help)", why, cmd.UseLine(), cmd.CommandPath())
}

// fail prints an error and returns its exit code.
func (a *app) fail(ctx context.Context, err error) int {
	var out outputError
	if errors.As(err, &out) && errors.Is(out.err, syscall.EPIPE) {
		return exitSignal + int(syscall.SIGPIPE) // who read our output had enough
	}
	code := exitCode(err)
	var sig interrupted
	if errors.As(context.Cause(ctx), &sig) && errors.Is(err, context.Canceled) {
		code = exitSignal + int(sig.sig)
		if a.interrupted == "" {
			a.interrupted = "interrupted; nothing half-done was kept"
		}
		err = capsule.Errorf(capsule.Canceled, "%s", a.interrupted)
	}
	if a.json() {
		a.printJSONError(err, code)
	} else {
		fmt.Fprintf(a.stderr, "spacectl: %s\n", printable(err.Error()))
	}
	return code
}
