package files

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
)

// asked is a mirror that tells when it is asked.
type asked struct {
	at    time.Time
	waits bool // gives no answer
}

func (a *asked) Open(ctx context.Context, _ frame.Class, _ []byte) (fabric.Stream, error) {
	if a.at.IsZero() {
		a.at = time.Now()
	}
	if a.waits {
		<-ctx.Done()
	}
	return nil, errors.New("no answer")
}

// TestManifestInOrderOfTrust: one that is slow to say what it shares is waited for, if
// others are trusted less.
func TestManifestInOrderOfTrust(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			first, second := &asked{waits: true}, &asked{}
			err := Receive(t.Context(), ReceiveOptions{Target: filepath.Join(dir, "it"), Mirrors: []Mirror{{first, "first"}, {second, "second"}}, Trusted: trusted})
			if !errors.Is(err, bulk.ErrNoMirror) || second.at.IsZero() {
				t.Fatal(err)
			}
			if after := second.at.Sub(start); trusted != (after > 30*time.Second) {
				t.Errorf("trusted %v: the second one was asked after %s", trusted, after)
			}
		})
	}
}
