package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	allow := []excuse{{says: "no FUSE", why: "no device", ok: true}, {says: "takes root", why: "not root", ok: false}}
	const (
		passA  = `{"Action":"run","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
		passP  = `{"Action":"pass","Package":"p","Elapsed":1.5}` + "\n"
		fuse   = `{"Action":"output","Package":"p","Test":"TestF","Output":"    f_test.go:3: no FUSE: really\n"}` + "\n" + `{"Action":"skip","Package":"p","Test":"TestF"}` + "\n"
		root   = `{"Action":"output","Package":"p","Test":"TestR","Output":"    f_test.go:3: takes root\n"}` + "\n" + `{"Action":"skip","Package":"p","Test":"TestR"}` + "\n"
		failB  = `{"Action":"run","Package":"q","Test":"TestB"}` + "\n" + `{"Action":"output","Package":"q","Test":"TestB","Output":"    b_test.go:7: boom\n"}` + "\n" + `{"Action":"fail","Package":"q","Test":"TestB"}` + "\n" + `{"Action":"fail","Package":"q","Elapsed":2}` + "\n"
		build  = `{"Action":"build-output","ImportPath":"q [q.test]","Output":"q.go:1: syntax error\n"}` + "\n" + `{"Action":"build-fail","ImportPath":"q [q.test]"}` + "\n" + `{"Action":"fail","Package":"q","FailedBuild":"q [q.test]"}` + "\n"
		died   = `{"Action":"run","Package":"q","Test":"TestD"}` + "\n" + `{"Action":"output","Package":"q","Test":"TestD","Output":"panic: oh\n"}` + "\n" + `{"Action":"fail","Package":"q"}` + "\n"
		notest = `{"Action":"output","Package":"n","Output":"?   \tn\t[no test files]\n"}` + "\n" + `{"Action":"skip","Package":"n"}` + "\n"
	)
	for _, c := range []struct {
		name, in string
		ok       bool
		want     []string
	}{
		{"all pass", passA + passP + notest, true, []string{"ok  \tp\t1.500s\n", "?   \tn\t[no test files]", "1 passed, 0 failed, 0 skipped\n"}},
		{"excused", passA + fuse + passP, true, []string{"skipped p TestF: no FUSE: really (no device)", "1 passed, 0 failed, 1 skipped\n"}},
		{"not excused", passA + root + passP, false, []string{"skipped p TestR: takes root (NOT ALLOWED", "1 passed, 0 failed, 1 skipped\n"}},
		{"failure", passA + passP + failB, false, []string{"b_test.go:7: boom", "FAIL\tq", "1 passed, 1 failed, 0 skipped\n"}},
		{"does not build", passA + passP + build, false, []string{"q.go:1: syntax error", "FAIL\tq", "1 passed, 1 failed, 0 skipped\n"}},
		{"process died", passA + passP + died, false, []string{"panic: oh", "1 passed, 1 failed, 0 skipped\n"}},
		{"nothing ran", "", false, []string{"no test passed", "0 passed, 0 failed, 0 skipped\n"}},
		{"other output", "go: downloading x\n" + passA + passP, true, []string{"go: downloading x\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			if ok := report(strings.NewReader(c.in), &out, allow); ok != c.ok {
				t.Errorf("report says %v, want %v", ok, c.ok)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the report lacks %q:\n%s", want, &out)
				}
			}
		})
	}
}
