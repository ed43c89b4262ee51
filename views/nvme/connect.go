package nvme

import (
	"errors"
	"log/slog"
	"slices"

	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

// minAdminDepth is the least number of entries of an admin queue (Base 3.3.3).
const minAdminDepth = 32

// connectError is why a connect command fails.
type connectError struct {
	status wire.Status
	result uint64
}

// invalidData and invalidField name the offset of a wrong parameter.
func invalidData(offset uint16) *connectError {
	return &connectError{wire.ConnectInvalidParam | wire.DNR, wire.InvalidParam(true, offset)}
}

func invalidField(offset uint16) *connectError {
	return &connectError{wire.ConnectInvalidParam | wire.DNR, wire.InvalidParam(false, offset)}
}

// firstCommand takes the first command of a connection, which has to be a
// connect (Base 3.3.2.2, 6.3).
func (c *conn) firstCommand(h []byte) error {
	var sqe wire.SQE
	wire.ParseSQE(h, &sqe)
	if sqe.Opcode() != wire.OpFabrics || sqe.FCType() != wire.FCConnect {
		c.respond(&sqe, wire.CommandSequenceError|wire.DNR, 0)
		return nil
	}
	sgl := sqe.SGL()
	if sgl.Type != wire.SGLInCapsule || sgl.Address != 0 || sgl.Length != wire.ConnectDataLen || c.r.DataLen() < wire.ConnectDataLen {
		c.respond(&sqe, wire.SGLInvalidLength|wire.DNR, 0)
		return nil
	}
	data := make([]byte, wire.ConnectDataLen)
	switch err := c.r.ReadData(data); {
	case err == wire.ErrDataDigest:
		c.t.stats.digestErrors.Add(1)
		c.respond(&sqe, wire.TransientTransport, 0)
		return nil
	case err != nil:
		return err
	}
	req, err := wire.ParseConnect(&sqe, data)
	if err != nil {
		return err
	}
	result, failed := c.connect(&req)
	if failed != nil {
		c.log.Info("an NVMe host was refused", "host", req.HostNQN, "subsystem", req.SubNQN, "queue", req.QID, "status", failed.status.String())
		c.respond(&sqe, failed.status, failed.result)
		return nil
	}
	c.respond(&sqe, wire.Success, uint64(result))
	return nil
}

// connect makes the connection a queue. The result is the controller's ID and
// whether the host has to authenticate.
func (c *conn) connect(req *wire.Connect) (result uint32, failed *connectError) {
	switch {
	case req.RecFmt != 0:
		return 0, &connectError{wire.ConnectIncompatible | wire.DNR, 0}
	case !wire.ValidNQN(req.HostNQN):
		return 0, invalidData(wire.ConnectOffHostNQN)
	case req.SQSize == 0 || int(req.SQSize) >= c.t.o.QueueDepth || req.QID == 0 && req.SQSize < minAdminDepth-1:
		return 0, invalidField(wire.ConnectOffSQSize)
	}
	s := c.t.discovery
	if req.SubNQN != wire.DiscoveryNQN {
		var err error
		if s, err = c.t.subsystem(req.SubNQN); err != nil || !s.at(c.port.Port) {
			return 0, invalidData(wire.ConnectOffSubNQN)
		}
	}
	h, ok := s.admits(req.HostNQN)
	if !ok {
		return 0, &connectError{wire.ConnectInvalidHost | wire.DNR, 0}
	}
	if !s.discovery && req.HostID == [16]byte{} {
		// Reservations tell hosts apart by it (Base 8.19).
		return 0, invalidData(wire.ConnectOffHostID)
	}
	var auth *dhchap.Controller
	if !h.secret.IsZero() {
		var err error
		auth, err = dhchap.NewController(dhchap.Config{HostNQN: req.HostNQN, SubsysNQN: req.SubNQN, HostSecret: h.secret, ControllerSecret: h.ctrlSecret})
		if err != nil {
			c.log.Error("authentication of an NVMe host is not possible", "host", req.HostNQN, "error", err)
			return 0, &connectError{wire.InternalError, 0}
		}
	}
	c.qid, c.noFlow, c.auth = req.QID, req.CAttr&wire.ConnectDisableSQFlow != 0, auth
	c.nqn.Store(&req.HostNQN)
	// What the host sent on connections that are gone must not take effect
	// after what it is about to send; with I/O queues this is after a reset.
	if !s.awaitLingering(c, req.HostNQN) {
		return 0, &connectError{wire.ConnectBusy, 0}
	}
	var ctrl *controller
	if req.QID == 0 {
		ctrl, failed = s.newController(c, req, h)
	} else {
		ctrl, failed = s.addQueue(c, req)
	}
	if failed != nil {
		return 0, failed
	}
	inCapsule := adminInCapsule
	if req.QID > 0 {
		inCapsule = max(inCapsule, c.t.o.InCapsule)
	}
	c.becomeQueue(int(req.SQSize)+1, inCapsule)
	c.ctrl = ctrl
	c.log = c.log.With("host", req.HostNQN, "controller", ctrl.id, "queue", req.QID)
	c.mu.Lock()
	c.head = 1
	c.mu.Unlock()
	result = uint32(ctrl.id)
	if auth != nil {
		result |= wire.AuthRequiredATR
	} else {
		c.ready.Store(true)
		c.t.settled(c)
	}
	if req.QID == 0 {
		c.log.Info("NVMe host connected", "subsystem", req.SubNQN, "authentication", auth != nil)
	}
	return result, nil
}

// newController makes a controller for an admin queue.
func (s *subsystem) newController(c *conn, req *wire.Connect, h host) (*controller, *connectError) {
	if req.CNTLID != wire.DynamicCNTLID {
		// Controllers are made for hosts as they come, by no number of theirs
		// (Base 3.1.2, the dynamic controller model).
		return nil, invalidData(wire.ConnectOffCNTLID)
	}
	ctrl := &controller{s: s, port: c.port, admin: c, hostNQN: req.HostNQN, hostID: req.HostID, host: h.Host,
		since: c.t.clock.Now(), kato: req.KATO, queues: map[uint16]*conn{}, log: c.t.log.With("host", req.HostNQN)}
	ctrl.workers.limit = adminWorkers
	ctrl.lastSeen = ctrl.since
	ctrl.features = defaultFeatures()
	if s.discovery && ctrl.kato == 0 && req.KATO == 0 {
		ctrl.brief = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now, listed := s.hosts[req.HostNQN]
	switch {
	case s.removed || s.ports != nil && !slices.Contains(s.ports, c.port.ID):
		return nil, invalidData(wire.ConnectOffSubNQN)
	case !listed && !s.allowAny || now.Host != h.Host:
		// Who may connect has changed since it was looked at: from now on a
		// change would end this controller.
		return nil, &connectError{wire.ConnectInvalidHost | wire.DNR, 0}
	case len(s.controllers) >= s.t.o.MaxControllers:
		return nil, &connectError{wire.ConnectBusy, 0}
	}
	ctrl.id = s.newID()
	s.controllers[ctrl.id] = ctrl
	return ctrl, nil
}

// addQueue makes the connection an I/O queue of a controller.
func (s *subsystem) addQueue(c *conn, req *wire.Connect) (*controller, *connectError) {
	ctrl := s.controller(req.CNTLID)
	switch {
	case ctrl == nil || s.discovery:
		return nil, invalidData(wire.ConnectOffCNTLID)
	case ctrl.hostNQN != req.HostNQN:
		return nil, invalidData(wire.ConnectOffHostNQN)
	case ctrl.hostID != req.HostID:
		return nil, invalidData(wire.ConnectOffHostID)
	case ctrl.port != c.port:
		return nil, invalidData(wire.ConnectOffCNTLID)
	case int(req.QID) > s.t.o.MaxIOQueues:
		return nil, invalidField(wire.ConnectOffQID)
	}
	ctrl.mu.Lock()
	defer ctrl.mu.Unlock()
	switch {
	case ctrl.ended:
		return nil, invalidData(wire.ConnectOffCNTLID)
	case !ctrl.enabled() || !ctrl.admin.ready.Load():
		return nil, invalidField(wire.ConnectOffQID)
	case ctrl.queues[req.QID] != nil:
		return nil, &connectError{wire.CommandSequenceError | wire.DNR, 0}
	}
	ctrl.queues[req.QID] = c
	return ctrl, nil
}

// fabricsOps are the fabrics commands of a queue (Base 6).
var fabricsOps = map[uint8]*operation{
	wire.FCConnect:     {run: func(*command) (wire.Status, uint64) { return wire.CommandSequenceError | wire.DNR, 0 }},
	wire.FCPropertyGet: {run: (*command).propertyGet},
	wire.FCPropertySet: {run: (*command).propertySet},
	wire.FCDisconnect:  {run: (*command).disconnect},
	wire.FCAuthSend:    {run: (*command).authSend, dir: toController, length: (*command).authLength},
	wire.FCAuthReceive: {run: (*command).authReceive, dir: toHost, length: (*command).authLength},
}

// disconnect ends an I/O queue (Base 6.2). The host closes the connection when
// it has the answer.
func (cmd *command) disconnect() (wire.Status, uint64) {
	if cmd.c.qid == 0 {
		return wire.InvalidQueueType | wire.DNR, 0
	}
	if cmd.sqe[40] != 0 || cmd.sqe[41] != 0 {
		return wire.ConnectIncompatible | wire.DNR, 0
	}
	cmd.c.leaving.Store(true)
	return wire.Success, 0
}

// authMax is the longest authentication message: 8,192-bit groups and the
// largest hashes need less.
const authMax = 4096

func (cmd *command) authLength() (int, wire.Status) {
	a := wire.ParseAuth(&cmd.sqe)
	switch {
	case cmd.c.auth == nil:
		return 0, wire.CommandSequenceError | wire.DNR // nothing asked for it
	case a.SECP != wire.AuthSECP || a.SPSP0 != wire.AuthSPSP0 || a.SPSP1 != wire.AuthSPSP1:
		return 0, wire.InvalidField | wire.DNR
	case a.Length == 0 || a.Length > authMax:
		return 0, wire.InvalidField | wire.DNR
	}
	return int(a.Length), wire.Success
}

func (cmd *command) authSend() (wire.Status, uint64) {
	cmd.c.auth.Send(cmd.buf)
	cmd.c.authProgress()
	return wire.Success, 0
}

func (cmd *command) authReceive() (wire.Status, uint64) {
	p, err := cmd.c.auth.Receive(len(cmd.buf))
	switch {
	case errors.Is(err, dhchap.ErrSequence):
		return wire.CommandSequenceError | wire.DNR, 0
	case errors.Is(err, dhchap.ErrShort):
		return wire.InvalidField | wire.DNR, 0
	case err != nil:
		cmd.c.log.Error("authentication of an NVMe host failed", "error", err)
		return wire.InternalError, 0
	}
	copy(cmd.buf, p)
	cmd.c.authProgress()
	return wire.Success, 0
}

// authProgress draws the conclusions of an authentication message.
func (c *conn) authProgress() {
	switch {
	case c.auth.Over():
		c.t.stats.authFailures.Add(1)
		c.log.Warn("an NVMe host did not authenticate", "error", c.auth.Err(), slog.String("subsystem", c.ctrl.s.NQN))
		c.leaving.Store(true)
	case c.auth.Authenticated():
		if !c.ready.Load() {
			c.ready.Store(true)
			c.t.settled(c)
			c.log.Info("NVMe host authenticated", "subsystem", c.ctrl.s.NQN)
		}
	case c.auth.Err() != nil:
		c.ready.Store(false) // a reauthentication that failed
	}
}
