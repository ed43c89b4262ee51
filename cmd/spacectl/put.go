package main

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control/transfer"
	"github.com/spacestore/space/internal/node"
)

func newPut(a *app) *cobra.Command {
	var (
		req        = store.PutRequest{Size: -1}
		id, policy string
		recursive  bool
	)
	cmd := &cobra.Command{
		Use:   "put FILE|-",
		Short: "Store a file, standard input or a directory",
		Long: `Store a file, or with "-" standard input, as a capsule, and print the capsule's
ID. When put returns, the capsule is durable.

With --name the capsule gets that name; if a capsule has it already, its
content is replaced (its ID stays), unless --exclusive forbids it. With --id the
content of that capsule is replaced.

With -r, store every regular file of a directory as a capsule named by its path
(PREFIX/path, PREFIX being --name or the directory's own name), and print a line
"ID  NAME" for each. Files that fail are reported and the others stored.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if id != "" {
				if req.ID, err = capsule.ParseID(id); err != nil {
					return err
				}
			}
			if req.Name != "" {
				if err := capsule.CheckName(req.Name); err != nil {
					return err
				}
			} else if cmd.Flags().Changed("name") {
				return capsule.Errorf(capsule.Invalid, "--name is empty")
			}
			if cmd.Flags().Changed("size") && req.Size < 0 {
				return capsule.Errorf(capsule.Invalid, "--size can't be negative")
			}
			if policy != "" {
				if req.Policy, err = readPolicy(policy); err != nil {
					return err
				}
			}
			if recursive {
				if !req.ID.IsZero() || req.Exclusive {
					return capsule.Errorf(capsule.Invalid, "put -r takes neither --id nor --exclusive")
				}
				return a.putDir(cmd.Context(), args[0], req)
			}
			return a.putFile(cmd.Context(), args[0], req)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Name, "name", "", "name of the capsule, or with -r the prefix of all names")
	f.StringVar(&id, "id", "", "replace the content of this capsule")
	f.Int64Var(&req.Size, "size", -1, "bytes that will come; a stream of another length stores nothing (default: a file's size; else not known)")
	f.StringVar(&policy, "policy-file", "", "policy of the capsule (see spacectl policy)")
	f.BoolVar(&req.Exclusive, "exclusive", false, "fail if the name is taken")
	f.BoolVarP(&recursive, "recursive", "r", false, "store a directory, one capsule per file")
	return cmd
}

func (a *app) putFile(ctx context.Context, path string, req store.PutRequest) error {
	file := a.stdin
	if path != "-" {
		var err error
		if file, err = os.Open(path); err != nil {
			return transfer.FileError(err, "put")
		}
		defer file.Close()
	}
	var info capsule.Info
	start := time.Now()
	err := a.with(ctx, func(api node.Conn) (err error) {
		total := req.Size
		if st, err := file.Stat(); err == nil && total < 0 && st.Mode().IsRegular() && st.Size() > 0 {
			total = st.Size()
		}
		var progress transfer.Progress
		bar := a.newBar("put "+path, total)
		bar.follow(&progress)
		info, err = transfer.PutFile(ctx, api, req, file, &progress)
		bar.finish()
		return err
	}, "put %s", show(path))
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(info)
	}
	a.printf("%s\n", info.ID)
	a.fact("%s in %s (%s)", size(info.Size), time.Since(start).Round(time.Millisecond), rate(info.Size, time.Since(start)))
	return nil
}

func (a *app) putDir(ctx context.Context, dir string, req store.PutRequest) (err error) {
	prefix := req.Name
	if prefix == "" {
		if prefix, err = transfer.DefaultPrefix(dir); err != nil {
			return err
		}
	}
	var (
		progress transfer.Progress
		failed   failures
		list     *jsonList
		stored   int64
		skipped  = []string{}
		start    = time.Now()
	)
	if a.json() {
		list = a.newJSONList("capsules")
	}
	if os.Getenv("GOMAXPROCS") == "" {
		// Opening and reading small files are short stays in the kernel, during
		// which the scheduler keeps a processor's place for them: with one place
		// more, no core is idle meanwhile.
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
	err = a.with(ctx, func(api node.Conn) error {
		bar := a.newBar("put -r "+dir, -1)
		bar.follow(&progress)
		defer bar.finish()
		return transfer.PutDir(ctx, api, dir, prefix, req.Policy, &progress, func(o transfer.Outcome) error {
			switch {
			case o.Err != nil:
				failed.add(a, "put", o.Path, o.Err)
				return fatal(o.Err)
			case o.Skipped != "":
				skipped = append(skipped, o.Path)
				a.note("put %s: skipped: %s", oneLine(o.Path), o.Skipped)
				return nil
			case a.json():
				stored++
				return list.add(o.Info)
			}
			stored++
			_, err := io.WriteString(a.stdout, o.Info.ID.String()+"  "+o.Info.Name+"\n")
			return err
		})
	}, "put -r %s", show(dir))
	if a.json() {
		if err := list.end(map[string]any{"skipped": skipped, "failed": failed.list()}); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	a.fact("%s, %s in %s (%s)", count(stored, "file", "files"), size(progress.Bytes.Load()),
		time.Since(start).Round(time.Millisecond), rate(progress.Bytes.Load(), time.Since(start)))
	return failed.err("put -r %s: %d of %d files were not stored", show(dir), failed.count(), stored+failed.count())
}

// fatal returns err if going on makes no sense after it.
func fatal(err error) error {
	switch capsule.KindOf(err) {
	case capsule.NoSpace, capsule.Unavailable, capsule.Canceled, capsule.Locked, capsule.WrongKey:
		return err
	}
	return nil
}

// failures are the errors of the single files of a tree.
type failures struct {
	n     int64
	first error
	items []failure
}

type failure struct {
	Path  string `json:"path"`
	Kind  string `json:"kind"`
	Error string `json:"error"`
}

// maxFailures bounds what a JSON result lists.
const maxFailures = 10000

func (f *failures) add(a *app, verb, path string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	if f.n++; f.first == nil {
		f.first = err
	}
	if !a.json() {
		a.note("%s %s: %v", verb, oneLine(path), err)
	} else if len(f.items) < maxFailures {
		f.items = append(f.items, failure{path, capsule.KindOf(err).String(), err.Error()})
	}
}

func (f *failures) count() int64 { return f.n }

func (f *failures) list() []failure {
	if f.items == nil {
		return []failure{}
	}
	return f.items
}

// err is nil if nothing failed, else an error of the first failure's kind.
func (f *failures) err(format string, args ...any) error {
	if f.n == 0 {
		return nil
	}
	return capsule.Errorf(capsule.KindOf(f.first), format, args...)
}
