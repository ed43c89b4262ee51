package fuse

import (
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/spacestore/space/capsule"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	opForget        = 2
	opRead          = 15
	opWrite         = 16
	opFsync         = 20
	opGetXattr      = 22
	opListXattr     = 23
	opInit          = 26
	opReaddir       = 28
	opFsyncDir      = 30
	opSetLkw        = 33
	opInterrupt     = 36
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirPlus   = 44
	opCopyFileRange = 47

	// resent marks, in a request's unique number, that an earlier process may
	// have seen the request (FUSE_UNIQUE_RESEND).
	resent = 1 << 63

	// requestRoom is what a request takes beside its payload, and more.
	requestRoom = 8 << 10
	// replyRoom is what an answer takes beside its payload, and more.
	replyRoom = 1 << 10
	// smallRequest is up to which size a request is copied, so that its buffer
	// can take the next one.
	smallRequest = 4 << 10
)

// device speaks with the kernel over an open /dev/fuse: it reads requests, has
// go-fuse decode and pass them on, and writes the answers. go-fuse's own server
// is not used, because it can only begin a mount and not go on with one; and
// because of its buffers: a process that is killed while the kernel copies a
// request to memory that it first has to make present fails the request with
// EIO, so all of a buffer has to be present before.
type device struct {
	fd    int
	proto *gofuse.ProtocolServer
	init  []byte // the kernel's first request, and
	reply []byte // what it was told
	log   *slog.Logger
	// reader, unless nil, answers READ requests; panicked says what with if it fails to.
	reader   reader
	panicked func(any) gofuse.Status
	// replied, unless nil, is told of each request that was answered.
	replied func(unique uint64)

	size    int         // of a request, at most
	buffers chan []byte // for requests, kept for the next ones
	crew    *crew
	long    func(in *gofuse.InHeader) bool // whether a request may take long
	busy    sync.WaitGroup                 // requests that were taken on before leave and are being worked on
	// leaving is held, shared, while a request is taken on; whoever has set left
	// under it knows that no more are.
	leaving sync.RWMutex
	left    bool
	mute    atomic.Bool // answers are for the next process to give
}

// reader is a file system that answers READ requests by itself, with memory that
// go-fuse would have to copy. So the kernel's interrupts of them are its own too.
type reader interface {
	// read puts n bytes into buf, or has parts.
	read(in *gofuse.ReadIn, buf []byte) (n int, parts *streamed, status gofuse.Status)
	// interrupt reports whether it has that request.
	interrupt(unique uint64) bool
}

// planner is a file system that tells which requests it answers without waiting
// for anything, as a rule. Of others any may take long.
type planner interface {
	// long reports whether a request may take long.
	long(in *gofuse.InHeader) bool
}

// leaveWait bounds how long requests under way are waited for when another
// process goes on with the mount. One that waits for a lock may take for ever.
const leaveWait = time.Second

// maxReaders bounds how many goroutines wait for requests.
const maxReaders = 16

func newDevice(f gofuse.RawFileSystem, fd int, o *gofuse.MountOptions, log *slog.Logger) *device {
	r, _ := f.(reader)
	d := &device{
		fd:       fd,
		proto:    gofuse.NewProtocolServer(f, o),
		log:      log,
		reader:   r,
		panicked: o.PanicHandler,
		size:     o.MaxWrite + requestRoom,
	}
	readers := max(2, runtime.GOMAXPROCS(0))
	d.long = func(*gofuse.InHeader) bool { return true }
	if p, ok := f.(planner); ok {
		readers = max(1, runtime.GOMAXPROCS(0)-1)
		d.long = p.long
	}
	readers = min(readers, maxReaders)
	d.buffers = make(chan []byte, readers+2)
	d.crew = newCrew(readers, func() { go d.loop() })
	return d
}

// begin answers the kernel's first request, which settles what both sides can do.
func (d *device) begin() error {
	buf, err := d.buffer()
	if err != nil {
		return err
	}
	n, err := d.read(buf)
	if err != nil {
		return capsule.Wrap(capsule.IO, err, "read the kernel's first request")
	}
	d.init = append([]byte(nil), buf[:n]...)
	d.recycle(buf)
	if n < int(unsafe.Sizeof(gofuse.InHeader{})) || header(d.init).Opcode != opInit {
		return capsule.Errorf(capsule.Unsupported, "the kernel does not begin with INIT")
	}
	if d.reply, err = d.settle(d.init); err != nil {
		return err
	}
	return capsule.Wrap(capsule.IO, d.write([][]byte{d.reply}), "answer the kernel's first request")
}

// settle has go-fuse answer an INIT request.
func (d *device) settle(init []byte) ([]byte, error) {
	out := make([]byte, replyRoom)
	n, status := d.proto.HandleRequest([][]byte{init}, [][]byte{out})
	if !status.Ok() || n < int(unsafe.Sizeof(gofuse.OutHeader{})) {
		return nil, capsule.Errorf(capsule.Unsupported, "the kernel's FUSE is not understood: %v", status)
	}
	if h := (*gofuse.OutHeader)(unsafe.Pointer(&out[0])); h.Status != 0 {
		return nil, capsule.Errorf(capsule.Unsupported, "the kernel's FUSE is not understood: error %d", -h.Status)
	}
	return out[:n], nil
}

// initSize is how long an INIT request and its answer are, at least, with the
// flags of both words.
const (
	initInSize  = int(unsafe.Offsetof(gofuse.InitIn{}.Unused))
	initOutSize = int(unsafe.Sizeof(gofuse.OutHeader{})) + int(unsafe.Offsetof(gofuse.InitOut{}.MaxStackDepth))
)

func initOut(reply []byte) *gofuse.InitOut {
	return (*gofuse.InitOut)(unsafe.Pointer(&reply[unsafe.Sizeof(gofuse.OutHeader{})]))
}

// resume goes on with a mount whose first request another process has answered.
// What those two agreed on holds.
func (d *device) resume(init, reply []byte) error {
	if len(init) < initInSize || len(reply) < initOutSize || len(init) > smallRequest || len(reply) > smallRequest {
		return capsule.Errorf(capsule.Damaged, "the first request of the mount is malformed")
	}
	d.init, d.reply = append([]byte(nil), init...), append([]byte(nil), reply...)
	agreed := initOut(d.reply)
	ask := append([]byte(nil), init...)
	in := (*gofuse.InitIn)(unsafe.Pointer(&ask[0]))
	in.Flags, in.Flags2 = agreed.Flags, agreed.Flags2
	now, err := d.settle(ask)
	if err != nil {
		return err
	}
	if o := initOut(now); o.Flags64() != agreed.Flags64() || o.MaxWrite < agreed.MaxWrite {
		return capsule.Errorf(capsule.Unsupported, "the mount was begun with features %#x and requests of %d bytes, of which this program knows %#x and %d",
			agreed.Flags64(), agreed.MaxWrite, o.Flags64(), o.MaxWrite)
	}
	return nil
}

// canResend reports whether the kernel sends requests again, which takes Linux 6.9.
func (d *device) canResend() bool {
	return len(d.init) >= initInSize && (*gofuse.InitIn)(unsafe.Pointer(&d.init[0])).Flags64()&gofuse.CAP_HAS_RESEND != 0
}

// resend asks the kernel to send the requests again that were read and not answered.
func (d *device) resend() error {
	return capsule.Wrap(capsule.IO, d.notify(gofuse.NOTIFY_RESEND), "ask for requests again")
}

// serve answers requests until the mount ends or leave is called.
func (d *device) serve() {
	go d.loop()
	<-d.crew.done
}

// loop reads requests and works on them.
func (d *device) loop() {
	for d.crew.wait() {
		buf, err := d.buffer()
		n := 0
		if err == nil {
			n, err = d.read(buf)
		}
		if err != nil {
			if err != unix.ENODEV && err != unix.ECONNABORTED { // the mount has ended
				d.log.Error("FUSE device failed", "err", err)
			}
			d.crew.leave(true)
			return
		}
		if n < int(unsafe.Sizeof(gofuse.InHeader{})) {
			d.log.Error("FUSE request too short", "len", n)
			d.crew.take(false)
			continue
		}
		// Requests without an answer cost the kernel nothing: they are worked
		// through in turn.
		op := header(buf).Opcode
		unanswered := op == opForget || op == opBatchForget
		d.leaving.RLock()
		left := d.left
		if !left {
			d.busy.Add(1)
		}
		d.leaving.RUnlock()
		if left && !unanswered { // the next process gets it again
			d.crew.leave(true)
			return
		}
		long := !unanswered && d.long(header(buf))
		many := d.crew.take(long)
		d.work(buf, n, long || many)
		if !left {
			d.busy.Done()
		}
	}
}

// leave takes on no more requests, and returns when all under way are answered,
// or when they take too long: the next process gets those again.
func (d *device) leave(give <-chan struct{}) {
	d.leaving.Lock()
	d.left = true
	d.leaving.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.busy.Wait()
	}()
	select {
	case <-done:
	case <-time.After(leaveWait):
	case <-give:
	}
	d.mute.Store(true)
}

func (d *device) hasLeft() bool {
	d.leaving.RLock()
	defer d.leaving.RUnlock()
	return d.left
}

func (d *device) read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(d.fd, buf)
		// ENOENT: the request was taken back while it was read.
		if err != unix.EINTR && err != unix.ENOENT && err != unix.EAGAIN {
			return n, err
		}
	}
}

func header(request []byte) *gofuse.InHeader {
	return (*gofuse.InHeader)(unsafe.Pointer(&request[0]))
}

// work answers one request, which is in the first n bytes of buf. While it may
// take long, a small one does not keep the buffer.
func (d *device) work(buf []byte, n int, long bool) {
	in := buf[:n]
	if long && n <= smallRequest {
		in = append(make([]byte, 0, n), in...)
		d.recycle(buf)
	} else {
		defer d.recycle(buf)
	}
	if d.reader != nil {
		switch op := header(in).Opcode; {
		case op == opRead && n >= int(unsafe.Sizeof(gofuse.ReadIn{})):
			d.answerRead((*gofuse.ReadIn)(unsafe.Pointer(&in[0])))
			return
		case op == opInterrupt && n >= int(unsafe.Sizeof(gofuse.InterruptIn{})):
			if d.reader.interrupt((*gofuse.InterruptIn)(unsafe.Pointer(&in[0])).Unique) {
				return
			}
		}
	}
	out := replyBuffer(replySize(in))
	defer out.free()
	if n, _ := d.proto.HandleRequest([][]byte{in}, [][]byte{out.b}); n > 0 {
		d.answer(header(in), out.b[:n])
	}
}

// answerRead answers a READ request without go-fuse.
func (d *device) answerRead(in *gofuse.ReadIn) {
	in.Size = min(in.Size, maxIO)
	out := replyBuffer(replyRoom + int(in.Size))
	defer out.free()
	const head = int(unsafe.Sizeof(gofuse.OutHeader{}))
	n, parts, status := d.readOf(in, out.b[head:])
	if parts != nil {
		defer parts.done()
		n = parts.size
	}
	if !status.Ok() {
		n = 0 // the kernel takes no content with an error
	}
	*(*gofuse.OutHeader)(unsafe.Pointer(&out.b[0])) = gofuse.OutHeader{Length: uint32(head + n), Status: -int32(status), Unique: in.Unique}
	if parts != nil {
		d.answer(&in.InHeader, append([][]byte{out.b[:head]}, parts.parts...)...)
	} else {
		d.answer(&in.InHeader, out.b[:head+n])
	}
}

func (d *device) readOf(in *gofuse.ReadIn, buf []byte) (n int, parts *streamed, status gofuse.Status) {
	defer func() {
		if p := recover(); p != nil {
			n, parts, status = 0, nil, d.panicked(p)
		}
	}()
	return d.reader.read(in, buf)
}

// answer sends the answer to a request, unless that is for the next process to do.
func (d *device) answer(in *gofuse.InHeader, iov ...[]byte) {
	if d.mute.Load() {
		return
	}
	err := d.write(iov)
	if err != nil && err != unix.ENOENT && err != unix.ENODEV { // nobody waits for it any more
		d.log.Error("FUSE answer refused", "op", in.Opcode, "err", err)
	}
	if d.replied != nil {
		d.replied(in.Unique)
	}
}

// replySize is how long a request's answer may be.
func replySize(in []byte) int {
	size := uint32(0)
	switch header(in).Opcode {
	case opRead, opReaddir, opReaddirPlus:
		if len(in) >= int(unsafe.Sizeof(gofuse.ReadIn{})) {
			size = (*gofuse.ReadIn)(unsafe.Pointer(&in[0])).Size
		}
	case opGetXattr, opListXattr:
		if len(in) >= int(unsafe.Sizeof(gofuse.GetXAttrIn{})) {
			size = (*gofuse.GetXAttrIn)(unsafe.Pointer(&in[0])).Size
		}
	}
	return replyRoom + int(min(size, maxIO))
}

func (d *device) write(iov [][]byte) error {
	for {
		_, err := unix.Writev(d.fd, iov)
		if err != unix.EINTR {
			return err
		}
	}
}

// buffer returns memory for a request, all of it present.
func (d *device) buffer() ([]byte, error) {
	select {
	case b := <-d.buffers:
		return b, nil
	default:
	}
	b, err := unix.Mmap(-1, 0, d.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "memory for requests")
	}
	_ = unix.Mlock(b) // where the limit allows it; it is in use all the time anyway
	return b, nil
}

func (d *device) recycle(b []byte) {
	select {
	case d.buffers <- b:
	default:
		_ = unix.Munmap(b) // of a mapping that is ours
	}
}

// close frees what the device has, when nobody uses it any more.
func (d *device) close() {
	for {
		select {
		case b := <-d.buffers:
			_ = unix.Munmap(b)
		default:
			_ = unix.Close(d.fd)
			return
		}
	}
}

// reply is memory for an answer.
type reply struct {
	b    []byte
	pool *sync.Pool
}

// Answers are small, or are as long as the kernel's reads are.
var smallReplies, mediumReplies, largeReplies = replyPool(replyRoom + 4<<10), replyPool(replyRoom + maxRead), replyPool(replyRoom + maxIO)

func replyPool(size int) *sync.Pool {
	return &sync.Pool{New: func() any { return &reply{b: make([]byte, size)} }}
}

func replyBuffer(size int) *reply {
	pool := largeReplies
	switch {
	case size <= replyRoom+4<<10:
		pool = smallReplies
	case size <= replyRoom+maxRead:
		pool = mediumReplies
	}
	r := pool.Get().(*reply)
	r.pool = pool
	return r
}

func (r *reply) free() { r.pool.Put(r) }

// Notifications: what the kernel is told without having asked.

func (d *device) notify(code int32, parts ...[]byte) error {
	head := gofuse.OutHeader{Length: uint32(unsafe.Sizeof(gofuse.OutHeader{})), Status: -code}
	iov := append([][]byte{bytesOf(&head)}, parts...)
	for _, p := range parts {
		head.Length += uint32(len(p))
	}
	return d.write(iov)
}

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// EntryNotify makes the kernel look a name up again.
func (d *device) EntryNotify(parent uint64, name string) gofuse.Status {
	out := gofuse.NotifyInvalEntryOut{Parent: parent, NameLen: uint32(len(name))}
	return gofuse.ToStatus(d.notify(gofuse.NOTIFY_INVAL_ENTRY, bytesOf(&out), append([]byte(name), 0)))
}

// InodeNotify makes the kernel forget attributes and, unless off is negative, pages.
func (d *device) InodeNotify(node uint64, off, length int64) gofuse.Status {
	out := gofuse.NotifyInvalInodeOut{Ino: node, Off: off, Length: length}
	return gofuse.ToStatus(d.notify(gofuse.NOTIFY_INVAL_INODE, bytesOf(&out)))
}

// PruneNotify asks the kernel to let go of nodes that nobody uses.
func (d *device) PruneNotify(nodes []uint64) gofuse.Status {
	if len(nodes) == 0 {
		return gofuse.OK
	}
	out := gofuse.NotifyPruneOut{Count: uint32(len(nodes))}
	list := unsafe.Slice((*byte)(unsafe.Pointer(&nodes[0])), 8*len(nodes))
	err := d.notify(gofuse.NOTIFY_PRUNE, bytesOf(&out), list)
	if err == unix.EINVAL { // older than Linux 6.18
		return gofuse.ENOSYS
	}
	return gofuse.ToStatus(err)
}
