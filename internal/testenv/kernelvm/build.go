//go:build linux

package kernelvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// build returns the directory of the kernel and the guest's file systems,
// having made them if need be.
func build() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	var said bytes.Buffer
	cmd := exec.Command(filepath.Join(root, "scripts", "kernelvm", "build.sh"))
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("scripts/kernelvm/build.sh: %w\n%s", err, &said)
	}
	return strings.TrimSpace(string(out)), nil
}

// moduleRoot finds go.mod above the directory that the test runs in.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("there is no go.mod above here")
		}
		dir = up
	}
	return "", err
}

// makeInitrd writes base, and the agent built from source after it, to name.
func makeInitrd(name, base, dir string) (err error) {
	program := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-race=false", "-trimpath", "-ldflags", "-s -w", "-o", program,
		"github.com/spacestore/space/internal/testenv/kernelvm/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	from, err := os.Open(base)
	if err != nil {
		return err
	}
	defer from.Close()
	if _, err := io.Copy(f, from); err != nil {
		return err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := writeCpio(f, "agent", 0o100755, content); err != nil {
		return err
	}
	return writeCpio(f, "TRAILER!!!", 0, nil)
}

// writeCpio writes a file as the kernel wants it in an initramfs: in cpio's "new
// ASCII" format, its header and name padded to four bytes, and its content too.
func writeCpio(w io.Writer, name string, mode int, content []byte) error {
	pad := func(n int) string { return strings.Repeat("\x00", -n&3) }
	head := "070701"
	//                         inode, mode, uid, gid, links, mtime, size, device and rdev (2 each), name's length, checksum
	for _, v := range [...]int{0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		head += fmt.Sprintf("%08x", v)
	}
	head += name + "\x00"
	_, err := io.WriteString(w, head+pad(len(head))+string(content)+pad(len(content)))
	return err
}
