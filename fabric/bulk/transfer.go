package bulk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Mirror is a place that has the payload.
type Mirror interface {
	// Open opens a stream to someone who runs [Serve].
	Open(ctx context.Context) (io.ReadWriteCloser, error)
	String() string
}

// Sink takes a payload. Chunks come in any order, from many goroutines; of
// one that is written again the bytes are the same.
type Sink interface {
	io.WriterAt
	// Sync returns when all that was written is durable.
	Sync() error
}

// Errors that callers tell apart.
var (
	// ErrFull: the sink has no more room. What is there stays noted; the
	// transfer goes on, by a new one with the same journal, when there is room.
	ErrFull = errors.New("bulk: the sink is full; what has arrived is kept, go on when there is room")
	// ErrNoMirror: no mirror can give what is missing.
	ErrNoMirror = errors.New("bulk: no mirror gives the payload")
	// ErrRoot: all chunks are there, and the whole is not what it should be.
	ErrRoot = errors.New("bulk: the payload's final hash is wrong")
)

// Options say what to fetch, and how.
type Options struct {
	Name    string
	Mirrors []Mirror
	Sink    Sink
	Journal *Journal // nil: nothing is remembered
	// KeepJournal leaves the journal where it is when the transfer is done, for a
	// caller that has something left to do before nothing can be lost any more.
	KeepJournal bool
	// AnyVersion goes on with what the journal has whatever version of the payload
	// is offered now, such as by other mirrors than before: the hashes tell.
	AnyVersion bool
	Want       *Hash // the root, where it is known beforehand
	Streams    int   // for each mirror; 0: 2
	Rate       int64 // bytes a second at most; 0: as fast as it goes
	// Stall is how long a mirror may give nothing before another one goes on
	// in its place; 0: 600 ms. Where there is no other, it is a minute.
	Stall time.Duration
	// GiveUp is how long nothing may come from anywhere; 0: two minutes.
	GiveUp time.Duration
}

// Progress is how far a transfer is.
type Progress struct {
	Size    int64 // of the payload; -1: not known yet
	Done    int64 // bytes verified and written, those of earlier runs too
	Resumed int64 // of those, bytes that were there at the beginning
	Fetched int64 // bytes that came over streams, those in vain too
	Paused  bool
	Mirrors []MirrorState
}

// MirrorState is what a transfer knows of a mirror.
type MirrorState struct {
	Name    string
	Bytes   int64  // that came from it
	Corrupt int    // chunks that were wrong
	Failed  int    // streams that broke, stalled or could not be opened
	Out     string // why it is not asked any more; "": it is
	Changed bool   // it is out because its payload is another one now
}

const (
	lonelyStall  = time.Minute
	depth        = 2         // chunks under way on one stream
	maxCorrupt   = 3         // chunks that a mirror may get wrong
	syncBytes    = 256 << 20 // written between two syncs
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// Transfer is a payload being fetched.
type Transfer struct {
	o      Options
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done

	syncing sync.Mutex // one sync of the sink at a time

	mu       sync.Mutex
	changed  chan struct{} // closed and made anew when someone may go on
	failure  error
	finished bool
	paused   bool
	draining bool
	rate     int64
	issueAt  time.Time // when the rate allows the next chunk
	info     *info
	hashes   map[int]Hash // of chunks, as the first mirror has them, and of chunks that are there
	pages    []pageState
	have     []bool
	missing  int // chunks
	under    int // chunks taken out of todo and not there yet
	next     int // lowest chunk that was never in todo
	todo     []*task
	unsynced int64
	lastNews time.Time
	progress Progress
	mirrors  []*mirror
}

type pageState uint8

const (
	pageUnknown pageState = iota
	pageAsked
	pageKnown
)

// mirror is a Mirror and what is known of it.
type mirror struct {
	Mirror
	state MirrorState
}

// task is a chunk to fetch, with what has come of it.
type task struct {
	chunk int
	buf   []byte
	n     int // bytes of buf that have come
	from  *mirror
	mixed bool    // they came from several mirrors
	avoid *mirror // got it wrong
}

// Start begins a transfer. It ends with ctx, or see Wait.
func Start(ctx context.Context, o Options) *Transfer {
	t := newTransfer(o)
	ctx, t.cancel = context.WithCancel(ctx)
	go t.run(ctx)
	return t
}

func newTransfer(o Options) *Transfer {
	if o.Streams == 0 {
		o.Streams = 2
	}
	if o.Stall == 0 {
		o.Stall = 600 * time.Millisecond
	}
	if o.GiveUp == 0 {
		o.GiveUp = 2 * time.Minute
	}
	t := &Transfer{o: o, done: make(chan struct{}), changed: make(chan struct{}), rate: o.Rate, lastNews: time.Now(),
		hashes: map[int]Hash{}, progress: Progress{Size: -1}}
	for _, m := range o.Mirrors {
		t.mirrors = append(t.mirrors, &mirror{Mirror: m, state: MirrorState{Name: m.String()}})
	}
	return t
}

// Wait returns when the transfer has ended: nil, and the payload is whole and
// durable in the sink; or why not. What the journal has noted is kept then.
func (t *Transfer) Wait() error {
	<-t.done
	return t.err
}

// Pause lets the chunks under way come in and asks for no more.
func (t *Transfer) Pause() { t.set(func() { t.paused = true }) }

// Resume goes on after Pause.
func (t *Transfer) Resume() { t.set(func() { t.paused = false; t.lastNews = time.Now() }) }

// Drain lets the chunks under way come in and ends the transfer, with
// context.Canceled if something is missing.
func (t *Transfer) Drain() { t.set(func() { t.draining = true }) }

// SetRate changes how many bytes a second may come; 0: as many as do.
func (t *Transfer) SetRate(rate int64) { t.set(func() { t.rate = rate; t.issueAt = time.Time{} }) }

func (t *Transfer) set(fn func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fn()
	t.wake()
}

// wake has all who wait look again. Called with the lock held.
func (t *Transfer) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// Progress tells how far the transfer is.
func (t *Transfer) Progress() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.progress
	p.Paused = t.paused
	for _, m := range t.mirrors {
		p.Mirrors = append(p.Mirrors, m.state)
	}
	return p
}

// run runs the workers, then checks the whole.
func (t *Transfer) run(ctx context.Context) {
	defer close(t.done)
	defer t.cancel()
	var wg sync.WaitGroup
	var workers []*worker
	for _, m := range t.mirrors {
		for range t.o.Streams {
			w := &worker{t: t, m: m}
			workers = append(workers, w)
			wg.Go(func() { w.run(ctx) })
		}
	}
	end := make(chan struct{})
	go func() {
		wg.Wait()
		close(end)
	}()
	tick := time.NewTicker(t.o.Stall / 3)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-end:
			running = false
		case now := <-tick.C:
			t.watch(workers, now)
		}
	}
	t.err = t.outcome(ctx)
}

// fail ends the transfer; the first reason is the one that counts.
func (t *Transfer) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure == nil {
		t.failure = err
	}
	t.wake()
}

// watch takes work from mirrors that have stalled.
func (t *Transfer) watch(workers []*worker, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.paused && now.Sub(t.lastNews) > t.o.GiveUp && t.failure == nil {
		t.failure = fmt.Errorf("%w: nothing has come for %s", ErrNoMirror, t.o.GiveUp)
		t.wake()
	}
	for _, w := range workers {
		if w.stream == nil || w.busy == 0 && w.opened {
			continue
		}
		limit := lonelyStall
		for _, other := range workers {
			if other.m != w.m && other.opened && other.m.state.Out == "" && (other.busy == 0 || now.Sub(other.news) <= t.o.Stall) {
				limit = t.o.Stall
			}
		}
		if now.Sub(w.news) > limit {
			w.stalled = true
			stream := w.stream
			w.stream = nil
			go stream.Close() // it may take as long as the mirror does
		}
	}
}

// outcome says how the transfer went, after the last worker has ended.
func (t *Transfer) outcome(ctx context.Context) error {
	t.mu.Lock()
	failure, i, missing := t.failure, t.info, t.missing
	t.mu.Unlock()
	switch {
	case failure != nil:
	case ctx.Err() != nil:
		failure = ctx.Err()
	case i == nil, missing > 0 && !t.draining:
		failure = t.noMirror()
	case missing > 0:
		failure = context.Canceled
	}
	if failure != nil {
		return t.keep(failure)
	}
	if err := t.checkRoot(ctx); err != nil {
		return t.keep(err)
	}
	if err := t.sync(); err != nil {
		return t.keep(err)
	}
	if t.o.Journal != nil {
		end := t.o.Journal.Remove
		if t.o.KeepJournal {
			end = t.o.Journal.Close
		}
		if err := end(); err != nil {
			return fmt.Errorf("bulk: the transfer is done, but its journal: %w", err)
		}
	}
	return nil
}

// keep makes what has come durable, if the sink lets us, and returns err.
func (t *Transfer) keep(err error) error {
	if t.o.Journal == nil {
		return err
	}
	if errors.Is(err, ErrRoot) {
		return errors.Join(err, t.o.Journal.Remove())
	}
	if !errors.Is(err, errSink) {
		err = errors.Join(err, t.sync())
	}
	return errors.Join(err, t.o.Journal.Close())
}

func (t *Transfer) noMirror() error {
	err := ErrNoMirror
	for _, m := range t.Progress().Mirrors {
		why := m.Out
		if why == "" {
			why = fmt.Sprintf("failed %d times", m.Failed)
		}
		err = fmt.Errorf("%w; %s: %s", err, m.Name, why)
	}
	return err
}

// begin takes note of what a mirror says of the payload.
func (t *Transfer) begin(m *mirror, i info) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.info != nil {
		if i.Size != t.info.Size || i.Chunk != t.info.Chunk {
			m.state.Out = "it has another payload under this name"
			return errOut
		}
		return nil
	}
	have := map[int]Hash{}
	if t.o.Journal != nil {
		known := i
		switch {
		case t.o.Want != nil:
			known.Version = string(t.o.Want[:])
		case t.o.AnyVersion || len(t.mirrors) > 1: // each names versions as it likes; the hashes tell
			known.Version = ""
		}
		var err error
		if have, err = t.o.Journal.begin(known); err != nil {
			t.failure = err
			t.wake()
			return err
		}
	}
	t.info = &i
	t.pages = make([]pageState, i.pages())
	t.have = make([]bool, i.chunks())
	t.missing = i.chunks() - len(have)
	for c, h := range have {
		t.have[c] = true
		t.hashes[c] = h
		t.progress.Resumed += int64(i.length(c))
	}
	t.progress.Size, t.progress.Done = i.Size, t.progress.Resumed
	t.finished = t.missing == 0
	t.wake()
	return nil
}

// job is what a worker does next: ask for a page, or for a chunk.
type job struct {
	page int
	task *task
}

// take returns the next job for a worker; nil: there is none now (wait for
// again, or until at if that is not zero), or for ever (over).
func (t *Transfer) take(m *mirror) (j *job, again <-chan struct{}, at time.Time, over bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	again = t.changed
	if t.isOver(m) {
		return nil, again, at, true
	}
	if t.paused {
		return nil, again, at, false
	}
	if now := time.Now(); t.rate > 0 && now.Before(t.issueAt) {
		return nil, again, t.issueAt, false
	}
	if p := t.nextPage(); p >= 0 {
		return &job{page: p}, again, at, false
	}
	tk := t.nextTask(m)
	if tk == nil {
		return nil, again, at, false
	}
	t.under++
	if t.rate > 0 {
		now := time.Now()
		if t.issueAt.Before(now) {
			t.issueAt = now
		}
		t.issueAt = t.issueAt.Add(time.Duration(float64(t.info.length(tk.chunk)-tk.n) / float64(t.rate) * float64(time.Second)))
	}
	return &job{task: tk}, again, at, false
}

// over reports whether a mirror has nothing more to do.
func (t *Transfer) over(m *mirror) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.isOver(m)
}

func (t *Transfer) isOver(m *mirror) bool {
	return t.failure != nil || t.finished || t.draining || m.state.Out != ""
}

// nextTask returns a chunk of which the hash is known.
func (t *Transfer) nextTask(m *mirror) *task {
	for k, tk := range t.todo {
		if tk.avoid != m || t.alone(m) {
			t.todo = append(t.todo[:k], t.todo[k+1:]...)
			return tk
		}
	}
	for ; t.next < len(t.have) && (t.have[t.next] || t.pages[t.next/pageChunks] == pageKnown); t.next++ {
		if !t.have[t.next] {
			t.next++
			return &task{chunk: t.next - 1}
		}
	}
	return nil
}

// alone reports whether no other mirror is left.
func (t *Transfer) alone(m *mirror) bool {
	for _, other := range t.mirrors {
		if other != m && other.state.Out == "" {
			return false
		}
	}
	return true
}

// nextPage returns a page of hashes to ask for: that of the chunks that are
// next, or the one after it, so that its hashes are there in time; -1: none.
func (t *Transfer) nextPage() int {
	ahead := 0
	for p := t.next / pageChunks; p < len(t.pages) && ahead < 2; p++ {
		if !t.needsPage(p) {
			continue
		}
		ahead++
		if t.pages[p] == pageUnknown {
			t.pages[p] = pageAsked
			return p
		}
	}
	return -1
}

func (t *Transfer) needsPage(p int) bool {
	for c := p * pageChunks; c < p*pageChunks+t.info.pageLength(p); c++ {
		if !t.have[c] {
			return true
		}
	}
	return false
}

// giveBack returns a job that a worker could not finish.
func (t *Transfer) giveBack(j *job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.task != nil {
		t.under--
		t.todo = append([]*task{j.task}, t.todo...)
	} else {
		t.pages[j.page] = pageUnknown
	}
	t.wake()
}

// learn takes in a page of hashes.
func (t *Transfer) learn(p int, hashes []Hash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, h := range hashes {
		c := p*pageChunks + k
		if t.have[c] && t.hashes[c] != h {
			// What we have is not what the mirror has now.
			t.failure = fmt.Errorf("%w: the mirror's payload is not the one that was begun; remove what has arrived and start again", ErrRoot)
		}
		t.hashes[c] = h
	}
	t.pages[p] = pageKnown
	t.lastNews = time.Now()
	t.wake()
}

// arrived takes note of bytes that came.
func (t *Transfer) arrived(w *worker, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.news = time.Now()
	t.lastNews = w.news
	w.m.state.Bytes += int64(n)
	t.progress.Fetched += int64(n)
}

var (
	errOut  = errors.New("bulk: the mirror is out")
	errSink = errors.New("bulk: sink")
)

// complete verifies a chunk and writes it.
func (t *Transfer) complete(m *mirror, tk *task) error {
	t.mu.Lock()
	want := t.hashes[tk.chunk]
	t.mu.Unlock()
	h := hashOf(tk.buf)
	if h != want {
		return t.corrupt(m, tk)
	}
	if _, err := t.o.Sink.WriteAt(tk.buf, int64(tk.chunk)*int64(t.info.Chunk)); err != nil {
		return t.sinkFailed(err)
	}
	if t.o.Journal != nil {
		if err := t.o.Journal.note(tk.chunk, h); err != nil {
			return t.sinkFailed(err)
		}
	}
	t.mu.Lock()
	t.have[tk.chunk] = true
	t.under--
	t.missing--
	t.progress.Done += int64(len(tk.buf))
	t.finished = t.missing == 0
	t.unsynced += int64(len(tk.buf))
	due := t.unsynced >= syncBytes && !t.finished
	t.wake()
	t.mu.Unlock()
	if due {
		if err := t.sync(); err != nil {
			t.fail(err)
			return err
		}
	}
	return nil
}

// sinkFailed ends the transfer because of its own end.
func (t *Transfer) sinkFailed(err error) error {
	kind := errSink
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind = ErrFull
	}
	err = fmt.Errorf("%w: %w", kind, err)
	t.fail(err)
	return err
}

// corrupt takes note of a chunk that is wrong, and of who is to blame.
func (t *Transfer) corrupt(m *mirror, tk *task) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !tk.mixed {
		m.state.Corrupt++
		tk.avoid = m
		if m.state.Corrupt >= maxCorrupt {
			m.state.Out = fmt.Sprintf("%d of its chunks were corrupt", m.state.Corrupt)
		}
	}
	tk.n, tk.from, tk.mixed = 0, nil, false
	t.under--
	t.todo = append([]*task{tk}, t.todo...)
	t.wake()
	return nil
}

// sync makes what was written durable and notes it. After a failure it is
// never tried again.
func (t *Transfer) sync() error {
	t.syncing.Lock()
	defer t.syncing.Unlock()
	t.mu.Lock()
	started := t.info != nil
	t.unsynced = 0
	t.mu.Unlock()
	if !started {
		return nil
	}
	mark := 0
	if t.o.Journal != nil {
		mark = t.o.Journal.mark()
	}
	if err := t.o.Sink.Sync(); err != nil {
		if t.o.Journal != nil {
			err = errors.Join(err, t.o.Journal.lost())
		}
		return fmt.Errorf("%w: %w", errSink, err)
	}
	if t.o.Journal != nil {
		return t.o.Journal.synced(mark)
	}
	return nil
}

// checkRoot compares the final hash.
func (t *Transfer) checkRoot(ctx context.Context) error {
	t.mu.Lock()
	i := *t.info
	all := make([]Hash, i.chunks())
	for c := range all {
		all[c] = t.hashes[c]
	}
	t.mu.Unlock()
	got := i.root(all)
	if t.o.Want != nil {
		if got != *t.o.Want {
			return ErrRoot
		}
		return nil
	}
	return t.askRoot(ctx, got)
}

// hedge is how long a mirror may think before another one is asked too.
const hedge = 2 * time.Second

// askRoot compares a root with what the mirrors say: first the one that gave
// most, then, when it does not answer, the others.
func (t *Transfer) askRoot(ctx context.Context, got Hash) error {
	ctx, cancel := context.WithTimeout(ctx, t.o.GiveUp)
	defer cancel()
	left := slices.DeleteFunc(slices.Clone(t.mirrors), func(m *mirror) bool { return m.state.Out != "" })
	slices.SortStableFunc(left, func(a, b *mirror) int { return cmp.Compare(b.state.Bytes, a.state.Bytes) })
	type answer struct {
		m    *mirror
		root Hash
		err  error
	}
	answers := make(chan answer, len(left))
	under := 0
	var errs error
	for {
		var next <-chan time.Time
		if len(left) > 0 {
			d := hedge
			if under == 0 {
				d = 0
			}
			timer := time.NewTimer(d)
			defer timer.Stop()
			next = timer.C
		} else if under == 0 {
			return fmt.Errorf("%w: for the final hash: %w", ErrNoMirror, errs)
		}
		select {
		case <-next:
			m := left[0]
			left = left[1:]
			under++
			go func() {
				root, err := rootFrom(ctx, m, t.o.Name)
				answers <- answer{m, root, err}
			}()
		case a := <-answers:
			under--
			var remote *RemoteError
			switch {
			case a.err == nil && a.root == got:
				return nil
			case a.err == nil, errors.As(a.err, &remote) && remote.Code == CodeChanged:
				return errors.Join(ErrRoot, a.err)
			}
			errs = errors.Join(errs, fmt.Errorf("%s: %w", a.m, a.err))
		}
	}
}

// rootFrom asks a mirror for the final hash.
func rootFrom(ctx context.Context, m Mirror, name string) (h Hash, err error) {
	s, err := m.Open(ctx)
	if err != nil {
		return h, err
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	defer s.Close()
	l := newLink(s)
	if _, err := l.open(name); err != nil {
		return h, err
	}
	if err := errors.Join(l.send(msgRoot), l.flush()); err != nil {
		return h, err
	}
	b, err := l.expect(msgFinal, len(h))
	if err == nil && copy(h[:], b) != len(h) {
		err = errProtocol
	}
	return h, err
}

// open begins a conversation.
func (l *link) open(name string) (info, error) {
	if err := errors.Join(l.send(msgOpen, []byte(name)), l.flush()); err != nil {
		return info{}, err
	}
	b, err := l.expect(msgInfo, 12+maxVersion)
	if err != nil {
		return info{}, err
	}
	return decodeInfo(b)
}

// expect reads a message of one type.
func (l *link) expect(want message, limit int) ([]byte, error) {
	m, n, err := l.next()
	if err != nil {
		return nil, unexpected(err)
	}
	if m == msgError {
		return nil, l.remoteError(n)
	}
	if m != want {
		return nil, fmt.Errorf("%w: message %d where %d belongs", errProtocol, m, want)
	}
	return l.body(n, limit)
}

func (l *link) remoteError(n int) error {
	b, err := l.body(n, 1+maxErrorText)
	if err != nil || len(b) == 0 {
		return errors.Join(errProtocol, err)
	}
	return &RemoteError{Code(b[0]), string(b[1:])}
}
