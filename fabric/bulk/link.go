package bulk

import (
	"errors"
	"fmt"
)

// open begins a conversation.
func (l *link) open(name string) (info, error) {
	if err := errors.Join(l.send(msgOpen, []byte(name)), l.flush()); err != nil {
		return info{}, err
	}
	b, err := l.expect(msgInfo, 12+maxVersion)
	if err != nil {
		return info{}, err
	}
	return decodeInfo(b)
}

// expect reads a message of one type.
func (l *link) expect(want message, limit int) ([]byte, error) {
	m, n, err := l.next()
	if err != nil {
		return nil, unexpected(err)
	}
	if m == msgError {
		return nil, l.remoteError(n)
	}
	if m != want {
		return nil, fmt.Errorf("%w: message %d where %d belongs", errProtocol, m, want)
	}
	return l.body(n, limit)
}

func (l *link) remoteError(n int) error {
	b, err := l.body(n, 1+maxErrorText)
	if err != nil || len(b) == 0 {
		return errors.Join(errProtocol, err)
	}
	return &RemoteError{Code(b[0]), string(b[1:])}
}
