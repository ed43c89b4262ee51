package fuse

import (
	"context"
	"encoding/json"
	"os"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/ledger"
	"github.com/spacestore/space/views"

	"golang.org/x/sys/unix"
)

// aboutVersion numbers what this view tells its successor of a mount: about,
// the kinds of entries in the ledger, what they say, and what was agreed with
// the kernel. One that a program does not know it refuses.
const aboutVersion = 1

// about is what the process after this one has to know of a mount from the start.
type about struct {
	Version int        `json:"version"`
	Options Options    `json:"options"`
	Info    views.Info `json:"info"`
	Dev     string     `json:"dev"`   // major:minor, as in mountinfo
	Init    []byte     `json:"init"`  // the kernel's first request, and
	Reply   []byte     `json:"reply"` // what it was told
}

func parseAbout(b []byte) (a about, err error) {
	if err := json.Unmarshal(b, &a); err != nil {
		return a, capsule.Errorf(capsule.Damaged, "what was kept of a mount is malformed: %v", err)
	}
	if a.Version != aboutVersion {
		return a, capsule.Errorf(capsule.Unsupported, "a mount at %s was begun by another version of this program (%d, this one knows %d), and can't go on in this one",
			a.Info.Target, a.Version, aboutVersion)
	}
	return a, nil
}

// HeldInfo returns what a listing says of a mount that waits for a process.
func HeldInfo(aboutIt []byte) (views.Info, error) {
	a, err := parseAbout(aboutIt)
	return a.Info, err
}

// prepare has the mount remember from the first request on.
func (m *mount) prepare(f system) error {
	l, err := ledger.New()
	if err != nil {
		return err
	}
	if err := f.remember(l); err != nil {
		l.Close()
		return err
	}
	m.ledger = l
	m.device.replied = f.replied()
	return nil
}

// hold gives the holder what it takes to go on with the mount.
func (m *mount) hold(o Options) {
	m.about.Init, m.about.Reply = m.device.init, m.device.reply
	b, err := json.Marshal(m.about)
	if err == nil {
		var fd int
		if fd, err = unix.FcntlInt(uintptr(m.device.fd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			device := os.NewFile(uintptr(fd), fuseDevice)
			defer device.Close()
			err = o.Holder.Hold(m.about.Info.ID, b, device, m.ledger.File())
		}
	}
	if err != nil {
		o.Logger.Warn("the mount will end with this node", "target", m.about.Info.Target, "err", err)
		return
	}
	m.holder = o.Holder
}

// Recalled is a mount of an earlier process, ready to go on.
type Recalled struct {
	m *mount
	f system
}

// Recall takes up what an earlier process has kept of a mount: it opens what was
// open and takes the locks that were held. When all mounts have been recalled,
// Resume goes on with each. It takes the files over, also when it fails.
func Recall(ctx context.Context, store Store, h Held, o Options) (*Recalled, error) {
	closeAll := func() {
		h.Device.Close()
		h.Memory.Close()
	}
	a, err := parseAbout(h.About)
	if err != nil {
		closeAll()
		return nil, err
	}
	a.Options.Logger, a.Options.Holder = o.Logger, o.Holder
	var info capsule.Info
	if !a.Options.Capsule.IsZero() {
		if info, err = store.Info(ctx, a.Options.Capsule); err != nil {
			closeAll()
			return nil, err
		}
	}
	fd, err := unix.FcntlInt(h.Device.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	h.Device.Close()
	if err != nil {
		h.Memory.Close()
		return nil, capsule.Wrap(capsule.IO, err, "take over the mount at %s", a.Info.Target)
	}
	l, err := ledger.Open(h.Memory)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	f, err := newSystem(ctx, store, info.Kind, a.Options)
	if err != nil {
		l.Close()
		unix.Close(fd)
		return nil, err
	}
	m := &mount{about: a, done: make(chan struct{}), begun: make(chan struct{}), ledger: l, holder: o.Holder}
	m.device = newDevice(f, fd, mountOptions(f, o.Logger), o.Logger)
	if err = f.inflight().open(fd); err == nil {
		if err = m.device.resume(a.Init, a.Reply); err == nil {
			err = f.recall(ctx, l)
		}
	}
	r := &Recalled{m, f}
	if err != nil {
		r.Drop()
		return nil, err
	}
	m.device.replied = f.replied()
	return r, nil
}

// Drop gives a recalled mount up.
func (r *Recalled) Drop() {
	r.f.close()
	r.f.inflight().close()
	r.m.device.close()
	_ = r.m.ledger.Close() // it was memory
}

// Resume goes on with the mount: with the requests that the process before had
// read and not answered, and then with those that came since.
func (r *Recalled) Resume() (*views.Projection, error) {
	if err := r.m.device.resend(); err != nil {
		r.Drop()
		return nil, err
	}
	close(r.m.begun)
	r.m.run(r.f)
	return &views.Projection{Info: r.m.about.Info, Backend: r.m}, nil
}

// Leave takes on no more requests, so that the next process goes on with the
// mount, and returns when those under way are answered, or give is closed. It
// reports false where the mount ends with this process.
func (m *mount) Leave(give <-chan struct{}) bool {
	if m.holder == nil {
		return false
	}
	m.device.leave(give)
	return true
}
