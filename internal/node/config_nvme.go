package node

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views/nvme"
	"github.com/spacestore/space/views/nvme/dhchap"
	"github.com/spacestore/space/views/nvme/wire"
)

// NVMeConfig is the nvme section of space.yaml: where hosts find us, and what
// a node serves without being asked.
type NVMeConfig struct {
	Listen     []NVMeListen
	Discovery  []string // addresses of the discovery service alone
	Subsystems []NVMeSubsystem
}

// NVMeListen is an address that hosts connect to.
type NVMeListen struct {
	Address string
	PortID  uint16        // 0: the node chooses
	ANA     nvme.ANAState // how good a path it is
}

// NVMeSubsystem is a subsystem that is always there.
type NVMeSubsystem struct {
	NQN        string
	Hosts      []NVMeConfigHost // that may connect; none: any
	Namespaces []NVMeConfigNamespace
}

// NVMeConfigHost is a host that may connect. A secret is given as it is or as
// the name of a file that holds it.
type NVMeConfigHost struct {
	NQN                        string
	Secret, SecretFile         string
	CtrlSecret, CtrlSecretFile string
}

// NVMeConfigNamespace is a capsule in a subsystem.
type NVMeConfigNamespace struct {
	Capsule  string // ID or name
	Snapshot string
	NSID     uint32 // 0: by its place in the list
	ReadOnly bool
}

// Bounds of the section, so that a wrong file is an error and not a wait.
const (
	maxConfigListen     = 64
	maxConfigSubsystems = 1024
	maxConfigHosts      = 256
	maxConfigNamespaces = 1024
)

// anaStates are the names of ANA states that an operator can give to a path.
var anaStates = map[string]nvme.ANAState{"optimized": nvme.Optimized, "non-optimized": nvme.NonOptimized, "inaccessible": nvme.Inaccessible}

// section reads a part of space.yaml strictly: what it does not know is an
// error that says where it stands.
type section struct{ path string }

func (s section) errorf(n *yaml.Node, format string, args ...any) error {
	return capsule.Errorf(capsule.Invalid, "%s:%d: %s", s.path, n.Line, fmt.Sprintf(format, args...))
}

// mapping reads the keys of a mapping, each with its function and at most once.
func (s section) mapping(n *yaml.Node, what string, keys map[string]func(*yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return s.errorf(n, "%s wants lines of the form `name: value`", what)
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		read := keys[k.Value]
		switch {
		case read == nil || k.Kind != yaml.ScalarNode:
			return s.errorf(k, "unknown setting %.64q in %s; there are %s", k.Value, what, strings.Join(slices.Sorted(maps.Keys(keys)), ", "))
		case seen[k.Value] != 0:
			return s.errorf(k, "%s is set twice, first in line %d", k.Value, seen[k.Value])
		}
		seen[k.Value] = k.Line
		if err := read(v); err != nil {
			return err
		}
	}
	return nil
}

// list reads the entries of a list.
func (s section) list(what string, most int, entry func(*yaml.Node) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode {
			return s.errorf(n, "%s wants a list", what)
		}
		if len(n.Content) > most {
			return s.errorf(n, "%s has %d entries; at most %d are taken", what, len(n.Content), most)
		}
		for _, e := range n.Content {
			if err := entry(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// value reads a plain value.
func (s section) value(what string, set func(text string) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Value == "" {
			return s.errorf(n, "%s wants one plain value", what)
		}
		if err := set(n.Value); err != nil {
			return s.errorf(n, "%s: %.256q is not valid: %v", what, n.Value, err)
		}
		return nil
	}
}

// secret is value for what must not be shown.
func (s section) secret(what string, set func(text string) error) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Value == "" || set(n.Value) != nil {
			return s.errorf(n, "%s is no secret; want DHHC-1:…, as `nvme gen-dhchap-key` prints it", what)
		}
		return nil
	}
}

func setText(p *string) func(string) error {
	return func(text string) error {
		*p = text
		return nil
	}
}

func setAddress(p *string) func(string) error {
	return func(text string) error {
		*p = text
		return checkAddress(text)
	}
}

func setNQN(p *string) func(string) error {
	return func(text string) error {
		*p = text
		return checkNQN(text)
	}
}

func setBool(p *bool) func(string) error {
	return func(text string) (err error) {
		if *p, err = strconv.ParseBool(text); err != nil {
			err = fmt.Errorf("want true or false")
		}
		return err
	}
}

func setSecret(p *string) func(string) error {
	return func(text string) error {
		*p = text
		_, err := dhchap.ParseSecret(text)
		return err
	}
}

// checkAddress checks an address to listen at.
func checkAddress(text string) error {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("want host:port, such as 127.0.0.1:4420 or [::1]:4420")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || len(text) > 260 {
		return fmt.Errorf("%d is not the number of a TCP port", n)
	}
	return nil
}

// checkNQN checks the name of a subsystem or host.
func checkNQN(text string) error {
	if !wire.ValidNQN(text) || text == wire.DiscoveryNQN {
		return fmt.Errorf("want an NVMe qualified name, such as nqn.2014-08.org.nvmexpress:uuid:… or nqn.2026-11.com.example:disks")
	}
	return nil
}

// parseNVMe reads the nvme section.
func parseNVMe(path string, n *yaml.Node) (*NVMeConfig, error) {
	s := section{path}
	c := &NVMeConfig{}
	err := s.mapping(n, "nvme", map[string]func(*yaml.Node) error{
		"listen": s.list("listen", maxConfigListen, func(n *yaml.Node) error { return s.listen(c, n) }),
		"discovery": s.list("discovery", maxConfigListen, s.value("discovery", func(text string) error {
			c.Discovery = append(c.Discovery, text)
			return checkAddress(text)
		})),
		"subsystems": s.list("subsystems", maxConfigSubsystems, func(n *yaml.Node) error { return s.subsystem(c, n) }),
	})
	return c, err
}

func (s section) listen(c *NVMeConfig, n *yaml.Node) error {
	l := NVMeListen{ANA: nvme.Optimized}
	var err error
	if n.Kind == yaml.ScalarNode {
		err = s.value("listen", setAddress(&l.Address))(n)
	} else {
		err = s.mapping(n, "listen", map[string]func(*yaml.Node) error{
			"address": s.value("address", setAddress(&l.Address)),
			"port_id": s.value("port_id", func(text string) error {
				v, err := strconv.ParseUint(text, 10, 16)
				if l.PortID = uint16(v); err != nil || v == 0 {
					return fmt.Errorf("want a number from 1 to 65535")
				}
				return nil
			}),
			"ana": s.value("ana", func(text string) error {
				state, ok := anaStates[text]
				if l.ANA = state; !ok {
					return fmt.Errorf("want %s", strings.Join(slices.Sorted(maps.Keys(anaStates)), ", "))
				}
				return nil
			}),
		})
	}
	if err != nil {
		return err
	}
	if l.Address == "" {
		return s.errorf(n, "listen lacks its address")
	}
	for _, have := range c.Listen {
		if have.Address == l.Address || l.PortID != 0 && have.PortID == l.PortID {
			return s.errorf(n, "listen: the address or the port_id is there twice")
		}
	}
	c.Listen = append(c.Listen, l)
	return nil
}

func (s section) subsystem(c *NVMeConfig, n *yaml.Node) error {
	sub := NVMeSubsystem{}
	err := s.mapping(n, "a subsystem", map[string]func(*yaml.Node) error{
		"nqn":        s.value("nqn", setNQN(&sub.NQN)),
		"hosts":      s.list("hosts", maxConfigHosts, func(n *yaml.Node) error { return s.host(&sub, n) }),
		"namespaces": s.list("namespaces", maxConfigNamespaces, func(n *yaml.Node) error { return s.namespace(&sub, n) }),
	})
	if err != nil {
		return err
	}
	if sub.NQN == "" {
		return s.errorf(n, "a subsystem lacks its nqn")
	}
	if slices.ContainsFunc(c.Subsystems, func(have NVMeSubsystem) bool { return have.NQN == sub.NQN }) {
		return s.errorf(n, "the subsystem %s is there twice", sub.NQN)
	}
	c.Subsystems = append(c.Subsystems, sub)
	return nil
}

func (s section) host(sub *NVMeSubsystem, n *yaml.Node) error {
	h := NVMeConfigHost{}
	var err error
	if n.Kind == yaml.ScalarNode {
		err = s.value("hosts", setNQN(&h.NQN))(n)
	} else {
		err = s.mapping(n, "a host", map[string]func(*yaml.Node) error{
			"nqn":              s.value("nqn", setNQN(&h.NQN)),
			"secret":           s.secret("secret", setSecret(&h.Secret)),
			"secret_file":      s.value("secret_file", setText(&h.SecretFile)),
			"ctrl_secret":      s.secret("ctrl_secret", setSecret(&h.CtrlSecret)),
			"ctrl_secret_file": s.value("ctrl_secret_file", setText(&h.CtrlSecretFile)),
		})
	}
	switch {
	case err != nil:
		return err
	case h.NQN == "":
		return s.errorf(n, "a host lacks its nqn")
	case h.Secret != "" && h.SecretFile != "", h.CtrlSecret != "" && h.CtrlSecretFile != "":
		return s.errorf(n, "the host %s has a secret and a file of one; give either", h.NQN)
	case h.Secret == "" && h.SecretFile == "" && (h.CtrlSecret != "" || h.CtrlSecretFile != ""):
		return s.errorf(n, "the host %s has a ctrl_secret alone; it needs a secret of its own too", h.NQN)
	case slices.ContainsFunc(sub.Hosts, func(have NVMeConfigHost) bool { return have.NQN == h.NQN }):
		return s.errorf(n, "the host %s is there twice", h.NQN)
	}
	sub.Hosts = append(sub.Hosts, h)
	return nil
}

func (s section) namespace(sub *NVMeSubsystem, n *yaml.Node) error {
	ns := NVMeConfigNamespace{}
	var err error
	if n.Kind == yaml.ScalarNode {
		err = s.value("namespaces", setText(&ns.Capsule))(n)
	} else {
		err = s.mapping(n, "a namespace", map[string]func(*yaml.Node) error{
			"capsule":   s.value("capsule", setText(&ns.Capsule)),
			"snapshot":  s.value("snapshot", setText(&ns.Snapshot)),
			"read_only": s.value("read_only", setBool(&ns.ReadOnly)),
			"nsid": s.value("nsid", func(text string) error {
				v, err := strconv.ParseUint(text, 10, 32)
				if ns.NSID = uint32(v); err != nil || v == 0 || v > maxNSID {
					return fmt.Errorf("want a number from 1 to %d", maxNSID)
				}
				return nil
			}),
		})
	}
	if err != nil {
		return err
	}
	if ns.Capsule == "" {
		return s.errorf(n, "a namespace lacks its capsule")
	}
	if ns.NSID == 0 {
		ns.NSID = uint32(len(sub.Namespaces) + 1)
	}
	for _, have := range sub.Namespaces {
		if have.NSID == ns.NSID {
			return s.errorf(n, "the subsystem has two namespaces with the nsid %d", ns.NSID)
		}
	}
	sub.Namespaces = append(sub.Namespaces, ns)
	return nil
}
