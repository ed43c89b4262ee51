package fuse

import (
	"encoding/binary"

	"github.com/spacestore/space/internal/ledger"
)

// What a mount needs to go on in another process is kept in a ledger. These are
// the kinds of its entries.
const (
	keptLife    ledger.Kind = iota + 1 // number 0: how many processes have served the mount
	keptHandle                         // by handle: a file that the kernel has open
	keptOrphan                         // by inode: removed, and still known to the kernel
	keptLock                           // by a number of its own: a lock
	keptDone                           // by request: a change that was made and not answered yet
	keptNode                           // by node: what it stands for (objects)
	keptLookups                        // by node: how often the kernel refers to it (objects)
	keptDir                            // by handle: an open directory (objects)
	keptPage                           // by a number of its own: after which name a page of a directory begins (objects)
)

// livesShift is where the number of the process is in handles, so that none
// gives one that an earlier process gave: a RELEASE may come again.
const livesShift = 40

// newLife returns what the handles that this process gives begin with.
func newLife(l *ledger.Ledger) (uint64, error) {
	var life uint64
	if v, ok := l.Get(keptLife, 0); ok && len(v) == 8 {
		life = binary.LittleEndian.Uint64(v) + 1
	}
	return life << livesShift, l.Put(keptLife, 0, words(life))
}

// words and wordsOf are numbers as bytes and back; nil where there are not n of them.
func words(w ...uint64) []byte {
	b := make([]byte, 0, 8*len(w))
	for _, v := range w {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func wordsOf(b []byte, n int) []uint64 {
	if len(b) != 8*n {
		return nil
	}
	w := make([]uint64, n)
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return w
}

// cameAgain tells whether a request was sent to an earlier process as well.
func cameAgain(unique uint64) bool { return unique&resent != 0 }
