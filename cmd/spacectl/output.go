package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/node"
)

// output is standard output, buffered; its failures can be told from others.
type output struct {
	f *os.File
	w *bufio.Writer
}

// outputError is a failed write to standard output.
type outputError struct{ err error }

func (e outputError) Error() string { return "standard output: " + e.err.Error() }
func (e outputError) Unwrap() error { return e.err }

func newOutput(f *os.File) *output { return &output{f, bufio.NewWriterSize(f, 64<<10)} }

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		err = outputError{err}
	}
	return n, err
}

func (o *output) Flush() error {
	if err := o.w.Flush(); err != nil {
		return capsule.Wrap(capsule.IO, outputError{err}, "")
	}
	return nil
}

func (o *output) terminal() bool { return isTerminal(o.f) }

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func (a *app) json() bool { return a.format == "json" }

// printf prints to standard output. A failure shows at the flush.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.stdout, format, args...) }

// note tells the user something that is no result.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.stderr, "spacectl: %s\n", printable(fmt.Sprintf(format, args...)))
}

// fact is note for what is nice to know: for people, not for scripts.
func (a *app) fact(format string, args ...any) {
	if isTerminal(a.stderr) && !a.json() {
		a.stdout.Flush() // the result comes first; a failure shows at the last flush too
		fmt.Fprintf(a.stderr, "%s\n", printable(fmt.Sprintf(format, args...)))
	}
}

// printJSON prints one value as indented JSON.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printJSONLine prints one value as JSON on a line of its own.
func (a *app) printJSONLine(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (a *app) printJSONError(err error, code int) {
	e := json.NewEncoder(a.stderr)
	e.SetEscapeHTML(false)
	var v struct {
		Error struct {
			Kind     string `json:"kind"`
			Message  string `json:"message"`
			ExitCode int    `json:"exit_code"`
		} `json:"error"`
	}
	v.Error.Kind, v.Error.Message, v.Error.ExitCode = capsule.KindOf(err).String(), err.Error(), code
	e.Encode(v)
}

// jsonList prints {"KEY": [item, …], …} item by item, however many there are.
type jsonList struct {
	w     io.Writer
	first bool
}

func (a *app) newJSONList(key string) *jsonList {
	fmt.Fprintf(a.stdout, "{\n  %q: [", key)
	return &jsonList{a.stdout, true}
}

func (l *jsonList) add(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	sep := ","
	if l.first {
		sep, l.first = "", false
	}
	_, err = fmt.Fprintf(l.w, "%s\n    %s", sep, text)
	return err
}

// end closes the list and adds more members to the object.
func (l *jsonList) end(more map[string]any) error {
	end := "\n  ]"
	if l.first {
		end = "]"
	}
	if _, err := io.WriteString(l.w, end); err != nil {
		return err
	}
	for _, key := range sortedKeys(more) {
		text, err := json.Marshal(more[key])
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(l.w, ",\n  %q: %s", key, text); err != nil {
			return err
		}
	}
	_, err := io.WriteString(l.w, "\n}\n")
	return err
}

// fields prints name-value lines, aligned.
func (a *app) fields(pairs ...string) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	for i := 0; i < len(pairs); i += 2 {
		a.printf("%-*s  %s\n", width, pairs[i], printable(pairs[i+1]))
	}
}

// printable escapes what a terminal would act on instead of showing it.
func printable(s string) string {
	bad := func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\t' || r == unicode.ReplacementChar
	}
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		if !bad(r) {
			b.WriteRune(r)
			continue
		}
		n := len(string(r))
		if r == unicode.ReplacementChar && !strings.HasPrefix(s[i:], string(unicode.ReplacementChar)) {
			n = 1 // a byte that is not UTF-8
		}
		q := strconv.QuoteToASCII(s[i : i+n])
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

// oneLine is printable for what stands on a line with other things: names of
// files can have line breaks.
func oneLine(s string) string {
	return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(printable(s))
}

// size formats a number of bytes for people: three digits or so.
func size(n int64) string {
	if n < 1000 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB", "PB", "EB"} {
		f /= 1000
		if f < 999.5 || unit == "EB" {
			switch {
			case f < 9.995:
				return fmt.Sprintf("%.2f %s", f, unit)
			case f < 99.95:
				return fmt.Sprintf("%.1f %s", f, unit)
			}
			return fmt.Sprintf("%.0f %s", f, unit)
		}
	}
	panic("unreachable")
}

// parseSize reads the number of bytes that a flag was given.
func parseSize(flag, text string) (int64, error) {
	n, err := node.ParseSize(text)
	if err != nil {
		return 0, capsule.Errorf(capsule.Invalid, "%s %.32q is not valid; want %v", flag, text, err)
	}
	return n, nil
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatInt(n, 10) + " " + many
}

// rate is bytes per second for people.
func rate(n int64, d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return size(int64(float64(n)/d.Seconds())) + "/s"
}
