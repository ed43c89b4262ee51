package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// PutRequest says what to make of a stream of bytes.
type PutRequest struct {
	ID        capsule.ID      // whose content to replace; zero: the capsule that has Name, or a new one
	Name      string          // "": unnamed, or unchanged where ID is given
	Version   uint64          // fail with Conflict unless this is what ID has and would be replaced; 0: any
	Exclusive bool            // fail with Exists where Name is taken, instead of replacing
	Size      int64           // length of the stream, or -1 if unknown; any other length is an error
	Policy    *capsule.Policy // nil: the capsule's own; for a new one the default
}

// defaultPolicy is for reading only.
var defaultPolicy = capsule.DefaultPolicy()

// blockTokens bounds the blocks in memory of all puts together, and with them
// the CPU-bound work under way.
const blockTokens = 48

// block is a pipeline block on its way through a put.
type block struct {
	pipeline.Block
	list []extent
	pins []*pin // of the extents that hold data
}

var blocks = sync.Pool{New: func() any { return new(block) }}

func (b *block) recycle() {
	b.list, b.pins = b.list[:0], b.pins[:0]
	blocks.Put(b)
}

// coder is one worker's scratch memory.
type coder struct {
	z      pipeline.Compressor
	out    []byte
	sealed []*pin // pins whose records are in out
}

var coders = sync.Pool{New: func() any { return new(coder) }}

func newCoder() *coder {
	c := coders.Get().(*coder)
	c.reset()
	return c
}

func (c *coder) reset() { c.out, c.sealed = c.out[:0], c.sealed[:0] }

// putter is one put under way.
type putter struct {
	s       *Store
	req     PutRequest
	sealing pipeline.Sealing
	fresh   capsule.ID   // of the capsule, if the put makes one
	info    capsule.Info // of the capsule, once it is committed
	c       content
	list    []extent   // not yet in a page
	pins    []*pin     // of list
	paged   int64      // bytes in pages
	paging  chan error // gives the result of the writePages under way; nil: there is none
	hashers *sync.Pool
}

// Put stores what r gives as a capsule's content and returns the capsule as it
// then is. When it returns without error the content is durable; otherwise
// nothing has changed. A content that is replaced stays readable for the
// readers that have it open.
func (s *Store) Put(ctx context.Context, req PutRequest, r io.Reader) (capsule.Info, error) {
	info, err := s.put(ctx, req, r)
	if err != nil {
		return info, capsule.Wrap(ioKind(err), err, "put")
	}
	return info, nil
}

func (s *Store) put(ctx context.Context, req PutRequest, r io.Reader) (capsule.Info, error) {
	if err := s.enter(); err != nil {
		return capsule.Info{}, err
	}
	defer s.leave()
	p, err := s.newPutter(req)
	if err != nil {
		return capsule.Info{}, err
	}
	if err = p.write(ctx, r, req.Size); err == nil {
		err = p.finish(ctx)
	}
	if err == nil {
		err = s.commit(synced, p.apply)
	}
	info, err := p.end(err)
	if err != nil && ioKind(err) == capsule.NoSpace {
		s.giveBack(ctx)
	}
	return info, err
}

// putPolicy returns the policy under which a put's bytes are sealed, and fails
// early where the request cannot succeed as things are. The commit looks again.
func (s *Store) putPolicy(req PutRequest) (*capsule.Policy, error) {
	if req.Policy == nil && req.ID.IsZero() && !req.Exclusive && !s.ownPolicies.Load() {
		return defaultPolicy, nil // whether it replaces something or not
	}
	var rec capsuleRecord
	id, _, err := req.target(func(name string) (capsule.ID, error) { return lookupName(s.kv, name) })
	if err != nil {
		return nil, err
	}
	if !id.IsZero() {
		if rec, err = getCapsule(s.kv, id); err != nil {
			return nil, err
		}
	}
	if req.Policy != nil {
		return req.Policy, nil
	}
	return s.policy(s.kv, rec.policy)
}

// target returns the capsule that the request replaces; zero: it makes a new
// one. newName tells that the capsule does not have the request's name yet.
func (req *PutRequest) target(lookup func(name string) (capsule.ID, error)) (id capsule.ID, newName bool, err error) {
	id = req.ID
	if req.Name == "" {
		return id, false, nil
	}
	have, err := lookup(req.Name)
	if err != nil {
		return id, false, err
	}
	if !have.IsZero() && (req.Exclusive || !id.IsZero() && have != id) {
		return id, false, nameTaken(req.Name, have)
	}
	if id.IsZero() {
		id = have
	}
	return id, have.IsZero(), nil
}

// newPutter begins a put, unless it cannot succeed as things are.
func (s *Store) newPutter(req PutRequest) (*putter, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	if req.Name != "" {
		if err := capsule.CheckName(req.Name); err != nil {
			return nil, err
		}
	}
	policy, err := s.putPolicy(req)
	if err != nil {
		return nil, err
	}
	// How much of it is new, and how far it shrinks, only storing it tells.
	if err := s.checkSpace(0); err != nil {
		return nil, err
	}
	p := &putter{s: s, req: req, sealing: s.sealing(policy)}
	s.pins.useKey(p.sealing.Key)
	rand.Read(p.c.id[:]) // never fails (crypto/rand.Read)
	if policy.Dedupe && p.sealing.Encrypt {
		p.hashers = s.hashers
		return p, nil
	}
	if !policy.Dedupe {
		p.c.domain = p.c.id
	}
	p.hashers = s.newHashers(&p.c, p.sealing.Encrypt)
	return p, nil
}

// domainKey is the hash key of the dedup domain that a content belongs to.
// Contents that are encrypted never share a segment with ones that are not.
func (s *Store) domainKey(c *content, encrypted bool) [32]byte {
	domain := "store"
	if c.domain != [16]byte{} {
		domain = "content " + string(c.domain[:])
	}
	if !encrypted {
		domain = "clear " + domain
	}
	return pipeline.DomainKey(s.ring.HashKey(), domain)
}

func (s *Store) newHashers(c *content, encrypted bool) *sync.Pool {
	key := s.domainKey(c, encrypted)
	return &sync.Pool{New: func() any { return pipeline.NewHasher(key) }}
}

// write takes the stream through the pipeline. One block or less is done here
// and now; more goes through all cores.
func (p *putter) write(ctx context.Context, r io.Reader, size int64) error {
	if size >= 0 {
		// One byte more, to notice a stream that is too long.
		r = io.LimitReader(r, size+1)
	}
	split := pipeline.NewSplitter(r, p.s.chunker)
	var total int64
	next := func() (*block, bool, error) {
		b := blocks.Get().(*block)
		err := split.Next(&b.Block)
		if err != nil {
			b.recycle()
			if errors.Is(err, io.EOF) {
				err = nil
			} else {
				err = capsule.Wrap(capsule.IO, err, "read input")
			}
			return nil, false, err
		}
		total += int64(len(b.Data))
		if size >= 0 && total > size {
			b.recycle()
			return nil, false, capsule.Errorf(capsule.Invalid, "the input is longer than the %d bytes announced", size)
		}
		if err := p.s.tokens.acquire(ctx); err != nil {
			b.recycle()
			return nil, false, err
		}
		return b, true, nil
	}
	done := func(b *block) {
		p.s.tokens.release()
		b.recycle()
	}
	drop := func(b *block) {
		for _, pin := range b.pins {
			p.s.pins.release(pin)
		}
		done(b)
	}
	first, ok, err := next()
	if err == nil && ok {
		if split.EOF() {
			if err = p.encode(first); err == nil {
				err = p.collect(first)
			}
			if err != nil {
				drop(first)
			} else {
				done(first)
			}
		} else {
			workers := runtime.GOMAXPROCS(0)
			err = pipeline.Ordered(ctx, workers, 2*workers+2,
				func() (*block, bool, error) {
					if b := first; b != nil {
						first = nil
						return b, true, nil
					}
					return next()
				},
				func(_ int, b *block) error { return p.encode(b) },
				func(b *block) error {
					if err := p.collect(b); err != nil {
						drop(b)
						return err
					}
					done(b)
					return nil
				},
				drop)
			if first != nil {
				drop(first)
			}
		}
	}
	if err != nil {
		return err
	}
	if size >= 0 && total < size {
		return capsule.Errorf(capsule.Invalid, "the input ended after %d of the %d bytes announced", total, size)
	}
	p.c.size = total
	return nil
}

// encode names a block's chunks and appends records of the new ones to the
// logs. It fills b.list and b.pins.
func (p *putter) encode(b *block) error {
	h := p.hashers.Get().(*pipeline.Hasher)
	defer p.hashers.Put(h)
	c := newCoder()
	defer coders.Put(c)
	var err error
	b.Chunks(func(chunk []byte) {
		if err != nil {
			return
		}
		var x extent
		var pin *pin
		if x, pin, err = p.seal(c, h, chunk); pin != nil {
			b.pins = append(b.pins, pin)
		}
		b.list = append(b.list, x)
	})
	return p.s.appendSealed(c, err, p.s.checkSpace)
}

// seal makes an extent of a chunk, pinned unless it is a hole, and where it is
// new seals it into c, for appendSealed. Whoever calls seal must not wait for
// anybody's pin before that: another put may be waiting for this one's.
func (p *putter) seal(c *coder, h *pipeline.Hasher, chunk []byte) (x extent, pin *pin, err error) {
	x.len = int64(len(chunk))
	if x.hole = pipeline.IsZero(chunk); x.hole {
		return x, nil, nil
	}
	x.id = h.Sum(chunk)
	pin, err = p.s.pinSegment(c, x.id, chunk, p.sealing)
	return x, pin, err
}

// pinSegment pins a segment with the given plaintext. Where neither the store
// nor anybody else has it, it seals the segment into c, for appendSealed.
func (s *Store) pinSegment(c *coder, id pipeline.SegmentID, plain []byte, sealing pipeline.Sealing) (*pin, error) {
	pin, first := s.pins.acquire(id)
	if !first { // somebody else settles it
		return pin, nil
	}
	if s.findRow(pin) {
		return pin, pin.err
	}
	start := len(c.out)
	var hdr pipeline.Header
	c.out, hdr = pipeline.Seal(c.out, &c.z, id, plain, sealing)
	pin.row = segmentRow{off: int64(start), recordLen: int64(hdr.RecordLen()), plainLen: int64(hdr.PlainLen),
		key: hdr.Key, again: hdr.Again}
	c.sealed = append(c.sealed, pin)
	return pin, nil
}

// findRow looks for the row of a segment whose pin is the caller's to settle,
// and settles it if there is one, or the look-up fails.
func (s *Store) findRow(p *pin) (settled bool) {
	p.stored, p.err = s.kv.view(segmentKey(p.id), func([]byte) error { return nil })
	if settled = p.stored || p.err != nil; settled {
		s.pins.settle(p)
	}
	return settled
}

// appendSealed appends what was sealed into c to the logs, if room grants the
// bytes, and settles its pins; with err not nil they fail.
func (s *Store) appendSealed(c *coder, err error, room func(int64) error) error {
	var log uint64
	var off int64
	if err == nil && len(c.out) > 0 {
		log, off, err = s.append(c.out, func(log uint64) { s.pins.hold(log, c.sealed...) }, room)
		if capsule.KindOf(err) == capsule.NoSpace {
			s.spaceIsGone()
		}
	}
	for _, pin := range c.sealed {
		row := pin.row
		pin.row = segmentRow{}
		if err != nil {
			pin.err = err
		} else {
			row.log, row.off = log, row.off+off
			pin.row = row
		}
		s.pins.settle(pin)
	}
	return err
}

// append appends records to the logs, if room grants the bytes. It is one append
// at a time: what room has granted is on the disk when it is asked again.
func (s *Store) append(records []byte, written func(log uint64), room func(int64) error) (log uint64, off int64, err error) {
	s.appending.Lock()
	defer s.appending.Unlock()
	if err := room(int64(len(records))); err != nil {
		return 0, 0, err
	}
	log, off, err = s.logs.Append(records, written)
	return log, off, capsule.Wrap(ioKind(err), err, "store content")
}

// collect takes over an encoded block's extents, in order, and writes pages of
// those that have become many.
func (p *putter) collect(b *block) error {
	if err := settled(b.pins); err != nil {
		return err
	}
	pins := b.pins
	b.pins = b.pins[:0]
	for _, x := range b.list {
		if x.hole {
			p.add(x, nil)
			continue
		}
		p.add(x, pins[0])
		pins = pins[1:]
	}
	if len(p.list) > pagesAtOnce*pageExtents {
		// The last extent may be a hole that goes on.
		return p.startPages(len(p.list) - 1)
	}
	return nil
}

// add appends an extent to the content, with its pin if it is no hole.
func (p *putter) add(x extent, pin *pin) {
	if pin != nil {
		p.c.extents++
		p.pins = append(p.pins, pin)
	} else if n := len(p.list); n > 0 && p.list[n-1].hole {
		p.list[n-1].len += x.len
		return
	}
	p.list = append(p.list, x)
}

// settled waits until it is known where the segments of pins are.
func settled(pins []*pin) error {
	for _, pin := range pins {
		if <-pin.done; pin.err != nil {
			return pin.err
		}
	}
	return nil
}

// pagesAtOnce is how many pages are collected for one commit, since each costs
// a sync of the segment logs.
const pagesAtOnce = 4

// startPages moves the first n extents to pages while the put goes on: the logs
// are synced for that, and the stream need not wait for the disk.
func (p *putter) startPages(n int) error {
	if err := p.waitPages(); err != nil {
		return err
	}
	data := 0
	for _, x := range p.list[:n] {
		if !x.hole {
			data++
		}
	}
	list, pins := p.list[:n], p.pins[:data]
	p.list, p.pins = slices.Clone(p.list[n:]), slices.Clone(p.pins[data:])
	paging := make(chan error, 1)
	go func() { paging <- p.writePages(list, pins) }()
	p.paging = paging
	return nil
}

// waitPages waits for what startPages started.
func (p *putter) waitPages() error {
	if p.paging == nil {
		return nil
	}
	err := <-p.paging
	p.paging = nil
	return err
}

// writePages writes pages of extents, with their references, and releases
// their pins. Nothing depends on them until the put commits.
func (p *putter) writePages(list []extent, pins []*pin) error {
	first, start, written := p.c.pages == 0, p.paged, uint64(0)
	err := p.s.commit(naming, func(t *tx) error {
		if first {
			if err := t.b.set(contentKey(keyBuilding, p.c.id), nil); err != nil {
				return err
			}
		}
		if err := t.addRefs(list, pins); err != nil {
			return err
		}
		for page := range slices.Chunk(list, pageExtents) {
			if err := t.b.set(pageKey(p.c.id, start), encodePage(page)); err != nil {
				return err
			}
			for _, x := range page {
				start += x.len
			}
			written++
		}
		return nil
	})
	for _, pin := range pins {
		p.s.pins.release(pin)
	}
	if err != nil {
		return err
	}
	p.c.pages += written
	p.paged = start
	return nil
}

// finish does what a put has to do before its one change that counts.
func (p *putter) finish(ctx context.Context) error {
	if err := p.waitPages(); err != nil {
		return err
	}
	if p.c.pages > 0 || len(p.list) > inlineExtents {
		if len(p.list) > 0 {
			list, pins := p.list, p.pins
			p.list, p.pins = nil, nil
			if err := p.writePages(list, pins); err != nil {
				return err
			}
		}
	} else {
		p.c.inline = p.list
	}
	p.fresh = capsule.NewID(p.s.now())
	return ctx.Err()
}

// apply makes the content a capsule's, in a commit round.
func (p *putter) apply(t *tx) error {
	req := &p.req
	id, newName, err := req.target(t.findName)
	if err == nil && newName {
		err = t.checkFree(req.Name, id)
	}
	if err != nil {
		return err
	}
	now := p.s.now().UnixNano()
	rec := capsuleRecord{kind: capsule.Object, name: req.Name, created: now}
	var old *capsuleRecord
	if id.IsZero() {
		id = p.fresh
	} else {
		if rec, err = t.capsule(id); err != nil {
			return err
		}
		if rec.kind != capsule.Object {
			return capsule.Errorf(capsule.Invalid, "capsule %s is a %s; only objects are replaced by put", id, rec.kind)
		}
		if req.Version != 0 && rec.version != req.Version {
			return capsule.Errorf(capsule.Conflict, "capsule %s was replaced meanwhile", id)
		}
		was := rec
		old = &was
	}
	rec.version++
	rec.modified = now
	rec.content = p.c
	if req.Name != "" {
		rec.name = req.Name
	}
	if req.Policy != nil {
		var text string
		rec.policy, text = policyKeyText(req.Policy)
		if err := t.addPolicyRef(rec.policy, text, 1); err != nil {
			return err
		}
		if old != nil {
			if err := t.addPolicyRef(old.policy, "", -1); err != nil {
				return err
			}
		}
	}
	if err := t.addRefs(p.c.inline, p.pins); err != nil {
		return err
	}
	if p.c.pages > 0 {
		if err := t.b.delete(contentKey(keyBuilding, p.c.id)); err != nil {
			return err
		}
	}
	if old == nil {
		t.totals.capsules++
		err = t.setName(id, nil, &rec.name)
	} else {
		t.totals.logical -= old.content.size
		if err = t.discard(&old.content); err == nil && old.name != rec.name {
			err = t.setName(id, &old.name, &rec.name)
		}
	}
	if err != nil {
		return err
	}
	t.totals.logical += rec.content.size
	change := Change{ID: id, Name: rec.name}
	if old != nil && old.name != rec.name {
		change.OldName = old.name
	}
	t.changes = append(t.changes, change)
	p.info = rec.info(id)
	return t.b.set(capsuleKey(id), rec.encode())
}

// end gives up what a put holds, which has failed if err is not nil.
func (p *putter) end(err error) (capsule.Info, error) {
	if err != nil {
		p.abort()
		p.info = capsule.Info{}
	}
	p.releasePins()
	p.s.pins.unuseKey(p.sealing.Key)
	return p.info, err
}

func (p *putter) releasePins() {
	for _, pin := range p.pins {
		p.s.pins.release(pin)
	}
	p.pins = nil
}

// abort gives up what a failed put holds. Pages that it wrote become garbage;
// if even that cannot be written, the next open finds them by their marker.
func (p *putter) abort() {
	_ = p.waitPages() // the put has failed already
	p.releasePins()
	if p.c.pages > 0 {
		err := p.s.commit(lazy, func(t *tx) error {
			if err := t.b.delete(contentKey(keyBuilding, p.c.id)); err != nil {
				return err
			}
			p.c.size = 0 // was never part of the logical bytes
			return t.discard(&p.c)
		})
		if err != nil {
			p.s.log.Warn("an aborted put is cleaned up at the next open", "error", err)
		}
	}
	p.s.wakeReaper()
}

// policyKeyText returns a policy's ID and canonical text; the default policy's
// ID is zero.
func policyKeyText(p *capsule.Policy) (id policyID, text string) {
	text = string(p.YAML())
	if p.Equal(capsule.DefaultPolicy()) {
		return id, ""
	}
	sum := sha256.Sum256([]byte(text))
	copy(id[:], sum[:])
	return id, text
}

// policy returns the policy that an ID stands for.
func (s *Store) policy(r kvReader, id policyID) (*capsule.Policy, error) {
	if id == (policyID{}) {
		return capsule.DefaultPolicy(), nil
	}
	b, err := r.get(policyKey(id))
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, capsule.Errorf(capsule.Damaged, "the policy record is missing; set the capsule's policy again")
	}
	row, err := decodePolicy(b)
	if err != nil {
		return nil, err
	}
	p, err := capsule.ParsePolicy("stored policy", []byte(row.text))
	return p, capsule.Wrap(capsule.Damaged, err, "stored policy")
}

// sealing says how segments of capsules under a policy are sealed.
func (s *Store) sealing(p *capsule.Policy) pipeline.Sealing {
	k := s.keys.current()
	return pipeline.Sealing{Compression: compression(p), Encrypt: p.Encryption != "disabled", Key: k.version, Cipher: k.cipher}
}

func compression(p *capsule.Policy) pipeline.Compression {
	name, level := p.Codec()
	switch name {
	case "none":
		return pipeline.Compression{}
	case "lz4":
		return pipeline.Compression{Codec: pipeline.LZ4}
	case "s2":
		return pipeline.Compression{Codec: pipeline.S2}
	case "zstd":
		return pipeline.Compression{Codec: pipeline.Zstd, Level: level}
	}
	return pipeline.Auto
}
