package fuse

import (
	"os"
	"testing"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// badReader fails after it has read something.
type badReader struct{ gofuse.RawFileSystem }

func (badReader) read(*gofuse.ReadIn, []byte) (int, *streamed, gofuse.Status) {
	return 5, nil, gofuse.EIO
}

func (badReader) interrupt(uint64) bool { return false }

// The kernel takes no answer that has both an error and content.
func TestFailedReadIsAnsweredWithoutContent(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	d := newDevice(badReader{gofuse.NewDefaultRawFileSystem()}, int(w.Fd()), &gofuse.MountOptions{MaxWrite: maxRead}, new(logBuffer).logger())
	in := gofuse.ReadIn{InHeader: gofuse.InHeader{Opcode: opRead, Unique: 7, Length: uint32(unsafe.Sizeof(gofuse.ReadIn{}))}, Size: 4096}
	request, err := d.buffer()
	if err != nil {
		t.Fatal(err)
	}
	d.work(request, copy(request, bytesOf(&in)), true)
	unix.Munmap(<-d.buffers)
	answer := make([]byte, 4096)
	n, err := r.Read(answer)
	if err != nil {
		t.Fatal(err)
	}
	want := gofuse.OutHeader{Length: uint32(n), Status: -int32(gofuse.EIO), Unique: 7}
	if head := *(*gofuse.OutHeader)(unsafe.Pointer(&answer[0])); n != int(unsafe.Sizeof(head)) || head != want {
		t.Errorf("%d bytes, %+v", n, head)
	}
}
