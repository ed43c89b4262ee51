package forward

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// Rules say what forwarders may ask for.
type Rules []Rule

// Rule allows some targets; ParseRule makes one.
type Rule struct {
	text        string
	unix        string       // path of a socket
	host        string       // lower case; "*.x": all names under x
	prefix      netip.Prefix // of addresses, where host is ""
	first, last uint16       // ports
}

// ParseRule reads a rule: HOST:PORTS or unix:PATH. HOST is a name, *.DOMAIN, an
// address, or a prefix of addresses as in 10.0.0.0/8 or [fd00::/8]; a prefix
// allows names too that resolve to its addresses. PORTS is a port, a range as in
// 8000-8099, or *.
func ParseRule(s string) (r Rule, err error) {
	r.text = s
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return r, fmt.Errorf("forward: rule %q names no socket", s)
		}
		r.unix = path
		return r, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return r, fmt.Errorf("forward: rule %q is neither HOST:PORTS nor unix:PATH", s)
	}
	host, ports := s[:i], s[i+1:]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return r, fmt.Errorf("forward: rule %q: a [ without its ]", s)
		}
	} else if strings.ContainsRune(host, ':') {
		return r, fmt.Errorf("forward: rule %q: an IPv6 address stands in [ and ]", s)
	}
	if strings.ContainsRune(host, '/') {
		if r.prefix, err = netip.ParsePrefix(host); err != nil {
			return r, fmt.Errorf("forward: rule %q: %w", s, err)
		}
		r.prefix = r.prefix.Masked()
	} else if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap().WithZone("")
		r.prefix = netip.PrefixFrom(a, a.BitLen())
	} else {
		r.host = strings.TrimSuffix(strings.ToLower(host), ".")
		if name := strings.TrimPrefix(r.host, "*."); name == "" || strings.ContainsAny(name, "*[] ") {
			return r, fmt.Errorf("forward: rule %q: %q is no host", s, host)
		}
	}
	if ports == "*" {
		r.first, r.last = 1, 65535
		return r, nil
	}
	from, to, isRange := strings.Cut(ports, "-")
	if r.first, err = parsePort(from); err != nil {
		return r, fmt.Errorf("%w in rule %q", err, s)
	}
	r.last = r.first
	if isRange {
		if r.last, err = parsePort(to); err != nil {
			return r, fmt.Errorf("%w in rule %q", err, s)
		}
	}
	if r.last < r.first {
		return r, fmt.Errorf("forward: rule %q: no port is in %s", s, ports)
	}
	return r, nil
}

// String returns what ParseRule has read.
func (r Rule) String() string { return r.text }

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("forward: %q is no port", s)
	}
	return uint16(n), nil
}

// match reports whether a target may be dialed. check is for the dialer: it
// refuses the addresses of a name that the rules do not allow.
func (rs Rules) match(network, target string) (check func(network, addr string, _ syscall.RawConn) error, ok bool) {
	if network == "unix" {
		for _, r := range rs {
			if r.unix != "" && r.unix == target {
				return nil, true
			}
		}
		return nil, false
	}
	host, p, err := net.SplitHostPort(target)
	if err != nil {
		return nil, false
	}
	port, err := parsePort(p)
	if err != nil {
		return nil, false
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	var prefixes []netip.Prefix
	for _, r := range rs {
		switch {
		case r.unix != "" || port < r.first || port > r.last:
		case r.host == "":
			prefixes = append(prefixes, r.prefix)
		case r.host == host:
			return nil, true
		case strings.HasPrefix(r.host, "*.") && strings.HasSuffix(host, r.host[1:]):
			return nil, true
		}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return nil, within(prefixes, a)
	}
	return func(_, addr string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil || !within(prefixes, ap.Addr()) {
			return &refusal{CodeDenied, "the name does not stand for an address that is allowed"}
		}
		return nil
	}, len(prefixes) > 0
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
