package nvme

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/spacestore/space/views/nvme/wire"
)

// errorLog is what went wrong with a controller's commands, the last first.
type errorLog struct {
	count   uint64
	entries []wire.ErrorEntry
}

func (l *errorLog) add(e wire.ErrorEntry) {
	l.count++
	e.Count = l.count
	if len(l.entries) == errorEntries {
		l.entries = l.entries[:errorEntries-1]
	}
	l.entries = slices.Insert(l.entries, 0, e)
}

// logPageLength returns how much of a log page is asked for: NUMD (Base 5.16).
func (cmd *command) logPageLength() (int, wire.Status) {
	dwords := uint64(cmd.sqe.CDW(10)>>16) | uint64(cmd.sqe.CDW(11)&0xffff)<<16
	n := (dwords + 1) * 4
	if n > uint64(cmd.c.t.o.MaxTransfer) {
		return 0, wire.InvalidField | wire.DNR
	}
	return int(n), wire.Success
}

// logPage returns a part of a log page (Base 5.16). cmd.buf is all zeroes.
func (cmd *command) logPage() (wire.Status, uint64) {
	c := cmd.c.ctrl
	id := uint8(cmd.sqe.CDW(10))
	retain := cmd.sqe.CDW(10)>>15&1 != 0
	offset := uint64(cmd.sqe.CDW(12)) | uint64(cmd.sqe.CDW(13))<<32
	if offset%4 != 0 {
		return wire.InvalidField | wire.DNR, 0
	}
	page, status := c.log1(id, uint8(cmd.sqe.CDW(10)>>8&0x7f), retain, cmd)
	if status != wire.Success {
		return status, 0
	}
	if offset > uint64(len(page)) {
		return wire.InvalidField | wire.DNR, 0
	}
	copy(cmd.buf, page[offset:])
	return wire.Success, 0
}

// log1 makes a log page.
func (c *controller) log1(id, specific uint8, retain bool, cmd *command) (page []byte, status wire.Status) {
	if c.s.discovery {
		switch id {
		case wire.LogSupported:
			return supportedLogs(wire.LogSupported, wire.LogError, wire.LogDiscovery), wire.Success
		case wire.LogDiscovery:
			if !retain {
				c.mu.Lock()
				c.told(eventDiscovery)
				c.mu.Unlock()
			}
			return c.discoveryLog(cmd.c), wire.Success
		case wire.LogError:
		default:
			return nil, wire.InvalidLogPage | wire.DNR
		}
	}
	switch id {
	case wire.LogSMART:
		if nsid := cmd.sqe.NSID(); nsid != 0 && nsid != wire.BroadcastNSID {
			return nil, wire.InvalidField | wire.DNR // one log for the controller
		}
		return c.smart(), wire.Success
	case wire.LogANA:
		change, groups := c.s.anaGroups(c.port.ID)
		if specific&1 != 0 {
			for i := range groups {
				groups[i].NSIDs = nil
			}
		}
		page = wire.AppendANALog(nil, change, groups)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch id {
	case wire.LogSupported:
		return supportedLogs(wire.LogSupported, wire.LogError, wire.LogSMART, wire.LogFirmware, wire.LogChangedNS,
			wire.LogEffects, wire.LogANA, wire.LogReservations), wire.Success
	case wire.LogError:
		for _, e := range c.errors.entries {
			page = e.Append(page)
		}
		return append(page, make([]byte, errorEntries*wire.ErrorEntryLen-len(page))...), wire.Success
	case wire.LogFirmware:
		page = make([]byte, wire.FirmwareLogLen)
		page[0] = 1 // slot 1 is active
		copy(page[8:16], firmware+"        ")
		return page, wire.Success
	case wire.LogChangedNS:
		page = make([]byte, 4*wire.MaxChangedNS)
		if len(c.events.changed) > wire.MaxChangedNS {
			le.PutUint32(page, wire.BroadcastNSID)
		} else {
			for i, nsid := range slices.Sorted(slices.Values(c.events.changed)) {
				le.PutUint32(page[4*i:], nsid)
			}
		}
		if !retain {
			c.events.changed = nil
			c.told(eventNamespace)
		}
		return page, wire.Success
	case wire.LogEffects:
		return effectsLog(), wire.Success
	case wire.LogANA:
		if !retain {
			c.told(eventANA)
		}
		return page, wire.Success
	case wire.LogReservations:
		var n wire.ReservNotice
		if len(c.events.notices) > 0 {
			n = c.events.notices[0]
			n.Available = uint8(len(c.events.notices) - 1)
			c.events.notices = c.events.notices[1:]
		}
		if !retain {
			c.told(eventReservation)
			if len(c.events.notices) > 0 {
				if x := c.raise(eventReservation); x != nil {
					defer c.answerEvent(x, eventReservation)
				}
			}
		}
		return n.Append(nil), wire.Success
	}
	return nil, wire.InvalidLogPage | wire.DNR
}

// supportedLogs is log page 00h: a dword for each log page (Base 5.16.1.1).
func supportedLogs(ids ...int) []byte {
	page := make([]byte, wire.LogSupportedSize)
	for _, id := range ids {
		le.PutUint32(page[4*id:], 1)
	}
	return page
}

// effectsLog is log page 05h: which commands there are and what they change
// (Base 5.16.1.6).
func effectsLog() []byte {
	page := make([]byte, wire.EffectsLogLen)
	for op := range adminOps {
		le.PutUint32(page[4*int(op):], wire.EffectSupported)
	}
	for op, o := range ioOps {
		v := uint32(wire.EffectSupported)
		if o.writes {
			v |= wire.EffectData
		}
		le.PutUint32(page[1024+4*int(op):], v)
	}
	return page
}

// smart is log page 02h (Base 5.16.1.3), with what we know to be true: there
// is no temperature and no wear.
func (c *controller) smart() []byte {
	t := c.s.t
	st := t.stats.io.snapshot()
	units := func(bytes uint64) uint64 { return (bytes + 512_000 - 1) / 512_000 }
	now := t.clock.Now()
	s := wire.SMART{Temperature: 293, Spare: 100, SpareThreshold: 10, DataRead: units(st.ReadBytes), DataWritten: units(st.WriteBytes),
		Reads: st.Reads, Writes: st.Writes, PowerCycles: 1, PowerOnHours: uint64(now.Sub(t.since).Hours()),
		BusyMinutes: t.stats.io.busy.Load() / 60e9, MediaErrors: t.stats.mediaErrors.Load()}
	if s.MediaErrors > 0 {
		s.Warning |= wire.WarnReliability
	}
	c.mu.Lock()
	s.ErrorEntries = c.errors.count
	c.mu.Unlock()
	return s.Append(nil)
}

// discoveryLog is log page 70h (Base 5.16.1.23): the discovery service itself
// and the subsystems that the host may connect to, at all their ports; of those
// that are reached through a port of disks only the ones that are at it.
func (c *controller) discoveryLog(q *conn) []byte {
	t := c.s.t
	t.mu.Lock()
	generation := t.generation
	var ports []*port
	for p := range t.ports {
		ports = append(ports, p)
	}
	var subs []*subsystem
	for _, s := range t.subsystems {
		subs = append(subs, s)
	}
	t.mu.Unlock()
	slices.SortFunc(ports, func(a, b *port) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(subs, func(a, b *subsystem) int { return cmp.Compare(a.NQN, b.NQN) })

	var entries []byte
	n := uint64(0)
	add := func(p *port, nqn string, subType uint8) {
		addr, service := p.reachedAt(q)
		if isLoopback(addr) && !isLoopback(q.nc.LocalAddr().String()) {
			return // it would be another machine to the host
		}
		// Not "not required", which nvme-cli up to 2.3 takes for a wish for TLS.
		e := wire.DiscoveryEntry{TrType: wire.TrTypeTCP, AdrFam: wire.AdrFamIPv4, SubType: subType, TReq: wire.TReqNotSpecified | wire.TReqDisableSQFlow,
			PortID: p.ID, CNTLID: wire.DynamicCNTLID, ASQSz: minAdminDepth, TrSvcID: service, SubNQN: nqn, TrAddr: addr}
		if ip, err := netip.ParseAddr(addr); err == nil && ip.Is6() {
			e.AdrFam = wire.AdrFamIPv6
		}
		if subType == wire.SubTypeCurrent {
			e.EFlags = wire.EFlagsPersistent
		}
		entries = e.Append(entries)
		n++
	}
	for _, p := range ports {
		if p.ID == c.port.ID {
			add(p, wire.DiscoveryNQN, wire.SubTypeCurrent)
		}
	}
	for _, s := range subs {
		if _, ok := s.admits(c.hostNQN); !ok || !c.port.DiscoveryOnly && !s.at(c.port.Port) {
			continue
		}
		for _, p := range ports {
			if s.at(p.Port) {
				add(p, s.NQN, wire.SubTypeNVM)
			}
		}
	}
	h := wire.DiscoveryHeader{Generation: generation, Records: n}
	return append(h.Append(nil), entries...)
}

// isLoopback reports whether an address, with or without a port number, means
// the machine itself. What is no IP address does not, for all that is known.
func isLoopback(addr string) bool {
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return ap.Addr().Unmap().IsLoopback()
	}
	ip, err := netip.ParseAddr(addr)
	return err == nil && ip.Unmap().IsLoopback()
}

// reachedAt returns by what address and port number a host that came on q
// reaches p.
func (p *port) reachedAt(q *conn) (addr, service string) {
	host, svc, err := net.SplitHostPort(p.l.Addr().String())
	if err != nil {
		return cmp.Or(p.Address, p.l.Addr().String()), p.Service
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		if local, _, err := net.SplitHostPort(q.nc.LocalAddr().String()); err == nil {
			host = local
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	if _, err := strconv.Atoi(svc); err != nil {
		svc = ""
	}
	return cmp.Or(p.Address, host), cmp.Or(p.Service, svc)
}
