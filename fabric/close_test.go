package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// closers returns both ends of a new tunnel between a and b.
func closers(t *testing.T, w *world) (a, b *Node, near, there *Tunnel) {
	t.Helper()
	a, b = w.node(t, "seed", "one"), w.node(t, "b", "one")
	p, err := b.Provide(Service{Profile: testProfile, Pool: "pool", Kind: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	near = w.open(t, a, testProfile, "pool")
	if there, err = p.Accept(context.Background()); err != nil {
		t.Fatal(err)
	}
	return a, b, near, there
}

// What was opened and written before a tunnel is closed arrives, from both ends,
// although the word of the end is of a class above it.
func TestCloseIsAfterWhatWasOpened(t *testing.T) {
	simulate(t, func(t *testing.T, w *world) {
		a, b, near, there := closers(t, w)
		for i, ends := range [][2]*Tunnel{{near, there}, {there, near}} {
			if i > 0 {
				near = w.open(t, a, testProfile, "pool")
				p := b.service(serviceKey{"pool", "echo", ""})
				var err error
				if there, err = p.Accept(context.Background()); err != nil {
					t.Fatal(err)
				}
				ends = [2]*Tunnel{there, near}
			}
			const streams = 50
			for k := range streams {
				class := []frame.Class{frame.Bulk, frame.Interactive}[k%2]
				st, err := ends[0].Open(context.Background(), class, []byte{byte(k)})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := st.Write(payload(uint64(k), 20_000)); err != nil {
					t.Fatal(err)
				}
				st.Close()
			}
			ends[0].Close()
			came := 0
			soon(t, "the other end's end", 2*time.Second, func() {
				for {
					st, err := ends[1].Accept(context.Background())
					if err != nil {
						if !errors.Is(err, errPeerClosed) {
							t.Errorf("the tunnel has ended with %v", err)
						}
						break
					}
					got, err := io.ReadAll(st)
					if want := payload(uint64(st.Header()[0]), 20_000); err != nil || string(got) != string(want) {
						t.Errorf("stream %d: %d bytes of %d, %v", st.Header()[0], len(got), len(want), err)
					}
					st.Close()
					came++
				}
			})
			if came != streams {
				t.Errorf("%d of %d streams have come", came, streams)
			}
			if na, nb := len(a.Tunnels()), len(b.Tunnels()); na+nb > 0 {
				t.Errorf("%d and %d tunnels are left", na, nb)
			}
		}
	})
}

// An end that is left opens nothing more, and does not wait for ever for streams
// that it was told of: until nothing has come for a while, or the session ends.
// One that comes back from another node is not left any more.
func TestCloseBeforeStreamsThatDoNotCome(t *testing.T) {
	for _, how := range []string{"none comes", "one comes late", "the session ends", "it is back"} {
		simulate(t, func(t *testing.T, w *world) {
			a, b, near, there := closers(t, w)
			r := b.known(a.ID()).live()
			b.closedByPeer(r, sided(near.ID(), true), 1, 3)
			began := time.Now()
			if _, err := there.Open(context.Background(), frame.Bulk, nil); !errors.Is(err, errPeerClosed) {
				t.Errorf("a stream that the other end can't take: %v", err)
			}
			if there.Err() != nil {
				t.Error("the tunnel has ended before what was opened in it")
			}
			want := closeTime
			switch how {
			case "one comes late":
				time.Sleep(closeTime / 2)
				st, err := near.Open(context.Background(), frame.Bulk, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer st.Close()
				if _, err := there.Accept(context.Background()); err != nil {
					t.Errorf("a stream of before the end: %v", err)
				}
				want = closeTime + closeTime/2
			case "the session ends":
				r.s.Close()
				want = 0
			case "it is back":
				there.use(r, 2, "")
				time.Sleep(2 * closeTime)
				if err := there.Err(); err != nil {
					t.Errorf("the tunnel has ended although its opener is back: %v", err)
				}
				for k := range 4 { // three of before, and then one
					if k == 2 {
						b.closedByPeer(r, sided(near.ID(), true), 2, 1)
					}
					st, err := near.Open(context.Background(), frame.Bulk, nil)
					if err != nil {
						t.Fatal(err)
					}
					defer st.Close()
					if _, err := there.Accept(context.Background()); err != nil {
						t.Errorf("stream %d, of before the end: %v", k, err)
					}
				}
				if !errors.Is(there.Err(), errPeerClosed) {
					t.Errorf("the tunnel has ended with %v", there.Err())
				}
				return
			}
			<-there.Done()
			if !errors.Is(there.Err(), errPeerClosed) {
				t.Errorf("the tunnel has ended with %v", there.Err())
			}
			if d := time.Since(began); d < want || d > want+time.Second {
				t.Errorf("%s: the tunnel has ended after %v", how, d)
			}
		})
	}
}

// Nodes that do not say how many streams they have opened are taken at their word
// at once, and understand those that do.
func TestCloseOfOlderNodes(t *testing.T) {
	type tunnel struct{ gen, streams uint64 }
	read := func(s string) (all []tunnel) {
		var b closeBody
		if err := json.Unmarshal([]byte(s), &b); err != nil {
			t.Fatal(err)
		}
		b.each(func(_ TunnelID, gen, streams uint64) { all = append(all, tunnel{gen, streams}) })
		return all
	}
	b, err := json.Marshal(closeBody{Tunnels: []TunnelID{{1}, {2}}, Generations: []uint64{3, 4}})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(string(b)); len(got) != 2 || got[1] != (tunnel{4, 0}) {
		t.Errorf("%+v", got)
	}
	if b, err = json.Marshal(closeBody{Tunnels: []TunnelID{{1}, {2}}, Generations: []uint64{3, 4}, Streams: []uint64{5, 6}}); err != nil {
		t.Fatal(err)
	}
	var old struct {
		Tunnels     []TunnelID `json:"tunnels"`
		Generations []uint64   `json:"generations,omitempty"`
	}
	if err := json.Unmarshal(b, &old); err != nil || len(old.Tunnels) != 2 || old.Generations[1] != 4 {
		t.Errorf("an older node reads %+v, %v", old, err)
	}
	if got := read(string(b)); len(got) != 2 || got[1] != (tunnel{4, 6}) {
		t.Errorf("%+v", got)
	}

	simulate(t, func(t *testing.T, w *world) {
		a, b, near, there := closers(t, w)
		b.closedByPeer(b.known(a.ID()).live(), sided(near.ID(), true), 1, 0)
		select {
		case <-there.Done():
		default:
			t.Error("the tunnel waits, and nobody has said for what")
		}
	})
}
