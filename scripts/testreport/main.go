// Testreport reads what `go test -json` prints and prints it for people: a
// line for each package, the whole output of what failed, what was skipped and
// why, and the sums. It fails if a test failed, if none ran, and if one was
// skipped that this machine could have run.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	if !report(os.Stdin, os.Stdout, excuses()) {
		os.Exit(1)
	}
}

// event is a line of `go test -json`, see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

type testID struct{ pkg, test string }

// skip is a test that did not run.
type skip struct {
	testID
	why string
}

type reporter struct {
	out     io.Writer
	output  map[testID][]string // of tests that have not passed
	builds  map[string][]string // output of the compiler, by import path
	started map[testID]bool
	skipped []skip
	passed  int
	failed  int
}

// report returns whether all is well.
func report(in io.Reader, out io.Writer, excuses []excuse) bool {
	r := &reporter{out: out, output: map[testID][]string{}, builds: map[string][]string{}, started: map[testID]bool{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(out, lines.Text()) // not from go test
			continue
		}
		r.take(e)
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintf(out, "testreport: %v\n", err)
		return false
	}
	return r.sum(excuses)
}

func (r *reporter) take(e event) {
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		r.builds[e.ImportPath] = append(r.builds[e.ImportPath], e.Output)
	case "run":
		r.started[id] = true
	case "output":
		r.output[id] = append(r.output[id], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(e)
		}
	}
}

func (r *reporter) endTest(e event) {
	id := testID{e.Package, e.Test}
	delete(r.started, id)
	switch e.Action {
	case "pass":
		r.passed++
		delete(r.output, id)
	case "skip":
		r.skipped = append(r.skipped, skip{id, reason(r.output[id])})
		delete(r.output, id)
	case "fail":
		r.failed++
	}
}

func (r *reporter) endPackage(e event) {
	self := testID{e.Package, ""}
	if e.Action != "fail" {
		status := fmt.Sprintf("ok  \t%s\t%.3fs", e.Package, e.Elapsed)
		if e.Action == "skip" {
			status = fmt.Sprintf("?   \t%s\t[no test files]", e.Package)
		}
		fmt.Fprintln(r.out, status)
		delete(r.output, self)
		return
	}
	for _, line := range r.builds[e.FailedBuild] {
		fmt.Fprint(r.out, line)
	}
	// What failed, and what was running when the process died.
	named := false
	for _, id := range sortedKeys(r.output) {
		if id.pkg != e.Package || id.test == "" {
			continue
		}
		if r.started[id] {
			r.failed++
		}
		named = true
		for _, line := range r.output[id] {
			fmt.Fprint(r.out, line)
		}
		delete(r.output, id)
	}
	if !named {
		r.failed++ // it did not come as far as a test
	}
	for _, line := range r.output[self] {
		if !strings.HasPrefix(line, "FAIL") { // the line below says it
			fmt.Fprint(r.out, line)
		}
	}
	delete(r.output, self)
	fmt.Fprintf(r.out, "FAIL\t%s\t%.3fs\n", e.Package, e.Elapsed)
}

func sortedKeys(m map[testID][]string) []testID {
	var ids []testID
	for id := range m {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b testID) int { return strings.Compare(a.pkg+"\x00"+a.test, b.pkg+"\x00"+b.test) })
	return ids
}

// reason is what a skipped test said, without the frame around it.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			if _, text, ok := strings.Cut(line, ".go:"); ok {
				if _, after, ok := strings.Cut(text, ": "); ok {
					line = after
				}
			}
			said = append(said, line)
		}
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, "; ")
}

// sum prints the end of the report.
func (r *reporter) sum(excuses []excuse) bool {
	wrong := 0
	for _, s := range r.skipped {
		why := excused(excuses, s)
		if why == "" {
			why = "NOT ALLOWED: this machine can run it"
			wrong++
		}
		fmt.Fprintf(r.out, "skipped %s %s: %s (%s)\n", s.pkg, s.test, s.why, why)
	}
	if wrong > 0 {
		fmt.Fprintf(r.out, "%d tests were skipped that must run here; scripts/testreport/excuses.go has the rules\n", wrong)
	}
	if r.passed == 0 {
		fmt.Fprintln(r.out, "no test passed: was there any?")
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skipped))
	return r.failed == 0 && wrong == 0 && r.passed > 0
}
