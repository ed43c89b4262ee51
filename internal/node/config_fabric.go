package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric/admit"
	"github.com/spacestore/space/fabric/forward"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/fabric/session"
	"github.com/spacestore/space/internal/control"
)

// FabricConfig is what a node of the fabric is told: the fabric section of
// space.yaml, with what environment and flags say instead.
type FabricConfig struct {
	Section bool // space.yaml has the section: `spacectl serve` takes part in the fabric

	Name         string // "": as init or join was told
	Area         string // likewise
	Organization string
	Listen       []FabricListen
	Seeds        []string // beside those that the join token had
	Relay        bool
	HTTPSWeb     bool // servers that are dialed over https show certificates of the web, not of the fabric
	Limits       admit.Config

	Expose  []control.ExposeRequest
	Forward []control.ForwardRequest
	VPN     []control.VPNRequest
	Share   []control.SendRequest
	Accept  []control.AcceptRequest
}

// FabricListen is an address that other nodes connect to.
type FabricListen struct {
	Carrier   string // tls, quic or https
	Address   string // host:port
	Advertise string // what others dial, with the carrier; "": as it is
	Cert, Key string // files of an https listener's certificate; "": the node makes one
}

// DefaultFabricListen is where a node listens that is not told: others have to
// reach it.
const DefaultFabricListen = "tls://:7420"

// Bounds of the section.
const (
	maxFabricListen = 16
	maxFabricSeeds  = 64
	maxFabricJobs   = 256
)

// fabricSection is the section's name.
const fabricSection = "fabric"

// fabricSettings are those of the section that environment and flags have too:
// SPACE_FABRIC_NAME, --name.
var fabricSettings = []struct {
	name string
	set  func(c *FabricConfig, text string) error
}{
	{"advertise", func(c *FabricConfig, s string) error {
		if c.Listen == nil {
			if err := c.addListen(FabricListen{}, DefaultFabricListen); err != nil {
				return err
			}
		}
		for i, text := range splitList(s) {
			if i >= len(c.Listen) {
				return errors.New("as many addresses as listen has, in that order")
			}
			if err := checkFabricAddress(text); err != nil {
				return err
			}
			c.Listen[i].Advertise = text
		}
		return nil
	}},
	{"area", func(c *FabricConfig, s string) error { return setFabricName(&c.Area, s) }},
	{"https_web", func(c *FabricConfig, s string) error { return setBool(&c.HTTPSWeb)(s) }},
	{"listen", func(c *FabricConfig, s string) error {
		c.Listen = []FabricListen{}
		if s == "none" {
			return nil
		}
		for _, text := range splitList(s) {
			if err := c.addListen(FabricListen{}, text); err != nil {
				return err
			}
		}
		return nil
	}},
	{"name", func(c *FabricConfig, s string) error { return setFabricName(&c.Name, s) }},
	{"organization", func(c *FabricConfig, s string) error { return setFabricName(&c.Organization, s) }},
	{"relay", func(c *FabricConfig, s string) error { return setBool(&c.Relay)(s) }},
	{"seeds", func(c *FabricConfig, s string) error {
		c.Seeds = nil
		for _, text := range splitList(s) {
			if err := c.addSeed(text); err != nil {
				return err
			}
		}
		return nil
	}},
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func setFabricName(p *string, text string) error {
	*p = text
	return CheckFabricName(text)
}

// CheckFabricName checks the name of a node, area, pool or organization.
func CheckFabricName(text string) error {
	good := len(text) > 0 && len(text) <= 63 && !strings.ContainsFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
	if !good {
		return errors.New("want at most 63 letters, digits, '-', '_' and '.'")
	}
	return nil
}

// checkOrganization checks the organization that nodes are to be of; none is good.
func checkOrganization(name string) error {
	if name == "" {
		return nil
	}
	if err := CheckFabricName(name); err != nil {
		return capsule.Errorf(capsule.Invalid, "the organization %.64q is not valid: %v", name, err)
	}
	return nil
}

var errFabricAddress = errors.New("want tls://host:port, quic://host:port or https://host[:port][/path]")

// checkFabricAddress checks an address that others dial.
func checkFabricAddress(text string) error {
	u, err := url.Parse(text)
	if err != nil || len(text) > 250 || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errFabricAddress
	}
	switch u.Scheme {
	case "https":
		return nil
	case "tls", "quic":
		if u.Path == "" && checkAddress(u.Host) == nil && u.Hostname() != "" {
			return nil
		}
	}
	return errFabricAddress
}

// ListensFor reports whether a carrier is among those that the node listens for.
func (c *FabricConfig) ListensFor(carrier string) bool {
	return slices.ContainsFunc(c.Listen, func(l FabricListen) bool { return l.Carrier == carrier })
}

func (c *FabricConfig) addSeed(text string) error {
	if err := checkFabricAddress(text); err != nil {
		return err
	}
	if len(c.Seeds) >= maxFabricSeeds {
		return fmt.Errorf("at most %d are taken", maxFabricSeeds)
	}
	c.Seeds = append(c.Seeds, text)
	return nil
}

// addListen adds a listener at an address such as tls://:7420.
func (c *FabricConfig) addListen(l FabricListen, text string) error {
	var ok bool
	l.Carrier, l.Address, ok = strings.Cut(text, "://")
	if !ok || l.Carrier != "tls" && l.Carrier != "quic" && l.Carrier != "https" || checkAddress(l.Address) != nil {
		return errors.New("want tls://host:port, quic://host:port or https://host:port; the host may be left out: all of this machine's addresses")
	}
	if slices.ContainsFunc(c.Listen, func(have FabricListen) bool {
		_, port, _ := net.SplitHostPort(have.Address)
		return have.Carrier == l.Carrier && have.Address == l.Address && port != "0"
	}) {
		return errors.New("it is there twice")
	}
	if len(c.Listen) >= maxFabricListen {
		return fmt.Errorf("at most %d are taken", maxFabricListen)
	}
	c.Listen = append(c.Listen, l)
	return nil
}

// parseFabric reads the fabric section. Paths are relative to the directory of
// the settings.
func parseFabric(path string, n *yaml.Node) (*FabricConfig, error) {
	s := section{path}
	c := &FabricConfig{Section: true}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" { // "fabric:" alone
		return c, nil
	}
	keys := map[string]func(*yaml.Node) error{
		"listen": func(n *yaml.Node) error {
			c.Listen = []FabricListen{} // an empty list: nowhere
			return s.list("listen", maxFabricListen, func(n *yaml.Node) error { return s.fabricListen(c, n) })(n)
		},
		"seeds":   s.list("seeds", maxFabricSeeds, s.value("seeds", c.addSeed)),
		"limits":  func(n *yaml.Node) error { return s.fabricLimits(&c.Limits, n) },
		"expose":  s.list("expose", maxFabricJobs, func(n *yaml.Node) error { return s.expose(c, n) }),
		"forward": s.list("forward", maxFabricJobs, func(n *yaml.Node) error { return s.forward(c, n) }),
		"vpn":     s.list("vpn", maxFabricJobs, func(n *yaml.Node) error { return s.vpn(c, n) }),
		"share":   s.list("share", maxFabricJobs, func(n *yaml.Node) error { return s.share(c, n) }),
		"accept":  s.list("accept", maxFabricJobs, func(n *yaml.Node) error { return s.accept(c, n) }),
	}
	var advertise []func() error // after listen, which it is about
	for _, one := range fabricSettings {
		set := s.value(one.name, func(text string) error { return one.set(c, text) })
		switch {
		case one.name == "advertise":
			keys[one.name] = func(n *yaml.Node) error {
				advertise = append(advertise, func() error { return set(n) })
				return nil
			}
		case keys[one.name] == nil:
			keys[one.name] = set
		}
	}
	if err := s.mapping(n, "fabric", keys); err != nil {
		return nil, err
	}
	for _, set := range advertise {
		if err := set(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (s section) fabricListen(c *FabricConfig, n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		return s.value("listen", func(text string) error { return c.addListen(FabricListen{}, text) })(n)
	}
	l, address := FabricListen{}, ""
	err := s.mapping(n, "listen", map[string]func(*yaml.Node) error{
		"address": s.value("address", setText(&address)),
		"advertise": s.value("advertise", func(text string) error {
			l.Advertise = text
			return checkFabricAddress(text)
		}),
		"cert": s.value("cert", s.setPath(&l.Cert)),
		"key":  s.value("key", s.setPath(&l.Key)),
	})
	if err != nil {
		return err
	}
	if (l.Cert == "") != (l.Key == "") {
		return s.errorf(n, "listen: cert and key go together")
	}
	if l.Cert != "" && !strings.HasPrefix(address, "https://") {
		return s.errorf(n, "listen: cert and key are for https; tls and quic have the node's own")
	}
	if err := c.addListen(l, address); err != nil {
		return s.errorf(n, "address: %.256q is not valid: %v", address, err)
	}
	return nil
}

func (s section) setPath(p *string) func(string) error {
	return func(text string) error {
		if *p = text; !filepath.IsAbs(text) {
			*p = filepath.Join(filepath.Dir(s.path), text)
		}
		return nil
	}
}

func setCount(p *int, from, to int) func(string) error {
	return func(text string) error {
		v, err := strconv.Atoi(text)
		if *p = v; err != nil || v < from || v > to {
			return fmt.Errorf("want a number from %d to %d", from, to)
		}
		return nil
	}
}

func setSize(p *int64) func(string) error {
	return func(text string) (err error) {
		*p, err = ParseSize(text)
		return err
	}
}

// sizeFrom reads a size that is not below the least that makes sense.
func sizeFrom(p *int64, least int64, words string) func(string) error {
	return func(text string) error {
		if err := setSize(p)(text); err != nil {
			return err
		}
		if *p < least {
			return errors.New("it has to be at least " + words)
		}
		return nil
	}
}

// limitScopes are what limits can be for: each of a kind, or, under named, one.
var limitScopes = map[string]admit.Scope{"node": admit.NodeScope, "route": admit.Route, "pool": admit.Pool,
	"organization": admit.Organization, "service": admit.Service}

func (s section) fabricLimits(c *admit.Config, n *yaml.Node) error {
	keys := map[string]func(*yaml.Node) error{"named": s.list("named", maxFabricJobs, func(n *yaml.Node) error { return s.namedLimit(c, n) })}
	for name, scope := range limitScopes {
		keys[name] = func(n *yaml.Node) error { return s.mapping(n, name, s.limit(&c.Each[scope])) }
	}
	return s.mapping(n, "limits", keys)
}

// limit returns the keys of one limit.
func (s section) limit(l *admit.Limit) map[string]func(*yaml.Node) error {
	number := func(p *int64) func(string) error {
		return func(text string) (err error) {
			if *p, err = strconv.ParseInt(text, 10, 64); err != nil || *p < 1 {
				err = errors.New("want a number from 1 on")
			}
			return err
		}
	}
	return map[string]func(*yaml.Node) error{
		"sessions": s.value("sessions", number(&l.Sessions)),
		"tunnels":  s.value("tunnels", number(&l.Tunnels)),
		"streams":  s.value("streams", number(&l.Streams)),
		"window":   s.value("window", sizeFrom(&l.Window, session.FirstWindow, "64KiB, which one stream takes")),
		"rate":     s.value("rate", sizeFrom(&l.Rate, 1, "one byte a second")),
		"burst":    s.value("burst", sizeFrom(&l.Burst, 1, "one byte")),
	}
}

// namedLimit reads a limit of one route, pool, organization or service.
func (s section) namedLimit(c *admit.Config, n *yaml.Node) error {
	var l admit.Limit
	k := admit.Key{Scope: admit.Scopes}
	keys := s.limit(&l)
	keys["name"] = s.value("name", setText(&k.Name))
	keys["scope"] = s.value("scope", func(text string) error {
		scope, ok := limitScopes[text]
		if k.Scope = scope; !ok || scope == admit.NodeScope {
			return errors.New("want route, pool, organization or service")
		}
		return nil
	})
	if err := s.mapping(n, "named", keys); err != nil {
		return err
	}
	if k.Scope == admit.Scopes || k.Name == "" {
		return s.errorf(n, "a limit under named wants a scope and a name")
	}
	if _, twice := c.Named[k]; twice {
		return s.errorf(n, "the %s %s has two limits", k.Scope, k.Name)
	}
	if c.Named == nil {
		c.Named = map[admit.Key]admit.Limit{}
	}
	c.Named[k] = l
	return nil
}

func (s section) expose(c *FabricConfig, n *yaml.Node) error {
	var r control.ExposeRequest
	err := s.mapping(n, "expose", map[string]func(*yaml.Node) error{
		"pool":    s.value("pool", func(text string) error { return setFabricName(&r.Pool, text) }),
		"address": s.value("address", setText(&r.Address)),
		"allow": s.list("allow", maxFabricListen, s.value("allow", func(text string) error {
			r.Allow = append(r.Allow, text)
			_, err := forward.ParseRule(text)
			return err
		})),
		"peers": s.list("peers", maxFabricSeeds, s.value("peers", func(text string) error {
			r.Peers = append(r.Peers, text)
			_, err := identity.ParseNodeID(text)
			return err
		})),
		"proxy_protocol": s.value("proxy_protocol", setBool(&r.ProxyProtocol)),
		"connections":    s.value("connections", setCount(&r.Connections, 1, 1<<20)),
	})
	if err == nil && (r.Pool == "" || r.Address == "" && len(r.Allow) == 0) {
		err = s.errorf(n, "expose wants a pool, and an address or what to allow")
	}
	if err == nil {
		if _, ferr := newExposer(r, nil); ferr != nil {
			err = s.errorf(n, "expose: %v", ferr)
		}
	}
	c.Expose = append(c.Expose, r)
	return err
}

func (s section) forward(c *FabricConfig, n *yaml.Node) error {
	var r control.ForwardRequest
	err := s.mapping(n, "forward", map[string]func(*yaml.Node) error{
		"listen": s.value("listen", setAddress(&r.Listen)),
		"pool":   s.value("pool", func(text string) error { return setFabricName(&r.Pool, text) }),
		"kind":   s.value("kind", func(text string) error { return setFabricName(&r.Kind, text) }),
		"target": s.value("target", setText(&r.Target)),
		"bulk":   s.value("bulk", setBool(&r.Bulk)),
	})
	if err == nil && (r.Pool == "" || r.Listen == "") {
		err = s.errorf(n, "forward wants a listen and a pool")
	}
	c.Forward = append(c.Forward, r)
	return err
}

func (s section) vpn(c *FabricConfig, n *yaml.Node) error {
	var r control.VPNRequest
	prefix := func(list *[]string) func(string) error {
		return func(text string) error {
			*list = append(*list, text)
			return setPrefix(&text, text)
		}
	}
	err := s.mapping(n, "vpn", map[string]func(*yaml.Node) error{
		"exit": s.value("exit", setBool(&r.Exit)),
		"network": func(n *yaml.Node) error {
			if n.Kind == yaml.SequenceNode {
				return s.list("network", maxFabricListen, s.value("network", prefix(&r.Networks)))(n)
			}
			return s.value("network", prefix(&r.Networks))(n)
		},
		"device": s.value("device", func(text string) error { return setDevice(&r.Device, text) }),
		"mtu":    s.value("mtu", setCount(&r.MTU, 576, 65535)),
		"pool":   s.value("pool", func(text string) error { return setFabricName(&r.Pool, text) }),
		"routes": s.list("routes", maxFabricSeeds, s.value("routes", prefix(&r.Routes))),
		"bypass": s.list("bypass", maxFabricSeeds, s.value("bypass", prefix(&r.Bypass))),
	})
	if err == nil && r.Exit != (len(r.Networks) > 0) {
		err = s.errorf(n, "vpn: an exit has a network, and nothing else has")
	}
	if err == nil && r.Exit && len(r.Routes)+len(r.Bypass) > 0 {
		err = s.errorf(n, "vpn: an exit has no routes of its own")
	}
	if err == nil {
		var wrong error
		if r.Exit {
			_, wrong = exitOptions(r)
		} else {
			_, wrong = clientOptions(r)
		}
		if wrong != nil {
			err = s.errorf(n, "%v", wrong)
		}
	}
	c.VPN = append(c.VPN, r)
	return err
}

func setPrefix(p *string, text string) error {
	*p = text
	if _, err := netip.ParsePrefix(text); err != nil {
		return errors.New("want a network, such as 10.77.0.0/24")
	}
	return nil
}

// setDevice checks the name of a network device.
func setDevice(p *string, text string) error {
	*p = text
	if len(text) > 15 || strings.ContainsAny(text, "/ :\t\n") || text == "." || text == ".." {
		return errors.New("want the name of a network device, such as space0")
	}
	return nil
}

func (s section) share(c *FabricConfig, n *yaml.Node) error {
	var r control.SendRequest
	err := s.mapping(n, "share", map[string]func(*yaml.Node) error{
		"name": s.value("name", func(text string) error { return setFabricName(&r.Name, text) }),
		"path": s.value("path", s.setPath(&r.Path)),

		"skip_unreadable": s.value("skip_unreadable", setBool(&r.SkipUnreadable)),
	})
	if err == nil && (r.Name == "" || r.Path == "") {
		err = s.errorf(n, "share wants a name and a path")
	}
	c.Share = append(c.Share, r)
	return err
}

func (s section) accept(c *FabricConfig, n *yaml.Node) error {
	var r control.AcceptRequest
	err := s.mapping(n, "accept", map[string]func(*yaml.Node) error{
		"into": s.value("into", s.setPath(&r.Into)),
		"from": s.list("from", maxFabricSeeds, s.value("from", func(text string) error {
			r.From = append(r.From, text)
			_, err := acceptFrom([]string{text})
			return err
		})),
		"max_size": s.value("max_size", sizeFrom(&r.MaxSize, 1, "one byte")),
	})
	if err == nil && (r.Into == "" || len(r.From) == 0) {
		err = s.errorf(n, "accept wants a directory (into) and the nodes that may send something (from)")
	}
	c.Accept = append(c.Accept, r)
	return err
}

// loadFabric puts environment and flags over what the file says. Flags come as
// fabric_NAME. Where nothing says anything, it returns nil.
func loadFabric(c *FabricConfig, flags map[string]string, getenv func(string) string) (*FabricConfig, error) {
	// In two rounds, for advertise is about listen.
	for _, round := range []bool{false, true} {
		for _, one := range fabricSettings {
			if (one.name == "advertise") != round {
				continue
			}
			env := "SPACE_FABRIC_" + strings.ToUpper(one.name)
			text, where := getenv(env), "environment variable "+env
			if v, ok := flags["fabric_"+one.name]; ok {
				text, where = v, "--"+strings.ReplaceAll(one.name, "_", "-")
			}
			if text == "" {
				continue
			}
			if c == nil {
				c = &FabricConfig{}
			}
			if err := one.set(c, text); err != nil {
				return nil, capsule.Errorf(capsule.Invalid, "%s: %.256q is not valid: %v", where, text, err)
			}
		}
	}
	return c, nil
}
