package main

import (
	"testing"

	"github.com/spacestore/space/capsule"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü 漢":         "plain ü 漢",
		"a\x1b[2Jb":         `a\x1b[2Jb`,
		"a\u009bb":          `a\u009bb`,
		"a\xffb":            `a\xffb`,
		"a\rb":              `a\rb`,
		"two\nlines\tand":   "two\nlines\tand",
		"replacement �here": `replacement \ufffdhere`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine("two\nlines\tand\x1b"); got != `two\nlines\tand\x1b` {
		t.Errorf("%q", got)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 9_996: "10.0 kB", 123_456: "123 kB",
		999_600: "1.00 MB", 1<<63 - 1: "9.22 EB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestEveryKindHasAnExitCode(t *testing.T) {
	seen := map[int]capsule.ErrorKind{}
	for kind := capsule.Other; kind <= capsule.IO; kind++ {
		code := exitCode(&capsule.Error{Kind: kind})
		if other, dup := seen[code]; dup || code == 0 {
			t.Errorf("%v has the exit code %d, as has %v", kind, code, other)
		}
		seen[code] = kind
	}
	if exitCode(&capsule.Error{Kind: 200}) != 1 {
		t.Error("a kind from the future has no exit code")
	}
}
