package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spacestore/space/fabric/frame"
)

// Options are for a session; the zero value is usable.
type Options struct {
	MaxStreams int           // at a time; 0: 4096
	Backlog    int           // opened by the peer and not accepted; 0: 256
	MaxWindow  int           // bytes of a stream's window; 0: 16 MiB
	Resume     time.Duration // how long streams live without a link; 0: a minute
	Budget     *Budget       // that windows are taken from; nil: without a bound
	Version    uint8         // the newest version of the protocol to speak; 0: the newest there is
	// Limit says what holds back a stream's bytes, beside its window: what is
	// read, and what is written. It is called when a stream is opened here, and
	// when one is accepted. nil, and a nil Limiter: nothing does.
	Limit func(class frame.Class, header []byte) (read, write Limiter)
	// Packets takes in packets; they are its own. nil: they are dropped. It is
	// called by a link's reader, which waits for it.
	Packets func(tunnel [16]byte, packets [][]byte)
	// Command takes in a signed control command, like Packets.
	Command func(command []byte)
}

func (o Options) filled() Options {
	if o.MaxStreams == 0 {
		o.MaxStreams = 4096
	}
	if o.Backlog == 0 {
		o.Backlog = 256
	}
	if o.MaxWindow == 0 {
		o.MaxWindow = 16 << 20
	}
	if o.Resume == 0 {
		o.Resume = time.Minute
	}
	if o.Version == 0 {
		o.Version = frame.MaxVersion
	}
	return o
}

const (
	firstWindow = 64 << 10          // of a stream, by agreement, until the peer says otherwise
	fastWindow  = 1 << 20           // up to which windows grow fourfold, and beyond twofold
	quantum     = 64<<10 - headRoom // payload of a Data frame, which fills four TLS records then
	small       = 16 << 10          // of one of class bulk or background while a higher class is active
	maxUnsent   = 4 * quantum       // bytes of a stream that no link has taken, about
	activeFor   = time.Second
	reservedFor = 5 * time.Second // after a higher class was active, its link carries no bulk
	floorTurns  = 32              // every so many turns, the lowest class that waits is next

	ackDelay = 2 * time.Millisecond // how long bulk may wait for its acknowledgement
	ackBytes = 256 << 10            // and how much: what is not acknowledged leaves the processor's cache

	maxQueuedPackets = frame.MaxPacketBytes // bytes; older ones are dropped
	maxCommands      = 256
	maxFinal         = 64 << 10 // last words on streams that the peer has not taken
	maxResets        = 16       // times MaxStreams, that the peer has not answered
)

// Errors that callers tell apart.
var (
	// ErrClosed is of a session that was closed here, and of its streams.
	ErrClosed = errors.New("fabric: the session is closed")
	// ErrLost ends a session that has been without a link for too long.
	ErrLost = errors.New("fabric: the peer could not be reached any more")
	// ErrBusy refuses a stream beyond the limit of them.
	ErrBusy = errors.New("fabric: busy")
	// ErrNoReader is a write's answer when the peer has closed the stream.
	ErrNoReader = errors.New("fabric: the peer does not read from the stream any more")
)

// ResetError ends a stream that one of its ends has given up.
type ResetError struct {
	Code   uint32
	Text   string
	Remote bool          // the peer has
	Retry  time.Duration // when to come back; 0: unknown
}

func (e *ResetError) Error() string {
	who := "here"
	if e.Remote {
		who = "by the peer"
	}
	return fmt.Sprintf("fabric: the stream was reset %s: %s (code %d)", who, e.Text, e.Code)
}

// Is reports whether the peer refused the stream because of a limit: ErrBusy.
func (e *ResetError) Is(target error) bool { return target == ErrBusy && e.Code == CodeBusy }

// BusyError says which limit refuses something here. It is an ErrBusy.
type BusyError struct {
	Limit string
	Retry time.Duration // when to come back
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("fabric: no more %s; try again in %v", e.Limit, e.Retry)
}

// Is reports whether target is ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// busyRetry is when one who was refused may come back: streams end all the time.
const busyRetry = time.Second

// Codes of resets that this package sends.
const (
	CodeCanceled = 1
	CodeBusy     = 2
)

// Session is what two nodes have in common. It may be used from many goroutines.
type Session struct {
	o         Options
	initiator bool
	accept    chan *Stream
	done      chan struct{}

	life   context.Context // ends with the session
	quit   context.CancelFunc
	frames [frame.Classes]atomic.Int64 // that came
	urgent atomic.Int64                // when a class above bulk last had something to send, or something of one came: in ns after the epoch

	mu      sync.Mutex
	err     error // why it has ended
	version uint8 // that the peer speaks
	links   []*link
	nlinks  uint64                              // that there ever were
	brief   int                                 // of those, lost soon after they came
	alone   time.Time                           // since when there has been no link
	redial  func(context.Context, Dialer) error // of a session that was dialed here
	gone    func()                              // called once, when it has ended

	peerLife [16]byte // as the peer's first Hello has it; zero: not known
	outlived bool     // the peer has another life now, which knows nothing of the session
	streams  map[uint64]*Stream
	next     uint64              // ID of the next stream to open
	highest  uint64              // of the peer's streams that have been heard of
	skipped  map[uint64]struct{} // below highest, and not yet heard of
	early    int                 // pieces of streams that came before their turn
	turns    int
	ready    [frame.Classes][]*Stream // with something to send, each once
	windows  []*Stream                // of which to say what has come
	final    []frame.WindowEntry      // of streams that are forgotten here
	resets   map[uint64]*reset
	unsent   []*reset
	command  [][]byte
	packets  []packetFrame
	queued   int // bytes of them
	stats    Stats
	lazy     *time.Timer // runs while windows are to be told that need no hurry
	rekeep   chan struct{}
	changed  chan struct{} // closed and made anew when the links change
}

// packetFrame is a whole Packets frame that waits.
type packetFrame struct {
	b  []byte
	n  int // packets in it
	at time.Time
}

// Stats are counts of a session's life.
type Stats struct {
	Version                    uint8                // of the protocol
	Links                      int                  // now
	Streams                    int                  // now
	Queued                     [frame.Classes]int64 // bytes that no link has taken, now
	Delay                      [frame.Classes]Delay // how long frames waited for their turn
	Sent, Received             [frame.Classes]int64 // payload bytes
	SentFrames, ReceivedFrames [frame.Classes]int64
	Resent                     int64 // payload bytes that went twice, after a link's end
	Duplicate                  int64 // payload bytes that came twice
	LostLinks                  int64
	DroppedPackets             int64
	RTT                        time.Duration // the best link's, smoothed; 0: not measured yet
}

// reset is a stream's end, until the peer has answered.
type reset struct {
	body frame.ResetBody
	said bool
}

// New returns a session without links. One end of it is the initiator.
func New(initiator bool, o Options) *Session {
	s := &Session{o: o.filled(), initiator: initiator, done: make(chan struct{}), streams: map[uint64]*Stream{},
		skipped: map[uint64]struct{}{}, resets: map[uint64]*reset{}, alone: time.Now(), rekeep: make(chan struct{}, 1), changed: make(chan struct{}), gone: func() {}}
	s.version = s.o.Version
	s.life, s.quit = context.WithCancel(context.Background())
	s.accept = make(chan *Stream, s.o.Backlog)
	s.next = 2
	if initiator {
		s.next = 1
	}
	go s.keep()
	return s
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the session has ended, or nil.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stats returns the counts.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Version, st.Links, st.Streams = s.version, len(s.links), len(s.streams)
	for _, x := range s.streams {
		st.Queued[x.class] += int64(x.unsent())
	}
	st.Queued[frame.Packet] += int64(s.queued)
	for c := range st.ReceivedFrames {
		st.ReceivedFrames[c] = s.frames[c].Load()
	}
	for _, l := range s.links {
		if l.rtt > 0 && (st.RTT == 0 || l.rtt < st.RTT) {
			st.RTT = l.rtt
		}
	}
	return st
}

// Close ends the session and its streams at both ends.
func (s *Session) Close() error {
	s.end(ErrClosed, &frame.GoAwayError{Text: "the session was closed"})
	for { // what nobody will accept is not held
		select {
		case st := <-s.accept:
			st.Close()
		default:
			return nil
		}
	}
}

// end ends the session; the peer, if it can be reached, is told why.
func (s *Session) end(err error, bye *frame.GoAwayError) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	links, gone := s.links, s.gone
	s.links = nil
	for _, st := range s.streams {
		st.fail(err)
		if err == ErrClosed { // here
			st.drop()
		}
	}
	clear(s.streams)
	s.mu.Unlock()
	s.quit()
	close(s.done)
	for _, l := range links {
		l.shut(bye)
	}
	gone()
}

// Open opens a stream. It returns at once; whether the peer takes it shows in
// the first read or write. header is what the peer's Accept tells of it, at
// most frame.MaxOpen bytes.
func (s *Session) Open(class frame.Class, header []byte) (*Stream, error) {
	if len(header) > frame.MaxOpen || class >= frame.Classes {
		return nil, fmt.Errorf("fabric: a stream of class %d with a header of %d bytes; the limit is %d", class, len(header), frame.MaxOpen)
	}
	var read, write Limiter
	if s.o.Limit != nil {
		read, write = s.o.Limit(class, header)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if len(s.streams) >= s.o.MaxStreams || len(s.resets) >= maxResets*s.o.MaxStreams {
		return nil, &BusyError{"streams in this session", busyRetry}
	}
	st := newStream(s, s.next, class)
	if lacks, ok := st.begin(); !ok {
		return nil, &BusyError{lacks, busyRetry}
	}
	st.inLimit, st.outLimit = read, write
	st.open = append([]byte{byte(len(header) >> 8), byte(len(header))}, header...)
	st.header = st.open[2:]
	s.next += 2
	s.streams[st.id] = st
	s.enqueue(st)
	return st, nil
}

// Accept returns the next stream that the peer has opened.
func (s *Session) Accept(ctx context.Context) (*Stream, error) {
	select {
	case st := <-s.accept:
		return s.limited(st), nil
	default:
	}
	select {
	case st := <-s.accept:
		return s.limited(st), nil
	case <-s.done:
		select {
		case st := <-s.accept: // it came before the end
			return s.limited(st), nil
		default:
			return nil, s.Err()
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// limited gives a stream that the peer has opened its limiters.
func (s *Session) limited(st *Stream) *Stream {
	if s.o.Limit != nil {
		st.inLimit, st.outLimit = s.o.Limit(st.class, st.header)
	}
	return st
}

// SendCommand sends a signed control command. It may be lost with a link; who
// needs an answer asks again.
func (s *Session) SendCommand(b []byte) error {
	if len(b) > frame.MaxCommand {
		return fmt.Errorf("fabric: a command of %d bytes; the limit is %d", len(b), frame.MaxCommand)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if len(s.command) >= maxCommands {
		return ErrBusy
	}
	s.command = append(s.command, frame.Append(nil, frame.Head{Type: frame.Command, Class: frame.Control}, b))
	s.wake(frame.Control)
	return nil
}

// SendPackets sends packets of a tunnel. Packets are lost where the way is too
// slow for them, the oldest first, and with links.
func (s *Session) SendPackets(tunnel [16]byte, packets [][]byte) error {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	for len(packets) > 0 {
		body, n := tunnel[:], 0
		for ok := true; n < len(packets) && n < frame.MaxPackets && ok && len(body) < quantum; {
			if body, ok = frame.AppendPacket(body, packets[n]); ok {
				n++
			}
		}
		if n == 0 {
			return fmt.Errorf("fabric: a packet of %d bytes", len(packets[0]))
		}
		f := frame.Append(nil, frame.Head{Type: frame.Packets, Class: frame.Packet}, body)
		s.packets = append(s.packets, packetFrame{f, n, now})
		s.queued += len(f)
		packets = packets[n:]
		for s.queued > maxQueuedPackets {
			s.queued -= len(s.packets[0].b)
			s.stats.DroppedPackets += int64(s.packets[0].n)
			s.packets[0] = packetFrame{}
			s.packets = s.packets[1:]
		}
	}
	s.haste(now)
	s.wake(frame.Packet)
	return nil
}

// AddLink gives the session a link, on which both ends have said Hello. The
// session closes it.
func (s *Session) AddLink(c net.Conn) error {
	_, err := s.addLink(c, s.o.Version, false)
	return err
}

// addLink gives the session a link to a peer that speaks a version, and returns
// its ID.
func (s *Session) addLink(c net.Conn, version uint8, reserved bool) (id uint64, err error) {
	now := time.Now()
	l := &link{s: s, conn: c, wakeup: make(chan struct{}, 1), since: now, renew: renewAt(c, now), reserved: reserved}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		c.Close()
		return 0, s.err
	}
	s.nlinks++
	l.id = s.nlinks
	s.version = version
	s.links = append(s.links, l)
	s.share()
	for _, st := range s.streams { // what was said over the lost one may not have come
		s.say(st)
	}
	l.wake()
	s.mu.Unlock()
	go l.read()
	go l.write()
	return l.id, nil
}

// share divides the classes among the links: with more than one, the first, or one
// that is reserved, is kept for what must not wait behind bulk, and lent to bulk
// while there is no such thing. It is called when the links change.
func (s *Session) share() {
	var first *link
	n := 0
	for _, l := range s.links {
		if l.retired.IsZero() {
			if n++; first == nil || l.reserved && !first.reserved {
				first = l
			}
		}
	}
	for _, l := range s.links {
		l.high = l == first
		l.low = l.retired.IsZero() && (!l.high || n == 1)
		l.lends = l.high && !l.reserved
		l.wake()
	}
	close(s.changed)
	s.changed = make(chan struct{})
	s.recheck()
}

// recheck has the session, and its links, looked after now.
func (s *Session) recheck() {
	select {
	case s.rekeep <- struct{}{}:
	default:
	}
}

// meet takes note of the peer's life, as a Hello has it: the session's own, which is
// the first one, or another one, with which the peer has forgotten the session. When
// it has no link then, nothing is left to wait for.
func (s *Session) meet(life [16]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peerLife == ([16]byte{}) {
		s.peerLife = life
	}
	s.outlived = s.peerLife != life
	s.recheck()
}

// knows reports whether the session has met its peer.
func (s *Session) knows() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peerLife != [16]byte{}
}

// lose takes a link out. What was sent over it and is not acknowledged is sent
// again over others.
func (s *Session) lose(l *link, err error) {
	var bye *frame.GoAwayError
	if errors.As(err, &bye) {
		s.end(fmt.Errorf("%w: %w", ErrClosed, err), nil)
		return
	}
	if errors.Is(err, frame.ErrProtocol) {
		s.end(err, &frame.GoAwayError{Code: 1, Text: err.Error()})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.links {
		if other != l {
			continue
		}
		s.links = append(s.links[:i:i], s.links[i+1:]...)
		if l.retired.IsZero() {
			s.stats.LostLinks++
			if time.Since(l.since) < briefLife {
				s.brief++
			}
		}
		if len(s.links) == 0 {
			s.alone = time.Now()
			s.recheck()
		}
		s.share()
		for _, st := range s.streams {
			st.resend(l)
		}
		// Answers may have been lost with the link, whichever way went what
		// they answer: all of it is said again.
		for _, r := range s.resets {
			if r.said {
				r.said = false
				s.unsent = append(s.unsent, r)
			}
		}
		for _, st := range s.streams {
			s.say(st)
		}
		return
	}
}

// wake has an idle link that carries a class look for something to send. Bulk
// takes the first one, which it is only lent, last.
func (s *Session) wake(c frame.Class) {
	for i := range s.links {
		if c >= frame.Bulk {
			i = len(s.links) - 1 - i
		}
		if l := s.links[i]; l.idle && l.carries(c) {
			l.wake()
			return
		}
	}
}

// enqueue puts a stream among those with something to send.
func (s *Session) enqueue(st *Stream) {
	if !st.queued && !st.sendable() {
		return
	}
	now := time.Now()
	if !st.queued {
		st.queued, st.queuedAt = true, now
		s.ready[st.class] = append(s.ready[st.class], st)
	}
	if st.class < frame.Bulk {
		s.haste(now)
	}
	s.wake(st.class)
}

// haste notes that a class above bulk has something to send. Links that were
// idle are watched closely from then on.
func (s *Session) haste(now time.Time) {
	if now.UnixNano()-s.urgent.Swap(now.UnixNano()) >= int64(activeFor) {
		s.recheck()
	}
}

// say has the peer told what has come of a stream.
func (s *Session) say(st *Stream) {
	if !st.accepted && st.remote() {
		return // it would acknowledge the open header, which has not come
	}
	if !st.toSay {
		st.toSay = true
		s.windows = append(s.windows, st)
	}
	s.wake(frame.Control)
}

// known returns the stream that a frame is about, which the peer may just have
// opened; nil: it was forgotten.
func (s *Session) known(id uint64, class frame.Class) (*Stream, error) {
	if st := s.streams[id]; st != nil {
		return st, nil
	}
	if (id%2 == 1) == s.initiator {
		if id >= s.next {
			return nil, fmt.Errorf("%w: stream %d, which was not opened", frame.ErrProtocol, id)
		}
		return nil, nil
	}
	first := uint64(1)
	if s.initiator {
		first = 2
	}
	if id > s.highest {
		from := first
		if s.highest > 0 {
			from = s.highest + 2
		}
		if (id-from)/2+uint64(len(s.skipped)) > uint64(s.o.MaxStreams) {
			return nil, fmt.Errorf("%w: stream %d after %d", frame.ErrProtocol, id, s.highest)
		}
		for k := from; k < id; k += 2 {
			s.skipped[k] = struct{}{}
		}
		s.highest = id
	} else if _, ok := s.skipped[id]; !ok {
		return nil, nil
	} else {
		delete(s.skipped, id)
	}
	if err := s.heard(); err != nil {
		return nil, err
	}
	if len(s.streams) > 2*s.o.MaxStreams { // those beyond the limit are refused when their header comes
		return nil, fmt.Errorf("%w: too many streams without a header", frame.ErrProtocol)
	}
	st := newStream(s, id, class)
	st.openSaid = true
	s.streams[id] = st
	if lacks, ok := st.begin(); !ok {
		s.refuse(st, "no more "+lacks)
		return nil, s.heard()
	}
	return st, nil
}

// arrive takes in bytes of a stream. It owns p.
func (s *Session) arrive(id uint64, p piece, open []byte, fin bool, class frame.Class) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.stats.Received[class] += int64(len(p.b))
	st, err := s.known(id, class)
	if err != nil {
		return err
	}
	if st == nil {
		end := p.end()
		if fin {
			end++
		}
		s.stats.Duplicate += int64(len(p.b))
		p.free()
		s.lastWord(frame.WindowEntry{Stream: id, Received: end, Limit: frame.NoReader})
		return s.heard()
	}
	if open != nil && !st.accepted && st.remote() {
		st.accepted, st.header = true, open
		if len(s.streams) > s.o.MaxStreams {
			s.refuse(st, "too many streams")
			return s.heard()
		}
		select {
		case s.accept <- st:
		default:
			s.refuse(st, "nobody accepts the stream")
			return s.heard()
		}
	}
	if err := st.arrive(p, fin); err != nil {
		return err
	}
	if !st.accepted && st.remote() {
		return nil // nor is anything acknowledged before the open header
	}
	if class < frame.Bulk || fin || open != nil || len(st.early) > 0 || st.got-st.said >= min(st.window/8, ackBytes) {
		s.say(st)
	} else if !st.toSay {
		st.toSay = true // with the next one, or after a moment
		s.windows = append(s.windows, st)
		if s.lazy == nil {
			s.lazy = time.AfterFunc(ackDelay, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.lazy = nil
				s.wake(frame.Control)
			})
		}
	}
	return nil
}

// lastWord has the peer told of a stream that is not known here any more.
func (s *Session) lastWord(e frame.WindowEntry) {
	if n := len(s.final); n > 0 && s.final[n-1].Stream == e.Stream {
		e.Received = max(e.Received, s.final[n-1].Received)
		s.final = s.final[:n-1]
	}
	s.final = append(s.final, e)
	s.wake(frame.Control)
}

// heard returns an error if the peer has too much said to it that it does not hear.
func (s *Session) heard() error {
	if len(s.final) > maxFinal || len(s.resets) > 2*maxResets*s.o.MaxStreams {
		return fmt.Errorf("%w: it does not listen to what becomes of its streams", frame.ErrProtocol)
	}
	return nil
}

func (s *Session) refuse(st *Stream, why string) {
	s.reset(st, frame.ResetBody{Stream: st.id, Code: CodeBusy, Retry: busyRetry, Text: why})
}

// reset ends a stream here and at the peer.
func (s *Session) reset(st *Stream, body frame.ResetBody) {
	if s.streams[st.id] != st {
		st.drop()
		return
	}
	delete(s.streams, st.id)
	st.fail(&ResetError{Code: body.Code, Text: body.Text, Retry: body.Retry})
	st.drop()
	r := &reset{body: body}
	s.resets[st.id] = r
	s.unsent = append(s.unsent, r)
	s.wake(frame.Control)
	s.progress()
}

// wasReset takes in a Reset frame, and returns the answer to send.
func (s *Session) wasReset(b frame.ResetBody, answer bool) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if answer {
		delete(s.resets, b.Stream)
		s.progress()
		return nil, nil
	}
	st, err := s.known(b.Stream, frame.Control)
	if err != nil {
		return nil, err
	}
	if st != nil {
		delete(s.streams, st.id)
		st.fail(&ResetError{Code: b.Code, Text: b.Text, Remote: true, Retry: b.Retry})
	}
	return frame.ResetBody{Stream: b.Stream, Code: b.Code}.Encode(s.version, frame.FlagAnswer), nil
}

// acknowledged takes in a Window frame.
func (s *Session) acknowledged(es []frame.WindowEntry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range es {
		st := s.streams[e.Stream]
		if st == nil {
			continue // forgotten, as it should be
		}
		if err := st.acknowledged(e); err != nil {
			return err
		}
		s.enqueue(st)
		s.forget(st)
	}
	s.progress()
	return s.heard()
}

// forget drops a stream of which both directions have ended and been
// acknowledged.
func (s *Session) forget(st *Stream) {
	if st.complete() && s.streams[st.id] == st {
		delete(s.streams, st.id)
		st.dropEarly()
		st.uncharge()
		// The peer may not have heard that all has come.
		s.lastWord(st.entry())
	}
}
