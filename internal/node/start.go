package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store/keyring"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/control/transfer"
)

// start returns a connection to the node, having started it if need be.
func (t Target) start(ctx context.Context) (Conn, error) {
	c, err := t.dial(ctx)
	if !errors.Is(err, control.ErrNoNode) {
		return c, err
	}
	if err := t.spawn(ctx); err != nil {
		return nil, err
	}
	if c, err = t.dial(ctx); errors.Is(err, control.ErrNoNode) {
		err = errEnding // it came and went
	}
	return c, err
}

// The descriptors that a background node inherits.
const (
	reportFD = 3 // it tells its starter how it goes
	answerFD = 4 // its starter answers
)

// report is what a background node tells its starter: that it needs a
// passphrase, or, at last, that it answers or why it never will.
type report struct {
	Ask   bool              `json:"ask,omitempty"`
	Ready bool              `json:"ready,omitempty"`
	Kind  capsule.ErrorKind `json:"kind,omitempty"`
	Error string            `json:"error,omitempty"`
}

// answer is what the starter says: first whether there is somebody who could
// type a passphrase, then the passphrase, if the node asks. It goes through a
// pipe because arguments and environment can be seen in /proc.
type answer struct {
	CanAsk     bool   `json:"can_ask,omitempty"`
	Passphrase string `json:"passphrase,omitempty"`
	Error      string `json:"error,omitempty"`
}

// maxPipe bounds what either side of the pipes takes.
const maxPipe = 64 << 10

// spawn runs this program again as an ephemeral node, cut off from our
// terminal, and returns when it answers, when it has found another one, or
// with the error it met.
func (t Target) spawn(ctx context.Context) error {
	fail := func(err error) error { return capsule.Wrap(capsule.IO, err, "start a node for %s", t.Home) }
	reports, reportW, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer reports.Close()
	defer reportW.Close()
	answerR, answers, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer answerR.Close()
	defer answers.Close()
	self, err := ownProgram()
	if err != nil {
		return fail(err)
	}
	cmd := exec.Command(self, "serve", "--ephemeral", "--home", t.Home, "--lock-timeout", t.Config.LockTimeout.String())
	cmd.Dir = "/" // so as to keep no file system busy
	cmd.Env = backgroundEnv(os.Environ())
	cmd.ExtraFiles = []*os.File{reportW, answerR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	go cmd.Wait() // no zombie while we live
	reportW.Close()
	answerR.Close()
	stop := context.AfterFunc(ctx, func() { reports.Close() })
	defer stop()

	in, out := json.NewDecoder(io.LimitReader(reports, maxPipe)), json.NewEncoder(answers)
	out.Encode(answer{CanAsk: t.Keys.Prompt != nil}) // if it fails, so does the next read
	for {
		var r report
		err := in.Decode(&r)
		switch {
		case ctx.Err() != nil:
			cmd.Process.Kill() // it has done nothing yet
			return context.Cause(ctx)
		case err != nil:
			return capsule.Errorf(capsule.Other, "the node in the background died as it started; %s says why", filepath.Join(t.Home, LogName))
		case r.Ask && t.Keys.Prompt != nil:
			var a answer
			if a.Passphrase, err = t.Keys.Prompt(t.Home); err != nil {
				a.Error = err.Error()
			}
			out.Encode(a)
		case r.Ready:
			return nil
		default:
			return &capsule.Error{Kind: r.Kind, Msg: r.Error}
		}
	}
}

// ownProgram is the path of this program, in the version that is installed now.
func ownProgram() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(self); err != nil { // removed while we run
		self = "/proc/self/exe"
	}
	return self, nil
}

// backgroundEnv makes the paths in the environment good for another working
// directory.
func backgroundEnv(env []string) []string {
	out := make([]string, 0, len(env))
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if (name == keyring.EnvMasterKeyFile || name == keyring.EnvPassphraseFile) && value != "" {
			if abs, err := filepath.Abs(value); err == nil {
				kv = name + "=" + abs
			}
		}
		out = append(out, kv)
	}
	return out
}

// Background is a background node's end of the pipes to its starter.
type Background struct {
	Log io.Writer // SPACE_HOME/node.log

	reports *os.File
	answers *json.Decoder
	canAsk  bool
}

// JoinBackground takes up what the starter left for this process. Output goes
// to the log file in home from here on.
func JoinBackground(home string) (*Background, error) {
	syscall.CloseOnExec(reportFD)
	syscall.CloseOnExec(answerFD)
	b := &Background{reports: os.NewFile(reportFD, "report"),
		answers: json.NewDecoder(io.LimitReader(os.NewFile(answerFD, "answer"), maxPipe))}
	var first answer
	if err := b.answers.Decode(&first); err != nil {
		return nil, capsule.Errorf(capsule.Invalid, "serve --ephemeral is how `spacectl project mount` starts a node; start one yourself with `spacectl serve`")
	}
	b.canAsk = first.CanAsk
	err := os.MkdirAll(home, 0o700)
	if err != nil {
		err = transfer.FileError(err, "store directory")
	} else {
		b.Log, err = openLogFile(filepath.Join(home, LogName))
	}
	if err != nil {
		b.Report(err)
		return nil, err
	}
	return b, nil
}

// Prompt returns how this process can ask for a passphrase: through its
// starter, or not at all (nil).
func (b *Background) Prompt() func(storeDir string) (string, error) {
	if !b.canAsk {
		return nil
	}
	return func(string) (string, error) {
		if err := json.NewEncoder(b.reports).Encode(report{Ask: true}); err != nil {
			return "", err
		}
		var a answer
		if err := b.answers.Decode(&a); err != nil {
			return "", err
		}
		if a.Error != "" {
			return "", capsule.Errorf(capsule.WrongKey, "%s", a.Error)
		}
		return a.Passphrase, nil
	}
}

// Report tells the starter that the node answers, if err is nil or another
// node does, or why it never will. The first report is the last.
func (b *Background) Report(err error) {
	r := report{Ready: true}
	if err != nil && !errors.Is(err, ErrRunning) {
		r = report{Kind: capsule.KindOf(err), Error: err.Error()}
	}
	json.NewEncoder(b.reports).Encode(r) // a starter that has gone needs no answer
	b.reports.Close()
}
