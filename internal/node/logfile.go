package node

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/spacestore/space/internal/control/transfer"
)

// LogName is the log file of background nodes in SPACE_HOME. The one before
// it has ".1" added; together they take at most twice maxLog.
const LogName = "node.log"

const maxLog = 4 << 20

// logFile is the log of a background node. It is standard output and error
// too, so that what the Go runtime prints when it dies is not lost.
type logFile struct {
	path string
	mu   sync.Mutex
	f    *os.File
	size int64
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path}
	if err := l.open(); err != nil {
		return nil, transfer.FileError(err, "log")
	}
	return l, nil
}

// rotate moves a full log out of the way.
func rotate(path string) error {
	if st, err := os.Stat(path); err != nil || st.Size() < maxLog {
		return nil
	}
	return os.Rename(path, path+".1")
}

func (l *logFile) open() error {
	if err := rotate(l.path); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			f.Close()
			return os.NewSyscallError("dup3", err)
		}
	}
	if l.f != nil {
		l.f.Close()
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Write implements io.Writer; one call is one line.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size >= maxLog {
		if err := l.open(); err != nil { // better a log that grows than none
			l.size = 0
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}
