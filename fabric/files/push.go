package files

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spacestore/space/fabric"
	"github.com/spacestore/space/fabric/bulk"
	"github.com/spacestore/space/fabric/frame"
	"github.com/spacestore/space/fabric/identity"
)

// A push is a Receive that the giver has asked for. The giver opens a stream in a tunnel
// to the receiver and says what it has, which is all that it can say: whether that is
// wanted, and where it goes, is the receiver's to decide. Then the receiver fetches it as
// anything else, by streams that it opens in the same tunnel, and tells how far it is.

// forOffer is what a push's stream is for. Its version follows, then words, both ways:
// a length (u16) and JSON.
const forOffer = 'o'

const offerVersion = 1

// maxWord bounds a word in bytes, maxText what an error in it says.
const (
	maxWord = 4 << 10
	maxText = 1 << 10
)

// word is what one end of a push says to the other; what is set of it.
type word struct {
	Offer    *offered   `json:"offer,omitempty"` // the giver's first
	Change   *Change    `json:"change,omitempty"`
	Progress *pushed    `json:"progress,omitempty"` // the receiver's; the first says that it is wanted
	Failed   *PushError `json:"failed,omitempty"`
}

type offered struct {
	Name  string `json:"name"`
	Size  int64  `json:"bytes"`
	Files int64  `json:"files"`
	Begin Change `json:"begin"` // as which it shall begin
}

// pushed is how far a push is, and with what settings.
type pushed struct {
	Size    int64 `json:"total_bytes"`
	Done    int64 `json:"bytes"`
	Resumed int64 `json:"resumed_bytes"`
	Settings
}

// PushError is why a receiver does not take what it was offered.
type PushError struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

func (e *PushError) Error() string { return "files: the receiver says: " + e.Text }

// Is reports whether the receiver's reason is one of those that callers tell apart.
func (e *PushError) Is(target error) bool { return pushCodes[e.Code] == target && target != nil }

// ErrUnwanted: the receiver takes nothing like that from this node.
var ErrUnwanted = errors.New("files: the receiver does not want it")

// ErrName: what is offered has a name that nothing may have here.
var ErrName = errors.New("files: no file may be made of that name")

// ErrTurn: the receiver takes as much at a time as it does; another time it may take it.
var ErrTurn = errors.New("files: as much as may be is being received already")

// pushCodes are reasons as they are told.
var pushCodes = map[string]error{"unwanted": ErrUnwanted, "name": ErrName, "exists": ErrExists, "busy": ErrBusy, "turn": ErrTurn, "full": bulk.ErrFull, "canceled": context.Canceled,
	"manifest": ErrManifest, "denied": fs.ErrPermission}

// sayTime is how long the other end may take to make room for a word, endTime for the last.
const (
	sayTime = time.Minute
	endTime = 10 * time.Second
)

// words is a push's stream.
type words struct {
	st fabric.Stream
	r  *bufio.Reader
	mu sync.Mutex // of what is said
}

func newWords(st fabric.Stream) *words { return &words{st: st, r: bufio.NewReaderSize(st, maxWord)} }

func (w *words) say(what word, within time.Duration) error {
	b, err := json.Marshal(what)
	if err != nil || len(b) > maxWord {
		return fmt.Errorf("files: a word of %d bytes: %w", len(b), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.st.SetWriteDeadline(time.Now().Add(within))
	_, err = w.st.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func (w *words) hear() (what word, err error) {
	var n [2]byte
	if _, err := io.ReadFull(w.r, n[:]); err != nil {
		return what, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	if len(b) > maxWord {
		return what, fmt.Errorf("files: a word of %d bytes", len(b))
	}
	if _, err := io.ReadFull(w.r, b); err != nil {
		return what, err
	}
	if err := json.Unmarshal(b, &what); err != nil {
		return what, fmt.Errorf("files: a word that is none: %w", err)
	}
	return what, nil
}

// Tunnel is an end of a tunnel, as a push needs it.
type Tunnel interface {
	fabric.Opener
	Taker
}

// PushOptions are for Push.
type PushOptions struct {
	Name    string        // of what is offered
	Begin   Change        // as which it shall begin
	Changes <-chan Change // while it goes on; nil: none
	// Progress is called now and then; the first time says that the receiver wants it.
	Progress func(Progress, Settings)
}

// ErrCut: the receiver was lost. Another Push of the same goes on.
var ErrCut = errors.New("files: the receiver can't be reached any more")

// Push offers a share to the node at the other end of a tunnel, serves it, and returns
// when that node has all of it. The error is a *PushError if it does not take it, or
// ErrCut.
func (s *Share) Push(ctx context.Context, t Tunnel, o PushOptions) error {
	if !utf8.ValidString(o.Name) { // a word would have another one
		return fmt.Errorf("%w: %.64q is no UTF-8", ErrName, o.Name)
	}
	ctx, cancel := context.WithCancel(ctx)
	whole, forget := s.expect(t.Peer())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	defer forget()
	st, err := t.Open(ctx, frame.Interactive, []byte{forOffer, offerVersion})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCut, err)
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	running.Go(func() {
		s.Serve(ctx, t) // its end is the tunnel's, or ctx's
		cancel()
	})
	w := newWords(st)
	size, files, _ := s.Size()
	if err := w.say(word{Offer: &offered{o.Name, size, files, o.Begin}}, sayTime); err != nil {
		return fmt.Errorf("%w: %w", ErrCut, err)
	}
	running.Go(func() {
		for {
			select {
			case c := <-o.Changes:
				if w.say(word{Change: &c}, sayTime) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	failed := make(chan error, 1)
	running.Go(func() {
		for {
			what, err := w.hear()
			switch {
			case err != nil:
				failed <- fmt.Errorf("%w: %w", ErrCut, err)
				return
			case what.Failed != nil:
				what.Failed.Text = what.Failed.Text[:min(len(what.Failed.Text), maxText)]
				failed <- what.Failed
				return
			case what.Progress != nil && o.Progress != nil:
				p := what.Progress
				o.Progress(Progress{Bytes: bulk.Progress{Size: p.Size, Done: p.Done, Resumed: p.Resumed, Paused: p.Paused}, Files: files}, p.Settings)
			}
		}
	})
	select {
	case <-whole:
		return nil
	case err = <-failed:
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrCut, context.Cause(ctx))
	}
	select {
	case <-whole: // it has ended because of that
		return nil
	default:
		return err
	}
}

// expect returns a channel that is closed when a node says, and may, that it has all of
// the share.
func (s *Share) expect(node identity.NodeID) (whole <-chan struct{}, forget func()) {
	ch := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected[node] = append(s.expected[node], ch)
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.expected[node] = slices.DeleteFunc(s.expected[node], func(c chan struct{}) bool { return c == ch })
		if len(s.expected[node]) == 0 {
			delete(s.expected, node)
		}
	}
}

// Pushed is what another node offers.
type Pushed struct {
	From  identity.NodeID
	Name  string // one name, that can be made in a directory
	Size  int64  // as the giver says
	Files int64

	t     Tunnel
	w     *words
	begin Change
}

// changeEvery is how often a giver may change something.
const changeEvery = 50 * time.Millisecond

// offerTime bounds how long a giver may take to say what it offers.
const offerTime = 10 * time.Second

// NextPush returns the next thing that is offered through a tunnel. Call Refuse or
// Receive.
func NextPush(ctx context.Context, t Tunnel) (*Pushed, error) {
	for {
		st, err := t.Accept(ctx)
		if err != nil {
			return nil, err
		}
		if h := st.Header(); len(h) != 2 || h[0] != forOffer || h[1] != offerVersion {
			st.Reset(uint32(bulk.CodeNotFound), fmt.Sprintf("files are offered here, by version %d", offerVersion))
			continue
		}
		w := newWords(st)
		st.SetReadDeadline(time.Now().Add(offerTime))
		what, err := w.hear()
		if err != nil || what.Offer == nil {
			st.Close()
			continue
		}
		st.SetReadDeadline(time.Time{})
		p := &Pushed{From: t.Peer(), Name: what.Offer.Name, Size: what.Offer.Size, Files: what.Offer.Files, t: t, w: w, begin: what.Offer.Begin}
		if err := checkName(p.Name); err != nil {
			p.Refuse(err)
			continue
		}
		return p, nil
	}
}

// maxPushName leaves room for what the hidden directory's name has more.
const maxPushName = 255 - len("."+partSuffix)

// checkName checks that a name is one of a file in a directory, and none that a shell, a
// login, another transfer, or a command that gets it as an argument, would take for
// something else.
func checkName(name string) error {
	odd := func(r rune) bool { return r == '/' || unicode.IsControl(r) || r == unicode.ReplacementChar }
	if name == "" || len(name) > maxPushName || name[0] == '.' || name[0] == '-' || strings.ContainsFunc(name, odd) {
		return fmt.Errorf("%w: %.64q; it may not begin with a dot or dash, have a slash, control characters, what is no UTF-8, or more than %d bytes", ErrName, name, maxPushName)
	}
	return nil
}

// Refuse says why not.
func (p *Pushed) Refuse(why error) {
	p.fail(why, "")
	p.w.st.Close()
}

// fail tells why, without the directory that it would have been made in.
func (p *Pushed) fail(why error, dir string) {
	e := &PushError{Code: "failed", Text: why.Error()}
	for code, err := range pushCodes {
		if errors.Is(why, err) {
			e.Code = code
		}
	}
	if dir != "" {
		e.Text = strings.ReplaceAll(e.Text, dir+string(filepath.Separator), "")
	}
	e.Text = strings.ToValidUTF8(e.Text[:min(len(e.Text), maxText)], "?")
	p.w.st.SetWriteDeadline(time.Now().Add(endTime)) // of what is being said, too
	p.w.say(word{Failed: e}, endTime)                // it sees the end anyway
}

// Receive fetches it, from the giver alone. o has where to, and what else matters, but
// for mirrors.
func (p *Pushed) Receive(ctx context.Context, o ReceiveOptions) error {
	told := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	heard := make(chan struct{})
	defer func() { <-heard }()
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { p.w.st.Close() })
	defer stop()
	defer p.w.st.Close()
	unless := context.AfterFunc(told, func() { // the giver hears why
		p.fail(fmt.Errorf("%w at the receiver", context.Canceled), "")
		cancel(context.Cause(told))
	})
	defer unless()
	if o.Control == nil {
		o.Control = &Control{}
	}
	go func() {
		defer close(heard)
		for {
			what, err := p.w.hear()
			if err != nil {
				cancel(fmt.Errorf("files: the giver has gone: %w", err))
				return
			}
			if what.Change == nil {
				continue
			}
			if err := o.Control.Change(*what.Change); err != nil && o.Note != nil {
				o.Note(err.Error())
			}
			select { // each is written to the disk, and may open streams anew
			case <-time.After(changeEvery):
			case <-ctx.Done():
				return
			}
		}
	}()
	o.Mirrors = []Mirror{{p.t, p.From.String()}}
	o.Insist = true
	if p.begin.Rate != nil && o.Rate == 0 {
		o.Rate = max(*p.begin.Rate, 0)
	}
	if p.begin.Class != nil && o.Class == 0 {
		o.Class = known(*p.begin.Class)
	}
	report := o.Progress
	say := func(pr Progress) {
		if err := p.w.say(word{Progress: &pushed{pr.Bytes.Size, pr.Bytes.Done, pr.Bytes.Resumed, o.Control.Settings()}}, sayTime); err != nil {
			cancel(fmt.Errorf("files: the giver does not listen: %w", err))
		}
	}
	o.Progress = func(pr Progress) {
		if pr.Hash == nil {
			say(pr)
		}
		if report != nil {
			report(pr)
		}
	}
	say(Progress{Bytes: bulk.Progress{Size: -1}})
	err := Receive(ctx, o)
	if err != nil && ctx.Err() == nil {
		p.fail(err, filepath.Dir(o.Target))
	} else if err != nil {
		err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	return err
}
