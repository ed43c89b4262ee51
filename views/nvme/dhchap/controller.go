package dhchap

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/spacestore/space/capsule"
)

// Config is what a role needs to know.
type Config struct {
	HostNQN, SubsysNQN string
	// HostSecret proves the host to the controller.
	HostSecret Secret
	// ControllerSecret proves the controller to the host. A host that has it
	// asks for the proof; a controller without one cannot give it.
	ControllerSecret Secret
	// Hashes and Groups are what may be used, best first; nil: all, first those
	// with 128 bits of strength and last no exchange at all.
	Hashes []Hash
	Groups []Group
}

var (
	allHashes = []Hash{SHA256, SHA384, SHA512}
	allGroups = []Group{FFDHE3072, FFDHE4096, FFDHE6144, FFDHE8192, FFDHE2048, Null}
)

func (c Config) withDefaults() (Config, error) {
	if c.Hashes == nil {
		c.Hashes = allHashes
	}
	if c.Groups == nil {
		c.Groups = allGroups
	}
	switch {
	case c.HostSecret.IsZero():
		return c, capsule.Errorf(capsule.Invalid, "authentication of %s needs the host's secret", c.HostNQN)
	case len(c.Hashes) == 0 || slices.ContainsFunc(c.Hashes, func(h Hash) bool { return !h.valid() }):
		return c, capsule.Errorf(capsule.Invalid, "authentication needs hash functions: sha256, sha384, sha512")
	case len(c.Groups) == 0 || slices.ContainsFunc(c.Groups, func(g Group) bool { return !g.valid() }):
		return c, capsule.Errorf(capsule.Invalid, "authentication needs Diffie-Hellman groups: null, ffdhe2048 to ffdhe8192")
	}
	return c, nil
}

// maxAttempts is how often a host may begin without coming to an end.
const maxAttempts = 4

// ErrSequence is the answer to a receive when there is nothing to receive: the
// command's status is Command Sequence Error.
var ErrSequence = errors.New("no authentication message is due")

// ErrShort is the answer to a receive whose buffer does not hold the message.
var ErrShort = errors.New("the buffer is too small for the authentication message")

// step is what happens next in a [Controller].
type step uint8

const (
	awaitNegotiate step = iota
	sendChallenge
	awaitReply
	sendSuccess1
	awaitSuccess2
	sendFailure1
	over // Failure1 was sent, or Failure2 received
)

// Controller is the controller's role on one queue.
type Controller struct {
	cfg           Config
	step          step
	authenticated bool
	attempts      int
	err           *FailureError

	tid       uint16
	hash      Hash
	exchange  exchange
	sequence  uint32
	challenge []byte
	response  []byte // to the host's challenge, nil: none was made
}

// NewController returns a controller that awaits the host's first message.
func NewController(cfg Config) (*Controller, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	var b [4]byte
	rand.Read(b[:])
	return &Controller{cfg: cfg, sequence: binary.LittleEndian.Uint32(b[:])}, nil
}

// Authenticated reports whether the host has proved itself.
func (c *Controller) Authenticated() bool { return c.authenticated }

// Err returns why authentication failed, nil if it did not.
func (c *Controller) Err() error {
	if c.err == nil {
		return nil
	}
	return c.err
}

// Over reports whether authentication failed and the host has been told, or
// told us: the connection has to end now.
func (c *Controller) Over() bool { return c.step == over }

// Send takes a message from the host, an Authentication Send command's data.
// That the message is wrong is no failure of the command: the next one to the
// host says so.
func (c *Controller) Send(p []byte) {
	if c.step == over {
		return
	}
	m, err := Parse(p)
	if err != nil {
		var f *FailureError
		errors.As(err, &f)
		c.fail(f.Reason)
		return
	}
	switch m := m.(type) {
	case *Negotiate:
		c.negotiate(m)
	case *Reply:
		c.reply(m)
	case *Success2:
		if c.step != awaitSuccess2 || m.Transaction != c.tid {
			c.fail(IncorrectMessage)
			return
		}
		c.succeed()
	case *Failure:
		c.err = &FailureError{Reason: m.Reason, Peer: true}
		c.authenticated = false
		c.step = over
	default:
		c.fail(IncorrectMessage)
	}
}

func (c *Controller) fail(r Reason) {
	c.err = &FailureError{Reason: r}
	c.authenticated = false
	c.step = sendFailure1
}

func (c *Controller) succeed() {
	c.authenticated = true
	c.attempts = 0
	c.step = awaitNegotiate
}

// negotiate takes the host's first message, at any time: it may begin anew.
func (c *Controller) negotiate(m *Negotiate) {
	c.tid = m.Transaction
	if c.err != nil {
		c.fail(c.err.Reason)
		return
	}
	if c.attempts++; c.attempts > maxAttempts {
		c.fail(Failed)
		return
	}
	if m.SecureChannel != 0 {
		c.fail(ConcatMismatch)
		return
	}
	h := slices.IndexFunc(c.cfg.Hashes, func(h Hash) bool { return slices.Contains(m.Hashes, h) })
	if h < 0 {
		c.fail(HashUnusable)
		return
	}
	g := slices.IndexFunc(c.cfg.Groups, func(g Group) bool { return slices.Contains(m.Groups, g) })
	if g < 0 {
		c.fail(GroupUnusable)
		return
	}
	c.hash = c.cfg.Hashes[h]
	c.exchange = exchange{group: c.cfg.Groups[g]} // its values are made when they are asked for
	c.step = sendChallenge
}

func (c *Controller) reply(m *Reply) {
	if c.step != awaitReply || m.Transaction != c.tid {
		c.fail(IncorrectMessage)
		return
	}
	if len(m.Response) != c.hash.Size() {
		c.fail(IncorrectPayload)
		return
	}
	shared, ok := c.exchange.shared(m.Public)
	if !ok {
		c.fail(GroupUnusable)
		return
	}
	t := transcript{c.hash, c.challenge, shared, c.sequence, c.tid}
	want := t.hostResponse(c.cfg.HostSecret, c.cfg.HostNQN, c.cfg.SubsysNQN)
	if subtle.ConstantTimeCompare(m.Response, want) != 1 {
		c.fail(Failed)
		return
	}
	c.response = nil
	if m.Challenge != nil {
		// A host that throws our challenge back wants us to compute for it.
		if c.cfg.ControllerSecret.IsZero() || bytes.Equal(m.Challenge, c.challenge) {
			c.fail(Failed)
			return
		}
		t = transcript{c.hash, m.Challenge, shared, m.Sequence, c.tid}
		c.response = t.controllerResponse(c.cfg.ControllerSecret, c.cfg.HostNQN, c.cfg.SubsysNQN)
	}
	c.exchange = exchange{}
	c.step = sendSuccess1
}

// Receive returns the next message to the host, an Authentication Receive
// command's data, for a buffer of size bytes. [ErrSequence] and [ErrShort] are
// failures of the command and change nothing.
func (c *Controller) Receive(size int) ([]byte, error) {
	switch c.step {
	case sendChallenge:
		if size < headerSize+c.hash.Size()+c.exchange.group.size() {
			return nil, ErrShort
		}
		c.exchange = newExchange(c.exchange.group)
		c.challenge = make([]byte, c.hash.Size())
		rand.Read(c.challenge)
		if c.sequence++; c.sequence == 0 {
			c.sequence = 1
		}
		c.step = awaitReply
		m := Challenge{c.tid, c.hash, c.exchange.group, c.sequence, c.challenge, c.exchange.public}
		return m.Append(nil), nil
	case sendSuccess1:
		if size < headerSize+c.hash.Size() {
			return nil, ErrShort
		}
		m := Success1{c.tid, c.hash.Size(), c.response}
		if c.response != nil {
			c.step = awaitSuccess2
		} else {
			c.succeed()
		}
		return m.Append(nil), nil
	case sendFailure1:
		if size < failureSize {
			return nil, ErrShort
		}
		c.step = over
		m := Failure{Transaction: c.tid, Reason: c.err.Reason}
		return m.Append(nil), nil
	}
	return nil, ErrSequence
}
