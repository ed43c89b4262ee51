package bulk

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/spacestore/space/internal/vfs"
)

// Journal remembers what a transfer has verified and written. The file is a
// header, then records; what follows the first record that is torn is ignored.
type Journal struct {
	fs   vfs.FS
	path string
	boot BootID

	mu    sync.Mutex
	f     vfs.File
	err   error // the first one; nothing is noted after it
	info  info
	have  map[int]note
	notes int // ever
	sync  int // how many of them a sync covers
}

// note says that a chunk is in the sink.
type note struct {
	hash Hash
	nth  int
}

// BootID names one life of the machine, from power-on to power-off.
type BootID [16]byte

// The records: type, body, CRC-32C of both.
const (
	recChunk  = 'c' // u32 chunk, hash
	recGone   = 'g' // u32 chunk: it is not what it should be, or about to be written anew
	recSynced = 's' // u32: so many chunk records are durable in the sink
	recBoot   = 'b' // boot ID: of the records that follow
)

const journalMagic = "space-bulk-journal/1\n"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendRecord(b []byte, kind byte, parts ...[]byte) []byte {
	start := len(b)
	b = append(b, kind)
	for _, p := range parts {
		b = append(b, p...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func bodyLength(kind byte) int {
	switch kind {
	case recChunk:
		return 4 + len(Hash{})
	case recSynced, recGone:
		return 4
	case recBoot:
		return len(BootID{})
	}
	return -1
}

// OpenJournal opens or makes the journal at path. boot is this life of the
// machine; notes of an earlier life hold only where a sync covers them.
func OpenJournal(fsys vfs.FS, path string, boot BootID) (*Journal, error) {
	j := &Journal{fs: fsys, path: path, boot: boot, have: map[int]note{}}
	b, err := vfs.ReadFile(fsys, path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bulk: journal: %w", err)
	}
	j.load(b)
	return j, nil
}

// load takes in what a journal's file says; of a damaged one nothing, or the
// beginning.
func (j *Journal) load(b []byte) {
	b, ok := bytes.CutPrefix(b, []byte(journalMagic))
	if !ok || len(b) < 2 {
		return
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n+4 || crc32.Checksum(b[:2+n], castagnoli) != binary.BigEndian.Uint32(b[2+n:]) {
		return
	}
	i, err := decodeInfo(b[2 : 2+n])
	if err != nil {
		return
	}
	j.info = i
	var boot BootID
	for b = b[2+n+4:]; len(b) > 0; {
		n := 1 + bodyLength(b[0])
		if n == 0 || len(b) < n+4 || crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
			break
		}
		body := b[1:n]
		switch b[0] {
		case recChunk:
			if c := int(binary.BigEndian.Uint32(body)); c < i.chunks() {
				j.put(c, Hash(body[4:]))
			}
		case recGone:
			delete(j.have, int(binary.BigEndian.Uint32(body)))
		case recSynced:
			j.sync = max(j.sync, min(int(binary.BigEndian.Uint32(body)), j.notes))
		case recBoot:
			if BootID(body) != boot {
				j.forgetUnsynced()
				boot = BootID(body)
			}
		}
		b = b[n+4:]
	}
	if boot != j.boot {
		j.forgetUnsynced()
	}
}

// put takes in a note.
func (j *Journal) put(c int, h Hash) {
	j.have[c] = note{h, j.notes}
	j.notes++
}

// forgetUnsynced drops what a power cut may have taken from the sink.
func (j *Journal) forgetUnsynced() {
	for c, n := range j.have {
		if n.nth >= j.sync {
			delete(j.have, c)
		}
	}
	j.notes = j.sync
}

// begin makes the journal one of a payload, and says which chunks are there.
// Notes about another payload are dropped.
func (j *Journal) begin(i info) (have map[int]Hash, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.info != i {
		j.info, j.have, j.notes, j.sync = i, map[int]note{}, 0, 0
	}
	order := slices.Collect(maps.Keys(j.have))
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(j.have[a].nth, j.have[b].nth) })
	head := i.encode()
	b := binary.BigEndian.AppendUint16([]byte(journalMagic), uint16(len(head)))
	b = append(b, head...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[len(journalMagic):], castagnoli))
	b = appendRecord(b, recBoot, j.boot[:])
	synced := 0
	have = make(map[int]Hash, len(order))
	for nth, c := range order { // those that a sync covers come first
		n := j.have[c]
		if n.nth < j.sync {
			synced++
		}
		b = appendRecord(b, recChunk, u32(uint32(c)), n.hash[:])
		have[c] = n.hash
		j.have[c] = note{n.hash, nth}
	}
	j.notes, j.sync = len(order), synced
	b = appendRecord(b, recSynced, u32(uint32(j.sync)))
	if err := vfs.WriteFileAtomic(j.fs, j.path, b); err != nil {
		return nil, fmt.Errorf("bulk: journal: %w", err)
	}
	if j.f, err = j.fs.OpenReadWrite(j.path, "space-bulk"); err != nil {
		return nil, fmt.Errorf("bulk: journal: %w", err)
	}
	if _, err := io.CopyN(io.Discard, j.f, int64(len(b))); err != nil { // go to the end
		return nil, fmt.Errorf("bulk: journal: %w", err)
	}
	return have, nil
}

// Verified returns the size of a chunk and the chunks that were noted, with their
// hashes; none when there is no journal.
func (j *Journal) Verified() (chunk int, have map[int]Hash) {
	j.mu.Lock()
	defer j.mu.Unlock()
	have = make(map[int]Hash, len(j.have))
	for c, n := range j.have {
		have[c] = n.hash
	}
	return j.info.Chunk, have
}

// Write makes the journal, durably, that of a payload of which these chunks are
// durable in the sink. Close it.
func (j *Journal) Write(size int64, chunk int, have map[int]Hash) error {
	j.mu.Lock()
	i := info{Size: size, Chunk: chunk}
	err := i.check()
	if err == nil {
		j.info, j.have, j.notes = i, map[int]note{}, 0
		for c, h := range have {
			j.put(c, h)
		}
		j.sync = j.notes
	}
	j.mu.Unlock()
	if err == nil {
		_, err = j.begin(i)
	}
	return err
}

// note says that a chunk was written to the sink.
func (j *Journal) note(chunk int, h Hash) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.write(appendRecord(nil, recChunk, u32(uint32(chunk)), h[:]))
	if j.err == nil {
		j.put(chunk, h)
	}
	return j.err
}

// gone says, durably, that a chunk is not there any more: it is about to be
// written anew, and a crash may leave some of both.
func (j *Journal) gone(chunk int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.write(appendRecord(nil, recGone, u32(uint32(chunk))))
	delete(j.have, chunk)
	if j.err == nil {
		if err := j.f.Sync(); err != nil {
			j.err = fmt.Errorf("bulk: journal: %w", err)
		}
	}
	return j.err
}

// mark returns how much synced may say after a sync of the sink that begins now.
func (j *Journal) mark() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.notes
}

// synced says, durably, that a sync of the sink covers what was noted up to mark.
func (j *Journal) synced(mark int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.write(appendRecord(nil, recSynced, u32(uint32(mark))))
	if j.err == nil {
		if err := j.f.Sync(); err != nil {
			j.err = fmt.Errorf("bulk: journal: %w", err)
		} else {
			j.sync = mark
		}
	}
	return j.err
}

// lost says that a sync of the sink has failed: what was noted since the last one
// may be gone, though the machine has not been off.
func (j *Journal) lost() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.write(appendRecord(nil, recBoot, make([]byte, len(BootID{}))))
	if j.err != nil {
		return errors.Join(j.err, j.fs.Remove(j.path))
	}
	if err := j.f.Sync(); err != nil {
		j.err = fmt.Errorf("bulk: journal: %w", err)
	}
	return j.err
}

func (j *Journal) write(b []byte) {
	if j.err == nil {
		if _, err := j.f.Write(b); err != nil {
			j.err = fmt.Errorf("bulk: journal: %w", err)
		}
	}
}

// Close closes the file; what was noted stays.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

// Remove closes the journal and removes its file: the transfer is done.
func (j *Journal) Remove() error {
	err := j.Close()
	if rerr := j.fs.Remove(j.path); err == nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = rerr
	}
	return err
}
