package seed

import "testing"

func TestChoose(t *testing.T) {
	a, err := choose("", "TestA")
	b, err2 := choose("", "TestA")
	c, err3 := choose("", "TestC")
	if err != nil || err2 != nil || err3 != nil || a != b || a == c {
		t.Errorf("a test's choices are %d, then %d; another one's %d", a, b, c)
	}
	if n, err := choose("12", "TestA"); err != nil || n != 12 {
		t.Errorf("TEST_SEED=12 gives %d, %v", n, err)
	}
	if _, err := choose("x", "TestA"); err == nil {
		t.Error("TEST_SEED=x is taken")
	}
	first, _ := choose("random", "TestA")
	second, _ := choose("random", "TestA")
	if first == second {
		t.Error("TEST_SEED=random chooses the same twice")
	}
}
