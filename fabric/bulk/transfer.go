package bulk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/zeebo/blake3"
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
	// ErrRoot: no mirror has a payload with the final hash that was asked for.
	ErrRoot = errors.New("bulk: the payload's final hash is wrong")
	// ErrDisputed: mirrors disagree on what the payload is, and nothing says who is
	// right. What has arrived is kept.
	ErrDisputed = errors.New("bulk: the mirrors disagree on the content")
)

// Options say what to fetch, and how.
type Options struct {
	Name    string
	Mirrors []Mirror // see Transfer.AddMirror too
	// Trusted: mirrors come in the order of trust. Where two disagree, the one that
	// was named before the other is right. Otherwise that ends the transfer.
	Trusted bool
	Sink    Sink
	Journal *Journal // nil: nothing is remembered
	// KeepJournal leaves the journal where it is when the transfer is done, for a
	// caller that has something left to do before nothing can be lost any more.
	KeepJournal bool
	Size        *int64 // of the payload, where it is known beforehand
	MaxSize     int64  // of the payload; 0: any
	Want        *Hash  // the root, where it is known beforehand
	Streams     int    // for each mirror; 0: 2
	Rate        int64  // bytes a second at most; 0: as fast as it goes
	Paused      bool   // it begins as after Pause
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
	maxMirrors   = 64        // in one transfer
	maxHeld      = 128 << 20 // bytes of chunks that are not whole, in memory
	sumsAtOnce   = 16        // hashes that one request asks for
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
	unsafe  error      // a sync of the sink has failed; guarded by syncing

	mu       sync.Mutex
	changed  chan struct{} // closed and made anew when someone may go on
	failure  error
	finished bool
	paused   bool
	draining bool
	reopened int // times
	rate     int64
	issueAt  time.Time // when the rate allows the next chunk
	info     *info
	chunks   []*chunks // by page; nil: nothing is known
	missing  int       // chunks that are not there
	disputed int       // chunks of which it is not known whether the authority agrees
	next     int       // lowest chunk that was never in todo
	todo     []*task
	free     [][]byte // buffers of chunks
	held     int      // buffers in use
	unsynced int64
	lastNews time.Time
	progress Progress
	mirrors  []*mirror
	workers  []*worker
	start    func(*mirror) // its workers; nil: not now
	halt     func()        // ends the workers, whatever they wait for; nil: there are none

	// What the hashes are held against.
	authority *mirror      // whose hashes count; nil: nobody has answered
	root      Hash         // of what is there, when all of it is
	several   bool         // they are of more than one authority
	auditing  bool         // they are asked for: always, where the root is not known
	proven    bool         // they make the root that was asked for
	sums      map[int]Hash // its hashes of chunks that are not there, or have others
	nextSum   int          // page
	summing   bool         // a request for them is under way
	audits    int          // times that the whole was held against a final hash
}

// chunks is what is known of a page's chunks.
type chunks struct {
	have   uint64 // verified and written
	agreed uint64 // the authority has this hash too
	asked  uint64 // the authority was asked for its hash
	hash   [pageChunks]Hash
	by     [pageChunks]uint8 // index in mirrors and one, of who gave it; 0: it was there
}

// mirror is a Mirror and what is known of it.
type mirror struct {
	Mirror
	nth   int
	last  error // of its last stream
	state MirrorState
}

// task is a chunk to fetch, with what has come of it.
type task struct {
	chunk int
	buf   []byte
	n     int            // bytes of buf that have come
	hash  *blake3.Hasher // of those
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
	t := &Transfer{o: o, done: make(chan struct{}), changed: make(chan struct{}), rate: o.Rate, paused: o.Paused, lastNews: time.Now(),
		sums: map[int]Hash{}, auditing: o.Want == nil, progress: Progress{Size: -1}}
	for _, m := range o.Mirrors {
		t.AddMirror(m)
	}
	return t
}

// AddMirror has another mirror take part, also while the transfer goes on.
func (t *Transfer) AddMirror(m Mirror) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.mirrors) == maxMirrors {
		return
	}
	added := &mirror{Mirror: m, nth: len(t.mirrors), state: MirrorState{Name: m.String()}}
	t.mirrors = append(t.mirrors, added)
	if t.start != nil {
		t.start(added)
	}
}

// Wait returns when the transfer has ended: nil, and the payload is whole and
// durable in the sink; or why not. What the journal has noted is kept then.
func (t *Transfer) Wait() error {
	<-t.done
	return t.err
}

// Root returns the payload's final hash, after Wait has returned nil.
func (t *Transfer) Root() Hash {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.root
}

// Pause lets the chunks under way come in and asks for no more.
func (t *Transfer) Pause() { t.set(func() { t.paused = true }) }

// Resume goes on after Pause.
func (t *Transfer) Resume() { t.set(func() { t.paused = false; t.lastNews = time.Now() }) }

// Reopen has all streams end and be opened again, such as in another class. What has
// come of the chunks under way is kept.
func (t *Transfer) Reopen() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reopened++
	for _, w := range t.workers {
		if w.stream != nil {
			w.takeAway()
			w.reopening = true
		}
	}
}

// reopens returns how often Reopen was called.
func (t *Transfer) reopens() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reopened
}

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

// run fetches until the whole is what it should be.
func (t *Transfer) run(ctx context.Context) {
	defer close(t.done)
	defer t.cancel()
	for again := true; again; {
		t.fetch(ctx)
		again, t.err = t.outcome(ctx)
	}
}

// fetch runs the workers until they have nothing to do any more.
func (t *Transfer) fetch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	running := 1    // this one, until all have begun
	end := func() { // with the lock held
		if running--; running == 0 {
			t.start = nil
			close(ended)
		}
	}
	t.mu.Lock()
	t.lastNews = time.Now()
	t.workers = nil
	t.halt = cancel
	t.start = func(m *mirror) {
		for range t.o.Streams {
			w := &worker{t: t, m: m}
			t.workers = append(t.workers, w)
			running++
			go func() {
				w.run(ctx)
				t.mu.Lock()
				defer t.mu.Unlock()
				end()
			}()
		}
	}
	for _, m := range t.mirrors {
		t.start(m)
	}
	end()
	t.mu.Unlock()
	tick := time.NewTicker(t.o.Stall / 3)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case now := <-tick.C:
			t.watch(now)
		}
	}
}

// fail ends the transfer; the first reason is the one that counts.
func (t *Transfer) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failLocked(err)
}

func (t *Transfer) failLocked(err error) {
	if t.failure == nil {
		t.failure = err
	}
	t.end()
	t.wake()
}

// end has the workers end that wait for a mirror. Called with the lock held.
func (t *Transfer) end() {
	if t.halt != nil {
		t.halt()
	}
}

// watch takes work from mirrors that have stalled.
func (t *Transfer) watch(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate > 0 && now.Before(t.issueAt) {
		t.lastNews = now // it is not for want of a mirror that nothing comes
	}
	if !t.paused && now.Sub(t.lastNews) > t.o.GiveUp {
		t.failLocked(fmt.Errorf("%w: nothing has come for %s", t.noMirror(), t.o.GiveUp))
	}
	for _, w := range t.workers {
		if w.stream == nil || w.busy == 0 && w.opened {
			continue
		}
		limit := lonelyStall
		for _, other := range t.workers {
			if other.m != w.m && other.opened && other.m.state.Out == "" && (other.busy == 0 || now.Sub(other.news) <= t.o.Stall) {
				limit = t.o.Stall
			}
		}
		if now.Sub(w.news) > limit {
			w.takeAway()
			w.stalled = true
		}
	}
}

// outcome says how the transfer went after the last worker has ended, or that it
// is to go on.
func (t *Transfer) outcome(ctx context.Context) (again bool, _ error) {
	t.mu.Lock()
	failure := t.failure
	switch {
	case failure != nil:
	case ctx.Err() != nil:
		failure = ctx.Err()
	case t.finished:
	case t.info != nil && t.draining:
		failure = context.Canceled
	case t.authority != nil && t.authority.state.Out == "": // it came when others had ended
		t.mu.Unlock()
		return true, nil
	default:
		failure = t.noMirror()
	}
	t.mu.Unlock()
	if failure != nil {
		return false, t.keep(failure)
	}
	again, err := t.checkRoot(ctx)
	if again {
		return true, nil
	}
	if err == nil {
		err = t.sync()
	}
	if err != nil {
		return false, t.keep(err)
	}
	if t.o.Journal != nil {
		end := t.o.Journal.Remove
		if t.o.KeepJournal {
			end = t.o.Journal.Close
		}
		if err := end(); err != nil {
			return false, fmt.Errorf("bulk: the transfer is done, but its journal: %w", err)
		}
	}
	return false, nil
}

// keep makes what has come durable, if the sink lets us, and returns err.
func (t *Transfer) keep(err error) error {
	if t.o.Journal == nil {
		return err
	}
	if !errors.Is(err, errSink) {
		err = errors.Join(err, t.sync())
	}
	return errors.Join(err, t.o.Journal.Close())
}

// noMirror is ErrNoMirror, with what each mirror said. Called with the lock held.
func (t *Transfer) noMirror() error {
	err := ErrNoMirror
	for _, m := range t.mirrors {
		switch why := m.state; {
		case m.last != nil && why.Out == m.last.Error():
			err = fmt.Errorf("%w; %s: %w", err, m, m.last)
		case why.Out != "":
			err = fmt.Errorf("%w; %s: %s", err, m, why.Out)
		case m.last != nil:
			err = fmt.Errorf("%w; %s: failed %d times: %w", err, m, why.Failed, m.last)
		}
	}
	return err
}

// begin takes note of what a mirror says of the payload.
func (t *Transfer) begin(w *worker, i info) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := w.m
	if t.info == nil {
		if t.o.Size != nil && i.Size != *t.o.Size {
			t.out(m, fmt.Sprintf("its payload has %d bytes, which can't be", i.Size))
			return errOut
		}
		if t.o.MaxSize > 0 && i.Size > t.o.MaxSize {
			t.out(m, fmt.Sprintf("its payload has %d bytes, and at most %d are taken", i.Size, t.o.MaxSize))
			return errOut
		}
		if err := t.adopt(i); err != nil {
			t.failLocked(err)
			return err
		}
	} else if i.Size != t.info.Size || i.Chunk != t.info.Chunk {
		if t.o.Trusted && t.authority != nil && m.nth < t.authority.nth {
			t.failLocked(fmt.Errorf("%w: what %s has is of another form than what %s has", ErrDisputed, t.authority, m))
		}
		t.out(m, "it has another payload under this name")
		return errOut
	}
	if t.authority == nil || t.o.Trusted && m.nth < t.authority.nth || !t.opened(t.authority) {
		t.follow(m)
	}
	w.opened, w.news = true, time.Now()
	t.wake()
	return nil
}

// opened reports whether a mirror has a stream that works.
func (t *Transfer) opened(m *mirror) bool {
	for _, w := range t.workers {
		if w.m == m && w.opened {
			return true
		}
	}
	return false
}

// adopt makes the transfer one of this payload, and of what the journal has of it.
func (t *Transfer) adopt(i info) error {
	i.Version = "" // each mirror names them as it likes; the hashes tell
	have := map[int]Hash{}
	if t.o.Journal != nil {
		known := i
		if t.o.Want != nil {
			known.Version = string(t.o.Want[:])
		}
		var err error
		if have, err = t.o.Journal.begin(known); err != nil {
			return sinkError(err)
		}
	}
	t.info = &i
	t.chunks = make([]*chunks, i.pages())
	t.missing = i.chunks()
	for c, h := range have {
		t.put(c, h, 0)
		t.progress.Resumed += int64(i.length(c))
	}
	t.progress.Size = i.Size
	t.look()
	return nil
}

// page returns what is known of a chunk's page, and the chunk's bit in it.
func (t *Transfer) page(c int) (p *chunks, bit uint64) {
	p = t.chunks[c/pageChunks]
	if p == nil {
		p = &chunks{}
		t.chunks[c/pageChunks] = p
	}
	return p, 1 << (c % pageChunks)
}

func (t *Transfer) has(c int) bool {
	p := t.chunks[c/pageChunks]
	return p != nil && p.have&(1<<(c%pageChunks)) != 0
}

// put takes note of a chunk that is in the sink.
func (t *Transfer) put(c int, h Hash, by uint8) {
	p, bit := t.page(c)
	p.have |= bit
	p.agreed &^= bit
	p.hash[c%pageChunks], p.by[c%pageChunks] = h, by
	t.missing--
	t.disputed++
	t.progress.Done += int64(t.info.length(c))
	t.nextSum = min(t.nextSum, c/pageChunks)
}

// drop takes a chunk back: what is in the sink is not what should be there.
func (t *Transfer) drop(c int) {
	if t.o.Journal != nil {
		if err := t.o.Journal.gone(c); err != nil {
			t.failLocked(sinkError(err))
			return
		}
	}
	p, bit := t.page(c)
	if p.agreed&bit == 0 {
		t.disputed--
	}
	p.have &^= bit
	p.agreed &^= bit
	t.missing++
	t.progress.Done -= int64(t.info.length(c))
	if c < t.next {
		t.todo = append(t.todo, &task{chunk: c})
	}
}

// look sees whether the workers have nothing to do any more.
func (t *Transfer) look() {
	if t.finished = t.missing == 0 && (!t.auditing || t.disputed == 0); t.finished && !t.o.Trusted {
		t.end() // else one that is trusted more may still come
	}
	t.wake()
}

// job is what a worker does next: ask for hashes, or for a chunk.
type job struct {
	first, count int // of the chunks whose hashes are asked for
	task         *task
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
	if j := t.takeSums(m); j != nil {
		return j, again, at, false
	}
	if now := time.Now(); t.rate > 0 && now.Before(t.issueAt) {
		return nil, again, t.issueAt, false
	}
	tk := t.takeTask(m)
	if tk == nil {
		return nil, again, at, false
	}
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

// takeTask returns a chunk to fetch.
func (t *Transfer) takeTask(m *mirror) *task {
	for k, tk := range t.todo {
		if (tk.buf != nil || t.room()) && (tk.avoid != m || t.alone(m)) {
			t.todo = append(t.todo[:k], t.todo[k+1:]...)
			t.lend(tk)
			return tk
		}
	}
	if t.info == nil || !t.room() {
		return nil
	}
	for ; t.next < t.info.chunks(); t.next++ {
		if !t.has(t.next) {
			tk := &task{chunk: t.next}
			t.next++
			t.lend(tk)
			return tk
		}
	}
	return nil
}

// room reports whether another chunk may be begun.
func (t *Transfer) room() bool { return t.held < max(maxHeld/t.info.Chunk, depth) }

// lend gives a task a buffer.
func (t *Transfer) lend(tk *task) {
	if tk.buf != nil {
		return
	}
	t.held++
	var b []byte
	if n := len(t.free); n > 0 {
		b, t.free = t.free[n-1], t.free[:n-1]
	} else {
		b = make([]byte, t.info.length(0))
	}
	tk.buf, tk.n, tk.hash = b[:t.info.length(tk.chunk)], 0, blake3.New()
}

// takeBack takes the buffer of a task.
func (t *Transfer) takeBack(tk *task) {
	t.held--
	t.free = append(t.free, tk.buf[:cap(tk.buf)])
	tk.buf, tk.n, tk.hash, tk.from, tk.mixed = nil, 0, nil, nil, false
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

// giveBack returns a job that a worker could not finish.
func (t *Transfer) giveBack(j *job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.task != nil {
		t.todo = append([]*task{j.task}, t.todo...)
	} else {
		t.unask(j)
	}
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

// complete takes in a chunk that has come whole, with the hash that the mirror
// says it has.
func (t *Transfer) complete(m *mirror, tk *task, says Hash) error {
	h := sumOf(tk.hash)
	if h != says {
		t.corrupt(m, tk)
		return nil
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
	t.put(tk.chunk, h, uint8(m.nth+1))
	t.unsynced += int64(len(tk.buf))
	t.takeBack(tk)
	if m == t.authority {
		t.sums[tk.chunk] = h
	}
	t.judge(tk.chunk)
	t.look()
	due := t.unsynced >= syncBytes && !t.finished
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
	err = sinkError(err)
	t.fail(err)
	return err
}

// sinkError marks an error of the sink, or of the journal beside it.
func sinkError(err error) error {
	kind := errSink
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind = ErrFull
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// corrupt takes note of a chunk that is not what its mirror itself says it is.
func (t *Transfer) corrupt(m *mirror, tk *task) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !tk.mixed {
		tk.avoid = m
		t.blame(m)
	}
	t.takeBack(tk)
	t.todo = append([]*task{tk}, t.todo...)
	t.wake()
}

// blame takes note of a wrong chunk.
func (t *Transfer) blame(m *mirror) {
	if m.state.Corrupt++; m.state.Corrupt >= maxCorrupt {
		t.out(m, fmt.Sprintf("%d of its chunks were corrupt", m.state.Corrupt))
	}
}

// sync makes what was written durable and notes it. After a failure it is
// never tried again.
func (t *Transfer) sync() error {
	t.syncing.Lock()
	defer t.syncing.Unlock()
	if t.unsafe != nil {
		return t.unsafe
	}
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
		t.unsafe = fmt.Errorf("%w: %w", errSink, err)
		return t.unsafe
	}
	if t.o.Journal != nil {
		return t.o.Journal.synced(mark)
	}
	return nil
}
