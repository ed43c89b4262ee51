package main

import (
	"context"
	"os"

	"golang.org/x/term"

	"github.com/spacestore/space/capsule"
)

// passphrasePrompt returns how to ask for a passphrase on the terminal, which
// need not be standard input, or nil if there is none.
func passphrasePrompt(ctx context.Context) func(storeDir string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	tty.Close()
	return func(storeDir string) (string, error) {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return "", capsule.Wrap(capsule.WrongKey, err, "ask for the passphrase")
		}
		fd := int(tty.Fd())
		before, err := term.GetState(fd)
		if err != nil {
			return "", capsule.Wrap(capsule.WrongKey, err, "ask for the passphrase")
		}
		type result struct {
			line []byte
			err  error
		}
		typed := make(chan result, 1)
		tty.WriteString("Passphrase for the store in " + printable(storeDir) + ": ")
		go func() {
			line, err := term.ReadPassword(fd)
			typed <- result{line, err}
		}()
		select {
		case r := <-typed:
			tty.WriteString("\n")
			tty.Close()
			return string(r.line), capsule.Wrap(capsule.WrongKey, r.err, "ask for the passphrase")
		case <-ctx.Done(): // the read is left alone, but the terminal must echo again
			term.Restore(fd, before)
			tty.WriteString("\n")
			return "", context.Cause(ctx)
		}
	}
}
