// Package agent is the protocol between a test and the test machine that it
// runs, and the machine's end of it: it runs scripts side by side, writes files,
// and passes on what the kernel logs. Messages are gob over one stream.
package agent

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Kind is what a message means.
type Kind int

// The test sends Run, Kill and Put; the machine sends the others.
const (
	Run    Kind = iota + 1 // start the script Data as Job
	Kill                   // end Job and every process that it started
	Put                    // write Data to the file Path, at its end if Append is set; done as Job
	Hello                  // the machine is up; Data: which kernel
	Stdout                 // Data: what Job wrote
	Stderr
	Exit // Job has ended, with Status; no more output follows
	Log  // Data: a line of the kernel's log
)

// Message is what goes either way.
type Message struct {
	Kind   Kind
	Job    uint32
	Path   string
	Append bool
	Data   []byte
	Status int // 128 and the signal's number for a job that was killed
}

// MaxData is how much a message carries.
const MaxData = 64 << 10

type server struct {
	mu   sync.Mutex
	out  *gob.Encoder
	err  error // of sending
	jobs map[uint32]*os.Process
}

// Serve does what the messages on conn ask until it ends. Jobs are scripts for
// /bin/sh -e. kernel is said in Hello; log, where it is not nil, is the kernel's,
// in the format of /dev/kmsg.
func Serve(conn io.ReadWriter, kernel string, log io.Reader) error {
	s := &server{out: gob.NewEncoder(conn), jobs: make(map[uint32]*os.Process)}
	s.send(Message{Kind: Hello, Data: []byte(kernel)})
	if log != nil {
		go s.follow(log)
	}
	in := gob.NewDecoder(bufio.NewReaderSize(conn, MaxData))
	for {
		var m Message
		if err := in.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		switch m.Kind {
		case Run:
			s.start(m.Job, string(m.Data))
		case Kill:
			s.mu.Lock()
			if p := s.jobs[m.Job]; p != nil {
				syscall.Kill(-p.Pid, syscall.SIGKILL) // it may be gone already
			}
			s.mu.Unlock()
		case Put:
			s.exit(m.Job, put(m))
		}
		s.mu.Lock()
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (s *server) send(m Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = s.out.Encode(m)
	}
}

// exit says how a job ended.
func (s *server) exit(job uint32, err error) {
	status := 0
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		status = exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			status = 128 + int(ws.Signal())
		}
	default:
		s.send(Message{Kind: Stderr, Job: job, Data: []byte(err.Error() + "\n")})
		status = 126
	}
	s.send(Message{Kind: Exit, Job: job, Status: status})
}

func (s *server) start(job uint32, script string) {
	cmd := exec.Command("/bin/sh", "-e", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Kill reaches all of it
	cmd.Stdout = sink{s, Message{Kind: Stdout, Job: job}}
	cmd.Stderr = sink{s, Message{Kind: Stderr, Job: job}}
	if err := cmd.Start(); err != nil {
		s.exit(job, err)
		return
	}
	s.mu.Lock()
	s.jobs[job] = cmd.Process
	s.mu.Unlock()
	go func() {
		err := cmd.Wait()
		s.mu.Lock()
		delete(s.jobs, job)
		s.mu.Unlock()
		s.exit(job, err)
	}()
}

// sink sends what a job writes.
type sink struct {
	s *server
	m Message
}

func (k sink) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), MaxData)
		k.m.Data = rest[:n]
		k.s.send(k.m)
		rest = rest[n:]
	}
	return len(p), nil
}

func put(m Message) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if m.Append {
		flags = os.O_WRONLY | os.O_APPEND
	} else if err := os.MkdirAll(filepath.Dir(m.Path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(m.Path, flags, 0o755)
	if err != nil {
		return err
	}
	if _, err := f.Write(m.Data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// follow passes on the kernel's log, whose records begin with fields that end
// at a semicolon, and may go on in lines that begin with a blank.
func (s *server) follow(log io.Reader) {
	record := make([]byte, 8<<10)
	for {
		n, err := log.Read(record)
		if errors.Is(err, syscall.EPIPE) {
			continue // some were overwritten before we read them
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.send(Message{Kind: Log, Data: fmt.Appendf(nil, "agent: the kernel's log: %v", err)})
			}
			return
		}
		fields, text, _ := strings.Cut(string(record[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		when := "0"
		if f := strings.Split(fields, ","); len(f) > 2 {
			when = f[2]
		}
		s.send(Message{Kind: Log, Data: fmt.Appendf(nil, "%ss %s", seconds(when), text)})
	}
}

// seconds writes a number of microseconds as seconds.
func seconds(micros string) string {
	for len(micros) < 7 {
		micros = "0" + micros
	}
	return micros[:len(micros)-6] + "." + micros[len(micros)-6:len(micros)-3]
}
