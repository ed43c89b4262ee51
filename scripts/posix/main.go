// Command posix asks a file system some thousand questions about what POSIX and
// Linux say of files, and prints an answer to each. Two file systems that behave
// alike print the same:
//
//	go run ./scripts/posix -dir MOUNT/x > a
//	go run ./scripts/posix -dir /var/tmp/x > b
//	diff a b
//
// The questions are in the files beside this one, section by section, in words
// of the package's own: each line is a call (see calls), as the user that stands
// before it, and its answer is the name of the error or what the call returned.
// Every section has an empty directory of its own. The program has to be root.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func init() { runtime.LockOSThread() } // users are the thread's

func main() {
	log.SetFlags(0)
	dir := flag.String("dir", "", "a directory of the file system; it is made, and emptied in the end")
	only := flag.String("run", "", "a regular expression: only the sections whose names match")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if *dir == "" || err != nil || os.Geteuid() != 0 {
		log.Fatal("usage, as root: posix -dir DIR [-run SECTIONS]")
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for _, s := range sections {
		if !match.MatchString(s.name) {
			continue
		}
		if err := s.run(out, *dir); err != nil {
			out.Flush()
			log.Fatalf("%s: %v", s.name, err)
		}
	}
}

// section is a part of the questions.
type section struct {
	name   string
	script string // a group of calls with an empty directory to itself is set off by empty lines
}

func (s section) run(out *bufio.Writer, dir string) error {
	for i, group := range expand(s.script) {
		fmt.Fprintf(out, "# %s %d\n", s.name, i)
		w := &world{out: out, dir: dir, files: map[string]int{}}
		if err := w.begin(); err != nil {
			return err
		}
		for _, line := range group {
			w.do(line)
		}
		if err := w.end(); err != nil {
			return err
		}
	}
	return nil
}

// expand makes groups of lines out of a script. A word {a,b,c} stands for each
// of its parts in turn: the group is repeated with it, for all such words; the
// same word has the same part everywhere.
func expand(script string) [][]string {
	var groups [][]string
	for _, g := range strings.Split(strings.TrimSpace(script), "\n\n") {
		for _, one := range choices(g) {
			groups = append(groups, strings.Split(one, "\n"))
		}
	}
	return groups
}

var choice = regexp.MustCompile(`\{[^{}]*\}`)

func choices(g string) []string {
	word := choice.FindString(g)
	if word == "" {
		return []string{g}
	}
	var all []string
	for _, part := range strings.Split(word[1:len(word)-1], ",") {
		all = append(all, choices(strings.ReplaceAll(g, word, part))...)
	}
	return all
}

// world is where a group of calls takes place.
type world struct {
	out   *bufio.Writer
	dir   string
	files map[string]int // open ones
}

func (w *world) begin() error {
	unix.Umask(0)
	if err := os.RemoveAll(w.dir); err != nil {
		return err
	}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(w.dir, 0o777); err != nil {
		return err
	}
	return os.Chdir(w.dir)
}

func (w *world) end() error {
	for _, fd := range w.files {
		unix.Close(fd)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return os.RemoveAll(w.dir)
}

// do makes the call of a line and prints its answer. "moves PATH" before it asks
// which times of that file it changes, "as USER:GROUP:GROUP..." says who makes it.
func (w *world) do(line string) {
	words, watched, user := strings.Fields(line), "", []int{0, 0}
	if words[0] == "moves" {
		watched, words = words[1], words[2:]
	}
	if words[0] == "as" {
		user, words = numbers(words[1]), words[2:]
	}
	before := w.look(watched)
	if watched != "" {
		tick(w.dir, before)
	}
	become(user)
	answer := w.call(words)
	become([]int{0, 0})
	fmt.Fprintf(w.out, "%s = %s", line, answer)
	if after := w.look(watched); after.Mtim != before.Mtim || after.Ctim != before.Ctim {
		fmt.Fprintf(w.out, ", mtime moved %t, ctime moved %t", after.Mtim != before.Mtim, after.Ctim != before.Ctim)
	}
	fmt.Fprintln(w.out)
}

func (w *world) call(words []string) string {
	fn, ok := calls[words[0]]
	if !ok || len(words)-1 < fn.args {
		log.Fatalf("no such call: %q", words)
	}
	args := make([]string, len(words)-1)
	for i, a := range words[1:] {
		args[i] = spell(a)
	}
	answer, err := fn.do(w, args)
	switch {
	case err != nil:
		return name(err)
	case answer == "":
		return "0"
	}
	return answer
}

// look is what a path or an open file has for attributes.
func (w *world) look(path string) (st unix.Stat_t) {
	if fd, ok := w.files[path]; ok {
		_ = unix.Fstat(fd, &st)
	} else if path != "" {
		_ = unix.Lstat(spell(path), &st)
	}
	return st
}

// tick waits until a change gets a later time than a file has.
func tick(dir string, than unix.Stat_t) {
	path := filepath.Join(filepath.Dir(dir), ".tick")
	defer os.Remove(path)
	for {
		_ = os.Remove(path)
		f, err := os.Create(path)
		if err != nil {
			log.Fatal(err)
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		f.Close()
		if err != nil || st.Ctim.Nano() > max(than.Ctim.Nano(), than.Mtim.Nano()) || than.Mtim.Sec > st.Ctim.Sec {
			return
		}
	}
}

// become has the thread act as a user, with a group and more groups.
func become(ids []int) {
	must := func(trap uintptr, a ...uintptr) {
		if _, _, e := unix.RawSyscall(trap, a[0], a[1], a[2]); e != 0 {
			log.Fatal("change the user: ", e)
		}
	}
	root := ^uintptr(0)
	must(unix.SYS_SETRESUID, root, 0, 0)
	groups := append([]int{}, ids[2:]...)
	if err := setgroups(groups); err != 0 {
		log.Fatal("change the groups: ", err)
	}
	must(unix.SYS_SETRESGID, uintptr(ids[1]), uintptr(ids[1]), 0)
	if ids[0] != 0 {
		must(unix.SYS_SETRESUID, uintptr(ids[0]), uintptr(ids[0]), 0)
	} else {
		must(unix.SYS_SETRESUID, 0, 0, 0)
	}
}

// numbers are the parts of 1:2:3, the second one the first where it is missing.
func numbers(s string) (all []int) {
	for _, part := range strings.Split(s, ":") {
		all = append(all, int(number(part)))
	}
	if len(all) == 1 {
		all = append(all, all[0])
	}
	return all
}

// number reads 0644, 0x10, -1, 5k, or names joined by |.
func number(s string) int64 {
	var n int64
	for _, part := range strings.Split(s, "|") {
		if v, ok := constants[part]; ok {
			n |= v
			continue
		}
		digits := strings.TrimSuffix(part, "k")
		v, err := strconv.ParseInt(digits, 0, 64)
		if err != nil {
			log.Fatalf("no number: %s", s)
		}
		if digits != part {
			v <<= 10
		}
		n |= v
	}
	return n
}

// spell spells out long names: @255 is a name of so many bytes, and x/@@4095 a
// path of so many that leads to x.
func spell(s string) string {
	if path, size, ok := strings.Cut(s, "/@@"); ok {
		n := int(number(size)) - len(path)
		return strings.Repeat("./", n/2) + strings.Repeat("/", n%2) + path
	}
	dir, size, ok := strings.Cut(s, "@")
	if !ok {
		return strings.ReplaceAll(s, "EMPTY", "")
	}
	return dir + strings.Repeat("n", int(number(size)))
}

func name(err error) string {
	if e, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(e)
	}
	return err.Error()
}
