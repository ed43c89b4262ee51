package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/spacestore/space/fabric"
)

// headerVersion is the first byte of a stream's header.
const headerVersion = 1

// header is what a forwarder says of a stream: version, then fields, each u16
// length and bytes. More fields may follow in newer versions of this package.
type header struct {
	target string         // "": the exposer's
	source netip.AddrPort // who has connected to the forwarder, where it is known
}

func (h header) encode() ([]byte, error) {
	b := []byte{headerVersion}
	source := ""
	if h.source.IsValid() {
		source = h.source.String()
	}
	for _, s := range []string{h.target, source} {
		if len(s) > fabric.MaxHeader/2 {
			return nil, fmt.Errorf("forward: a target of %d bytes", len(s))
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b, nil
}

func (h *header) decode(b []byte) error {
	if len(b) == 0 || b[0] != headerVersion {
		return errors.New("the stream is not of a forwarder that is known here")
	}
	b = b[1:]
	var fields [2]string
	for i := range fields {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return errors.New("the stream's header is cut off")
		}
		n := int(binary.BigEndian.Uint16(b))
		fields[i], b = string(b[2:2+n]), b[2+n:]
	}
	h.target, h.source = fields[0], netip.AddrPort{}
	if fields[1] == "" {
		return nil
	}
	a, err := netip.ParseAddrPort(fields[1])
	if err != nil {
		return errors.New("the stream's header has no address where one belongs")
	}
	h.source = a
	return nil
}
