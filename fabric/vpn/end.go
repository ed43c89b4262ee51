package vpn

import (
	"log/slog"
	"sync/atomic"

	"github.com/spacestore/space/fabric/frame"
)

// deviceRoom bounds the packets that wait for a device, in bytes.
const deviceRoom = frame.MaxPacketBytes

// end is what clients and exits have in common: a device, and counts.
type end struct {
	dev     Device
	log     *slog.Logger
	inbound *queue // out of tunnels, for the device
	sentPackets, sentBytes, receivedPackets, receivedBytes,
	malformed, foreign, dropped atomic.Int64
}

func (e *end) init(dev Device, log *slog.Logger) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e.dev, e.log, e.inbound = dev, log, newQueue(deviceRoom)
}

// Stats returns the counts.
func (e *end) Stats() Stats {
	return Stats{e.sentPackets.Load(), e.sentBytes.Load(), e.receivedPackets.Load(), e.receivedBytes.Load(),
		e.malformed.Load(), e.foreign.Load(), e.dropped.Load()}
}

// take has the device given the packets that are wanted; they are its own.
func (e *end) take(packets [][]byte, wanted func(packet) bool) {
	kept, size := packets[:0], 0
	for _, b := range packets {
		size += len(b) + 64 // with what a slice and its neighbours cost
		if p, ok := parse(b); !ok {
			e.malformed.Add(1)
		} else if !wanted(p) {
			e.foreign.Add(1)
		} else {
			kept = append(kept, b)
		}
	}
	if len(kept) > 0 && !e.inbound.put(batch{kept, size}) {
		e.dropped.Add(int64(len(kept)))
	}
}

// feed gives the device what take has let in, until stop is closed or the
// device fails.
func (e *end) feed(stop <-chan struct{}) error {
	for {
		b, ok := e.inbound.take(stop)
		if !ok {
			return nil
		}
		refused, err := e.dev.Send(b.packets)
		if err != nil {
			return err
		}
		bytes := 0
		for _, p := range b.packets {
			bytes += len(p)
		}
		e.dropped.Add(int64(refused))
		e.receivedPackets.Add(int64(len(b.packets) - refused))
		e.receivedBytes.Add(int64(bytes))
	}
}

// sender is a tunnel to send to, and its DNS stream if it has one now.
type sender struct {
	t   Tunnel
	dns atomic.Pointer[dnsFlow]
	out [][]byte // of the batch that is being sent
}

// add puts a packet among those that flush sends; DNS goes at once.
func (e *end) add(s *sender, p packet, b []byte) {
	if p.dns {
		if flow := s.dns.Load(); flow != nil {
			e.sent([][]byte{b}, flow.send(b))
			return
		}
	}
	s.out = append(s.out, b)
}

func (e *end) flush(s *sender) {
	if len(s.out) == 0 {
		return
	}
	e.sent(s.out, s.t.SendPackets(s.out) == nil) // a tunnel without a route loses packets
	clear(s.out)
	s.out = s.out[:0]
}

func (e *end) sent(packets [][]byte, ok bool) {
	if !ok {
		e.dropped.Add(int64(len(packets)))
		return
	}
	bytes := 0
	for _, b := range packets {
		bytes += len(b)
	}
	e.sentPackets.Add(int64(len(packets)))
	e.sentBytes.Add(int64(bytes))
}
