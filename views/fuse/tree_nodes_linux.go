package fuse

import (
	"sync"

	"github.com/spacestore/space/capsule/tree"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// knownNodes are the inodes that the kernel knows. It needs some twenty bytes
// for each, and the kernel a thousand, which it gives up when memory is short.
type knownNodes struct {
	mu   sync.Mutex
	refs map[uint64]uint64     // of the kernel, by inode
	kept map[uint64]*tree.File // removed, and kept while the kernel knows them
	// partial: the kernel learned of some from an earlier process, and refers to
	// them as often as it says when it forgets them.
	partial bool
	memory  *treeMemory
}

// add takes a reference for the kernel.
func (k *knownNodes) add(ino uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.init()
	k.refs[ino]++
}

func (k *knownNodes) init() {
	if k.refs == nil {
		k.refs, k.kept = map[uint64]uint64{}, map[uint64]*tree.File{}
	}
}

func (k *knownNodes) forget(ino, count uint64) {
	k.mu.Lock()
	left := k.refs[ino] - min(count, k.refs[ino])
	var file *tree.File
	if left > 0 {
		k.refs[ino] = left
	} else {
		file = k.kept[ino]
		delete(k.refs, ino)
		delete(k.kept, ino)
	}
	if file != nil {
		k.memory.drop(ino)
	} else if k.kept[ino] != nil {
		_ = k.memory.keep(ino, left) // with the room that it had
	}
	k.mu.Unlock()
	if file != nil {
		file.Close()
	}
}

func (k *knownNodes) knows(ino uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.partial || k.refs[ino] > 0 || ino == tree.Root
}

// keep holds a removed inode until the kernel forgets it.
func (k *knownNodes) keep(file *tree.File) (err error) {
	k.mu.Lock()
	ino := file.Ino()
	if (k.partial || k.refs[ino] > 0) && k.kept[ino] == nil {
		k.init()
		k.kept[ino], file = file, nil
		err = k.memory.keep(ino, k.refs[ino])
	}
	k.mu.Unlock()
	if file != nil {
		file.Close()
	}
	return err
}

func (k *knownNodes) all() []uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := append(make([]uint64, 0, len(k.refs)+1), tree.Root)
	for ino := range k.refs {
		all = append(all, ino)
	}
	return all
}

func (k *knownNodes) closeAll() {
	k.mu.Lock()
	kept := k.kept
	k.refs, k.kept = nil, nil
	k.mu.Unlock()
	for _, file := range kept {
		file.Close()
	}
}

func (f *treeSystem) Forget(id, count uint64) { f.nodes.forget(id, count) }

// fillEntry answers with an inode: it takes a reference for the kernel.
func (f *treeSystem) fillEntry(out *gofuse.EntryOut, a *tree.Attr) {
	f.nodes.add(a.Ino)
	out.NodeId = a.Ino
	out.Generation = uint64(a.Gen)
	out.SetEntryTimeout(f.valid)
	out.SetAttrTimeout(f.valid)
	fillTreeAttr(&out.Attr, a)
}
