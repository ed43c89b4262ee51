package dhchap

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"slices"
)

// Host is the host's role on one queue, for one authentication. Its owner sends
// what [Host.Start] returns, then receives, gives that to [Host.Next], sends
// what comes out, and so on until done.
type Host struct {
	cfg  Config
	tid  uint16
	want []byte // the controller's response, nil: none asked for
	step step
}

// NewHost returns a host that is about to start transaction tid, which should be
// another one for each authentication on a queue.
func NewHost(cfg Config, tid uint16) (*Host, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Host{cfg: cfg, tid: tid}, nil
}

// Start returns the first message to the controller.
func (h *Host) Start() []byte {
	h.step = sendChallenge
	m := Negotiate{Transaction: h.tid, Hashes: h.cfg.Hashes, Groups: h.cfg.Groups}
	return m.Append(nil)
}

// Next takes a message from the controller. reply, unless it is nil, is to be
// sent, even if there is an error: the controller is to know too. With done,
// both sides are satisfied.
func (h *Host) Next(p []byte) (reply []byte, done bool, err error) {
	m, err := Parse(p)
	if err != nil {
		var f *FailureError
		errors.As(err, &f)
		return h.fail(f.Reason)
	}
	switch m := m.(type) {
	case *Challenge:
		if h.step != sendChallenge || m.Transaction != h.tid {
			return h.fail(IncorrectMessage)
		}
		return h.challenge(m)
	case *Success1:
		if h.step != sendSuccess1 || m.Transaction != h.tid {
			return h.fail(IncorrectMessage)
		}
		h.step = over
		if h.want == nil {
			return nil, true, nil
		}
		if subtle.ConstantTimeCompare(m.Response, h.want) != 1 {
			return h.fail(Failed)
		}
		ok := Success2{h.tid}
		return ok.Append(nil), true, nil
	case *Failure:
		h.step = over
		return nil, false, &FailureError{Reason: m.Reason, Peer: true}
	}
	return h.fail(IncorrectMessage)
}

func (h *Host) fail(r Reason) ([]byte, bool, error) {
	h.step = over
	m := Failure{Transaction: h.tid, Host: true, Reason: r}
	return m.Append(nil), false, &FailureError{Reason: r}
}

func (h *Host) challenge(m *Challenge) ([]byte, bool, error) {
	// A controller may choose only among what was offered, lest whoever sits
	// between the two weakens the choice.
	if !slices.Contains(h.cfg.Hashes, m.Hash) {
		return h.fail(HashUnusable)
	}
	if !slices.Contains(h.cfg.Groups, m.Group) {
		return h.fail(GroupUnusable)
	}
	x := newExchange(m.Group)
	shared, ok := x.shared(m.Public)
	if !ok {
		return h.fail(GroupUnusable)
	}
	t := transcript{m.Hash, m.Value, shared, m.Sequence, h.tid}
	reply := Reply{
		Transaction: h.tid,
		Response:    t.hostResponse(h.cfg.HostSecret, h.cfg.HostNQN, h.cfg.SubsysNQN),
		Public:      x.public,
	}
	h.want = nil
	if !h.cfg.ControllerSecret.IsZero() {
		reply.Challenge = make([]byte, m.Hash.Size())
		rand.Read(reply.Challenge)
		var b [4]byte
		rand.Read(b[:])
		reply.Sequence = max(binary.LittleEndian.Uint32(b[:]), 1) // 0 says that there is no challenge
		t = transcript{m.Hash, reply.Challenge, shared, reply.Sequence, h.tid}
		h.want = t.controllerResponse(h.cfg.ControllerSecret, h.cfg.HostNQN, h.cfg.SubsysNQN)
	}
	h.step = sendSuccess1
	return reply.Append(nil), false, nil
}
