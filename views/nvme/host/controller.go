package host

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

// Options say who the host is and how it connects. The zero value is a host of
// no lasting name that uses no digests.
type Options struct {
	HostNQN string   // default: made from HostID
	HostID  [16]byte // default: random

	HeaderDigest, DataDigest bool

	// Secret proves the host to targets that ask for it. With ControllerSecret
	// the target has to prove itself too, whether it asks or not.
	Secret, ControllerSecret dhchap.Secret
	Hashes                   []dhchap.Hash // nil: all
	Groups                   []dhchap.Group

	// KeepAlive is how long the target waits for a sign of life before it gives
	// the host up; 0: for ever. The host gives one in half of that time.
	KeepAlive time.Duration
	// Timeout is how long the target may be silent when it owes an answer
	// (default 30 s).
	Timeout time.Duration
	// ReadBuffer is the size of a queue's read buffer (default 64 KiB). Large
	// reads are faster with a small one, for data then need not be copied.
	ReadBuffer int
	// Dial makes connections (default: a net.Dialer).
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// DefaultTimeout is [Options.Timeout] where none is given.
const DefaultTimeout = 30 * time.Second

const (
	adminDepth     = 31
	adminInCapsule = 8192 // fabrics commands and admin commands may carry this much (TCP 3.2)
	defaultBuffer  = 64 << 10
	// MaxQueues bounds the I/O queues of a controller.
	MaxQueues = 128
	// pageSize is the unit of MDTS, and what is read of a log page at once.
	pageSize = 4096
)

// HostNQN returns the name that a host with this identifier has by convention.
func HostNQN(id [16]byte) string {
	return fmt.Sprintf("nqn.2014-08.org.nvmexpress:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func (o Options) withDefaults() (Options, error) {
	if o.HostID == [16]byte{} {
		rand.Read(o.HostID[:])
		o.HostID[6] = o.HostID[6]&0x0f | 0x40 // a random UUID (RFC 9562)
		o.HostID[8] = o.HostID[8]&0x3f | 0x80
	}
	if o.HostNQN == "" {
		o.HostNQN = HostNQN(o.HostID)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.ReadBuffer == 0 {
		o.ReadBuffer = defaultBuffer
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	switch {
	case !wire.ValidNQN(o.HostNQN):
		return o, capsule.Errorf(capsule.Invalid, "%.80q is no NVMe qualified name (nqn.2014-08.org.example:name)", o.HostNQN)
	case o.KeepAlive < 0 || o.KeepAlive > 24*time.Hour:
		return o, capsule.Errorf(capsule.Invalid, "a keep-alive timeout of %v", o.KeepAlive)
	case o.Timeout < time.Millisecond:
		return o, capsule.Errorf(capsule.Invalid, "a timeout of %v", o.Timeout)
	case o.Secret.IsZero() && !o.ControllerSecret.IsZero():
		return o, capsule.Errorf(capsule.Invalid, "a target proves itself only to a host that does: there has to be a host secret too")
	}
	return o, nil
}

// Controller is a connected controller: its admin queue and its I/O queues.
type Controller struct {
	address string
	subsys  string
	o       Options
	id      uint16
	caps    uint64
	info    wire.IdentifyController
	admin   *Queue

	// flow is set when the target insists on submission queue flow control, which
	// a host does without that never has more in flight than there is room for.
	// Without it, reads may end with their data and need no response capsule.
	flow bool

	mu     sync.Mutex
	queues []*Queue
	events chan Event
	quit   chan struct{}
	closed bool
	wg     sync.WaitGroup
	tid    uint16 // of authentications
}

// Connect connects to a subsystem of the target at address (host:port) and
// brings its controller to ready. Its context is for connecting alone.
func Connect(ctx context.Context, address, subsysNQN string, o Options) (*Controller, error) {
	c, err := connect(ctx, address, subsysNQN, o)
	if err != nil {
		return nil, capsule.Wrap(capsule.Unavailable, err, "connect to %s at %s", subsysNQN, address)
	}
	return c, nil
}

func connect(ctx context.Context, address, subsysNQN string, o Options) (_ *Controller, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	if !wire.ValidNQN(subsysNQN) {
		return nil, capsule.Errorf(capsule.Invalid, "%.80q is no NVMe qualified name", subsysNQN)
	}
	c := &Controller{address: address, subsys: subsysNQN, o: o, quit: make(chan struct{})}
	var id [2]byte
	rand.Read(id[:])
	c.tid = uint16(id[0])<<8 | uint16(id[1])
	if c.admin, c.id, err = c.openQueue(ctx, 0, adminDepth, adminInCapsule); err != nil {
		return nil, err
	}
	if err := c.enable(ctx); err != nil {
		c.admin.fail(err)
		return nil, err
	}
	if o.KeepAlive > 0 {
		c.wg.Add(1)
		go c.keepAlive()
	}
	return c, nil
}

// openQueue connects, and authenticates where that is called for.
func (c *Controller) openQueue(ctx context.Context, qid uint16, depth, inCapsule int) (*Queue, uint16, error) {
	dialing, cancel := context.WithTimeout(ctx, c.o.Timeout)
	conn, err := c.o.Dial(dialing, "tcp", c.address)
	cancel()
	if err != nil {
		return nil, 0, err
	}
	q, err := newQueue(ctx, conn, queueOptions{
		admin: qid == 0, depth: depth, timeout: c.o.Timeout, headerDigest: c.o.HeaderDigest, dataDigest: c.o.DataDigest,
		inCapsule: inCapsule, buffer: c.o.ReadBuffer,
	})
	if err != nil {
		return nil, 0, err
	}
	id, err := c.connectQueue(ctx, q, qid)
	if err != nil {
		q.fail(err)
		return nil, 0, err
	}
	return q, id, nil
}

// connectQueue makes a connection queue qid of the controller (Base 6.3).
func (c *Controller) connectQueue(ctx context.Context, q *Queue, qid uint16) (uint16, error) {
	// A queue with n entries holds one command less.
	conn := wire.Connect{QID: qid, SQSize: uint16(q.depth), HostID: c.o.HostID, CNTLID: c.id, SubNQN: c.subsys, HostNQN: c.o.HostNQN}
	if qid == 0 {
		conn.CNTLID = wire.DynamicCNTLID
		conn.KATO = uint32(c.o.KeepAlive.Milliseconds())
	} else if !c.flow {
		conn.CAttr = wire.ConnectDisableSQFlow
	}
	var cmd Command
	conn.Command(&cmd.SQE)
	cmd.Data = conn.AppendData(nil)
	if err := q.Do(ctx, &cmd); err != nil {
		return 0, c.refused(err)
	}
	const wanted = wire.AuthRequiredATR | wire.AuthRequiredATR<<1 // ATR and ASCR
	if cmd.Result&(wire.AuthRequiredATR<<1) != 0 {
		return 0, capsule.Errorf(capsule.Unsupported, "the target wants a secure channel (TLS) made from authentication; this host has none")
	}
	switch required := cmd.Result&wanted != 0; {
	case required && c.o.Secret.IsZero():
		return 0, capsule.Errorf(capsule.Denied, "the target asks %s for authentication, and there is no secret to answer with", c.o.HostNQN)
	case required || !c.o.ControllerSecret.IsZero():
		if err := c.authenticate(ctx, q); err != nil {
			return 0, err
		}
	}
	return uint16(cmd.Result), nil
}

// refused explains what a connect's status means in practice.
func (c *Controller) refused(err error) error {
	var s *CommandError
	if !errors.As(err, &s) {
		return err
	}
	switch s.Status.Code() {
	case wire.ConnectInvalidHost:
		return capsule.Wrap(capsule.Denied, err, "the target does not let the host %s in", c.o.HostNQN)
	case wire.ConnectInvalidParam:
		if uint16(s.Result) == wire.ConnectOffSubNQN && s.Result&(1<<16) != 0 {
			return capsule.Wrap(capsule.NotFound, err, "the target has no subsystem of that name; spacectl nvme discover lists what it has")
		}
	}
	return err
}

// authenticate proves the host on one queue (Base 8.13).
func (c *Controller) authenticate(ctx context.Context, q *Queue) error {
	c.mu.Lock()
	c.tid++
	tid := c.tid
	c.mu.Unlock()
	h, err := dhchap.NewHost(dhchap.Config{
		HostNQN: c.o.HostNQN, SubsysNQN: c.subsys, HostSecret: c.o.Secret, ControllerSecret: c.o.ControllerSecret,
		Hashes: c.o.Hashes, Groups: c.o.Groups,
	}, tid)
	if err != nil {
		return err
	}
	transfer := func(fctype uint8, data []byte) error {
		cmd := Command{Data: data, Short: true}
		wire.Auth{SPSP0: wire.AuthSPSP0, SPSP1: wire.AuthSPSP1, SECP: wire.AuthSECP, Length: uint32(len(data))}.Command(&cmd.SQE, fctype)
		err := q.Do(ctx, &cmd)
		return capsule.Wrap(capsule.Denied, err, "authentication")
	}
	if err := transfer(wire.FCAuthSend, h.Start()); err != nil {
		return err
	}
	for {
		buf := make([]byte, dhchap.MaxMessage)
		if err := transfer(wire.FCAuthReceive, buf); err != nil {
			return err
		}
		reply, done, err := h.Next(buf)
		if reply != nil {
			if serr := transfer(wire.FCAuthSend, reply); err == nil && serr != nil {
				return serr
			}
		}
		if err != nil || done {
			return err
		}
	}
}

// Bits of the controller's capabilities and configuration (Base 3.1.3).
const (
	capMQES     = 0xffff
	capTimeout  = 24            // in units of 500 ms, 8 bits
	ccEntries   = 4<<20 | 6<<16 // entries of 16 and 64 bytes
	ccShutdown  = 1 << 14
	pollEvery   = 10 * time.Millisecond
	minShutdown = 5 * time.Second // what a target gets for its last flush if it asks for less (RTD3E),
	maxShutdown = time.Minute     // and if it asks for more
)

// enable brings the controller to ready and asks what it is (Base 3.5).
func (c *Controller) enable(ctx context.Context) error {
	var err error
	if c.caps, err = c.Property(ctx, wire.PropCAP, true); err != nil {
		return err
	}
	if err := c.setProperty(ctx, wire.PropCC, ccEntries|wire.CCEnable); err != nil {
		return err
	}
	limit := time.Duration(c.caps>>capTimeout&0xff) * 500 * time.Millisecond
	err = c.pollStatus(ctx, max(limit, time.Second), func(csts uint64) bool { return csts&wire.CSTSReady != 0 })
	if err != nil {
		return err
	}
	b, err := c.identify(ctx, wire.CNSController, 0)
	if err != nil {
		return err
	}
	return c.info.Parse(b)
}

// pollStatus reads the controller's status until ok says that it is as wanted.
func (c *Controller) pollStatus(ctx context.Context, limit time.Duration, ok func(csts uint64) bool) error {
	for start := time.Now(); ; {
		csts, err := c.Property(ctx, wire.PropCSTS, false)
		switch {
		case err != nil:
			return err
		case csts&wire.CSTSFatal != 0:
			return capsule.Errorf(capsule.Unavailable, "the controller says that it failed for good (CSTS.CFS)")
		case ok(csts):
			return nil
		case time.Since(start) > limit:
			return capsule.Errorf(capsule.Unavailable, "the controller is not ready after %v (CSTS %#x)", limit, csts)
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Property returns a controller property; wide ones have 8 bytes.
func (c *Controller) Property(ctx context.Context, offset uint32, wide bool) (uint64, error) {
	var cmd Command
	wire.Property{Wide: wide, Offset: offset}.Get(&cmd.SQE)
	err := c.admin.Do(ctx, &cmd)
	return cmd.Result, err
}

func (c *Controller) setProperty(ctx context.Context, offset uint32, v uint64) error {
	var cmd Command
	wire.Property{Offset: offset, Value: v}.Set(&cmd.SQE)
	return c.admin.Do(ctx, &cmd)
}

// Info returns what the controller said of itself when it was connected.
func (c *Controller) Info() *wire.IdentifyController { return &c.info }

// ID returns the controller's number in its subsystem.
func (c *Controller) ID() uint16 { return c.id }

// Version returns the version of the specification that the controller follows.
func (c *Controller) Version() string {
	v := c.info.Version
	s := fmt.Sprintf("%d.%d", v>>16, v>>8&0xff)
	if v&0xff != 0 {
		s += fmt.Sprintf(".%d", v&0xff)
	}
	return s
}

// Admin returns the admin queue.
func (c *Controller) Admin() *Queue { return c.admin }

// MaxTransfer returns how many bytes one command may move.
func (c *Controller) MaxTransfer() int {
	const most = 1 << 20 // of our own, where the controller sets none
	if c.info.MDTS == 0 || c.info.MDTS > 8 {
		return most
	}
	return min(most, pageSize<<c.info.MDTS) // in units of CAP.MPSMIN, 4 KiB over fabrics
}

// OpenQueues connects up to n I/O queues of up to depth commands each; the
// controller may grant fewer and shallower ones.
func (c *Controller) OpenQueues(ctx context.Context, n, depth int) ([]*Queue, error) {
	if n < 1 || n > MaxQueues || depth < 1 || depth >= maxDepth {
		return nil, capsule.Errorf(capsule.Invalid, "%d queues of %d commands; there may be 1 to %d of 1 to %d", n, depth, MaxQueues, maxDepth-1)
	}
	granted, err := c.SetFeature(ctx, wire.FeatQueues, 0, uint32(n-1)|uint32(n-1)<<16)
	if err != nil {
		return nil, capsule.Wrap(capsule.Other, err, "ask for %d I/O queues", n)
	}
	n = min(n, int(granted&0xffff)+1, int(granted>>16)+1)
	// A queue of MQES+1 entries holds MQES commands.
	depth = max(min(depth, int(c.caps&capMQES)), 1)
	if c.info.MaxCmd > 0 {
		depth = min(depth, int(c.info.MaxCmd))
	}
	inCapsule := max(int(c.info.IOCCSZ)*16-wire.SQELen, 0)
	if c.info.ICDOff != 0 {
		inCapsule = 0
	}
	var opened []*Queue
	for i := range n {
		q, _, err := c.openQueue(ctx, uint16(i+1), depth, min(inCapsule, 1<<20))
		var s *CommandError
		if !c.flow && errors.As(err, &s) && s.Status.Code() == wire.ConnectInvalidParam {
			c.flow = true
			q, _, err = c.openQueue(ctx, uint16(i+1), depth, min(inCapsule, 1<<20))
		}
		if err != nil {
			for _, q := range opened {
				q.Close()
			}
			return nil, capsule.Wrap(capsule.Unavailable, err, "I/O queue %d of %s", i+1, c.subsys)
		}
		opened = append(opened, q)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		for _, q := range opened {
			q.Close()
		}
		return nil, errClosed
	}
	c.queues = append(c.queues, opened...)
	return opened, nil
}

// keepAlive tells the target that the host lives, until the connection ends,
// and ends all of them if it cannot.
func (c *Controller) keepAlive() {
	defer c.wg.Done()
	t := time.NewTicker(c.o.KeepAlive / 2)
	defer t.Stop()
	for {
		select {
		case <-c.quit:
			return
		case <-t.C:
		}
		var cmd Command
		cmd.SQE.SetOpcode(wire.OpKeepAlive)
		if err := c.admin.Do(context.Background(), &cmd); err != nil {
			c.failQueues(err)
			return
		}
	}
}

func (c *Controller) failQueues(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.queues {
		q.fail(err)
	}
}

// Close shuts the controller down and ends its connections. Commands in flight
// fail; what a write's success promised holds, as after any shutdown.
func (c *Controller) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	close(c.quit)
	c.mu.Unlock()

	c.failQueues(errClosed)
	err := c.admin.Err()
	if err == nil {
		limit := min(max(minShutdown, time.Duration(c.info.RTD3E)*time.Microsecond), maxShutdown)
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		if err = c.setProperty(ctx, wire.PropCC, ccEntries|wire.CCEnable|ccShutdown); err == nil {
			err = c.pollStatus(ctx, limit, func(csts uint64) bool { return csts&wire.CSTSShutMask == wire.CSTSShutDone })
		}
		cancel()
	}
	c.admin.Close()
	c.wg.Wait()
	return capsule.Wrap(capsule.Unavailable, err, "disconnect from %s at %s", c.subsys, c.address)
}

// Subsystem returns the name of the subsystem that the controller belongs to.
func (c *Controller) Subsystem() string { return c.subsys }
