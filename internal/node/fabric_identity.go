package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/fabric/carrier"
	"github.com/spacestore/space/fabric/identity"
	"github.com/spacestore/space/internal/clock"
	"github.com/spacestore/space/internal/control"
	"github.com/spacestore/space/internal/vfs"
)

// FabricDir is where a node of the fabric keeps who it is, in SPACE_HOME.
func FabricDir(home string) string { return filepath.Join(home, "fabric") }

// fabricFile is the file in FabricDir that holds a fabricSelf.
const fabricFile = "fabric.json"

// fabricSelf is what a node was told when it became part of a fabric.
type fabricSelf struct {
	Name  string   `json:"name"`
	Area  string   `json:"area"`
	Seeds []string `json:"seeds,omitempty"` // where it joined
	// HTTPSWeb: it did so over HTTPS, of a server with a certificate of the web.
	HTTPSWeb bool `json:"https_web,omitempty"`
}

// DefaultArea is the area of nodes that were given none.
const DefaultArea = "default"

var errNoFabric = capsule.Errorf(capsule.NotFound, "no fabric here: run `spacectl fabric init` to begin one, or `spacectl fabric join TOKEN`")

// lockFabric makes this process the only one that uses the fabric's directory.
func lockFabric(home string) (io.Closer, error) {
	lock, err := vfs.OS().Lock(filepath.Join(FabricDir(home), "lock"))
	switch {
	case err == nil:
		return lock, nil
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES):
		return nil, capsule.Errorf(capsule.Conflict, "another process runs the fabric's node at %s", home)
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoFabric
	}
	return nil, capsule.Wrap(capsule.IO, err, "fabric")
}

// beginFabric makes and locks the directory of a node that is not part of any
// fabric yet.
func beginFabric(home string) (io.Closer, error) {
	dir := FabricDir(home)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "fabric")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, capsule.Wrap(capsule.IO, err, "fabric")
	}
	lock, err := lockFabric(home)
	if err != nil {
		return nil, err
	}
	if _, err := identity.OpenNode(vfs.OS(), dir, clock.System()); !errors.Is(err, fs.ErrNotExist) {
		lock.Close()
		if err != nil {
			return nil, capsule.Wrap(capsule.Exists, err, "there is a node's identity in %s that can't be read", dir)
		}
		return nil, capsule.Errorf(capsule.Exists, "this node is part of a fabric already; its identity is in %s: move that away first to join anew", dir)
	}
	return lock, nil
}

// complete fills in what was not said.
func (s *fabricSelf) complete() error {
	if s.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return capsule.Wrap(capsule.IO, err, "host name")
		}
		if s.Name, _, _ = strings.Cut(host, "."); CheckFabricName(s.Name) != nil {
			s.Name = "node"
		}
	}
	if s.Area == "" {
		s.Area = DefaultArea
	}
	for _, one := range []struct{ what, name string }{{"name", s.Name}, {"area", s.Area}} {
		if err := CheckFabricName(one.name); err != nil {
			return capsule.Errorf(capsule.Invalid, "the %s %.64q is not valid: %v", one.what, one.name, err)
		}
	}
	return nil
}

func (s fabricSelf) write(home string) error {
	text, err := json.Marshal(s)
	if err == nil {
		err = vfs.WriteFileAtomic(vfs.OS(), filepath.Join(FabricDir(home), fabricFile), append(text, '\n'))
	}
	return capsule.Wrap(capsule.IO, err, "fabric")
}

func readFabricSelf(home string) (s fabricSelf, err error) {
	text, err := vfs.ReadFile(vfs.OS(), filepath.Join(FabricDir(home), fabricFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.complete()
	}
	if err != nil {
		return s, capsule.Wrap(capsule.IO, err, "fabric")
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, capsule.Wrap(capsule.Damaged, err, "%s", filepath.Join(FabricDir(home), fabricFile))
	}
	return s, s.complete()
}

// Member is a node of a fabric, as init and join print it.
type Member struct {
	Fabric    string `json:"fabric"`
	Node      string `json:"node"`
	Name      string `json:"name"`
	Area      string `json:"area"`
	Authority bool   `json:"authority"`
	// Organization is whose it is.
	Organization string `json:"organization"`
}

func memberOf(n *identity.Node, self fabricSelf, authority bool) Member {
	return Member{n.Fabric().String(), n.ID().String(), self.Name, self.Area, authority, n.Organization()}
}

// InitFabric makes a new fabric, whose authority and first node are at home.
func InitFabric(home, name, area string) (Member, error) { return InitFabricOf(home, name, area, "") }

// InitFabricOf is InitFabric with a first node of an organization; "": of the default one.
func InitFabricOf(home, name, area, organization string) (Member, error) {
	if err := checkOrganization(organization); err != nil {
		return Member{}, err
	}
	self := fabricSelf{Name: name, Area: area}
	if err := self.complete(); err != nil {
		return Member{}, err
	}
	lock, err := beginFabric(home)
	if err != nil {
		return Member{}, err
	}
	defer lock.Close()
	dir, clk := FabricDir(home), clock.System()
	authority, err := identity.Create(vfs.OS(), dir, clk)
	if errors.Is(err, identity.ErrExists) { // an init that was cut off after this
		authority, err = identity.OpenAuthority(vfs.OS(), dir, clk)
	}
	if err != nil {
		return Member{}, fabricError(err)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		return Member{}, fabricError(err)
	}
	token, err := authority.NewTokenOf(organization, time.Hour, 1, nil)
	if err != nil {
		return Member{}, fabricError(err)
	}
	grant, err := authority.Join(token.JoinRequest(csr))
	if err != nil {
		return Member{}, fabricError(err)
	}
	if err := self.write(home); err != nil {
		return Member{}, err
	}
	n, err := identity.Accept(vfs.OS(), dir, clk, key, grant, nil)
	if err != nil {
		return Member{}, fabricError(err)
	}
	return memberOf(n, self, true), nil
}

// JoinFabric makes the node at home part of the fabric that a token is for.
func JoinFabric(ctx context.Context, home, text, name, area string) (Member, error) {
	clk := clock.System()
	token, err := identity.ParseToken(text)
	if err != nil {
		return Member{}, capsule.Wrap(capsule.Invalid, err, "")
	}
	self := fabricSelf{Name: name, Area: area, Seeds: token.Addrs}
	if err := self.complete(); err != nil {
		return Member{}, err
	}
	if !clk.Now().Before(token.Expires) {
		const layout = "2006-01-02 15:04:05"
		return Member{}, capsule.Errorf(capsule.Denied, "the join token expired at %s, and here it is %s; make a new one with `spacectl fabric token`, or set the clock",
			token.Expires.Local().Format(layout), clk.Now().Local().Format(layout))
	}
	lock, err := beginFabric(home)
	if err != nil {
		return Member{}, err
	}
	defer lock.Close()
	if err := self.write(home); err != nil { // before the token is used up
		return Member{}, err
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		return Member{}, fabricError(err)
	}
	joined, err := carrier.JoinVia(ctx, token, csr)
	if err != nil {
		return Member{}, fabricError(err)
	}
	if joined.Web {
		self.HTTPSWeb = true
		if err := self.write(home); err != nil {
			return Member{}, err
		}
	}
	n, err := identity.Accept(vfs.OS(), FabricDir(home), clk, key, joined.Grant, &token)
	if err != nil {
		return Member{}, fabricError(err)
	}
	return memberOf(n, self, false), nil
}

// openFabric opens who the node at home is. authority is nil where it is not
// the authority's node. The caller has the lock.
func openFabric(home string) (id *identity.Node, authority *identity.Authority, self fabricSelf, err error) {
	dir, clk := FabricDir(home), clock.System()
	if id, err = identity.OpenNode(vfs.OS(), dir, clk); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, self, errNoFabric
		}
		return nil, nil, self, fabricError(err)
	}
	if authority, err = identity.OpenAuthority(vfs.OS(), dir, clk); err != nil {
		if authority = nil; !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, self, fabricError(err)
		}
	}
	self, err = readFabricSelf(home)
	return id, authority, self, err
}

// withAuthority runs fn with the authority at home, of which no node runs.
func withAuthority(home string, fn func(*identity.Node, *identity.Authority) error) error {
	lock, err := lockFabric(home)
	if err != nil {
		return err
	}
	defer lock.Close()
	id, authority, _, err := openFabric(home)
	if err != nil {
		return err
	}
	if authority == nil {
		return errNotAuthority
	}
	return fabricError(fn(id, authority))
}

// warnOfReaders tells of keys that others than the node's user can read.
func warnOfReaders(home string, log *slog.Logger) {
	dir := FabricDir(home)
	if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&0o011 == 0 {
		return // nobody else gets in there
	}
	keys, _ := filepath.Glob(filepath.Join(dir, "*.key")) // the pattern is right
	for _, path := range keys {
		if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
			log.Warn("others can read a key; `chmod 600` it, and revoke the node if they may have", "file", path, "mode", st.Mode().Perm().String())
		}
	}
}

// NewFabricToken makes a join token: by the node that runs, or with the
// authority's files.
func NewFabricToken(ctx context.Context, t Target, req control.TokenRequest) (text string, err error) {
	if err := checkOrganization(req.Organization); err != nil {
		return "", err
	}
	for i, addr := range req.Addresses {
		if !strings.Contains(addr, "://") {
			req.Addresses[i] = "tls://" + addr
		}
		if !joinable(req.Addresses[i]) {
			return "", capsule.Errorf(capsule.Invalid, "--address: nobody can join at %.64q; want tls://host:port or https://host[:port][/path]", addr)
		}
	}
	c, err := control.DialFabric(ctx, t.Home)
	if err == nil {
		defer c.Close()
		return c.NewToken(ctx, req)
	}
	if !errors.Is(err, control.ErrNoNode) {
		return "", err
	}
	if len(req.Addresses) == 0 {
		cfg := t.Config.Fabric.orDefault()
		for _, l := range cfg.Listen {
			if addr := l.advertised(); addr != "" && joinable(addr) {
				req.Addresses = append(req.Addresses, addr)
			}
		}
	}
	if len(req.Addresses) == 0 {
		return "", capsule.Errorf(capsule.Invalid, "where can this fabric be joined? Run `spacectl fabric serve`, or give --address")
	}
	err = withAuthority(t.Home, func(_ *identity.Node, a *identity.Authority) error {
		token, err := a.NewTokenOf(req.Organization, req.Life, req.Uses, req.Addresses)
		text = token.String()
		return err
	})
	return text, err
}

// RevokeFabricNode shuts a node out of the fabric, likewise.
func RevokeFabricNode(ctx context.Context, t Target, node string) (string, error) {
	c, err := control.DialFabric(ctx, t.Home)
	if err == nil {
		defer c.Close()
		return c.Revoke(ctx, node)
	}
	if !errors.Is(err, control.ErrNoNode) {
		return "", err
	}
	id, err := identity.ParseNodeID(node)
	if err != nil {
		return "", capsule.Errorf(capsule.Invalid, "%.64q is no node ID; names are known while `spacectl fabric serve` runs", node)
	}
	return id.String(), withAuthority(t.Home, func(own *identity.Node, a *identity.Authority) error {
		if own.ID() == id {
			return errRevokeSelf
		}
		list, err := a.Revoke(id)
		if err != nil {
			return err
		}
		return own.Revoke(list)
	})
}

// joinable reports whether nodes can join at an address: over TLS and HTTPS, not
// over QUIC.
func joinable(addr string) bool {
	return checkFabricAddress(addr) == nil && !strings.HasPrefix(addr, "quic://")
}

// outwardHost is an address by which others may reach this machine.
func outwardHost() string {
	addrs, _ := net.InterfaceAddrs() // none: the loopback address
	best := "127.0.0.1"
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if n.IP.To4() != nil {
			return n.IP.String()
		}
		best = n.IP.String()
	}
	return best
}

// advertised is what others dial to reach the listener; "": known only when it
// listens.
func (l FabricListen) advertised() string {
	if l.Advertise != "" {
		return l.Advertise
	}
	host, port, err := net.SplitHostPort(l.Address)
	if err != nil || port == "0" {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = outwardHost()
	}
	return l.Carrier + "://" + net.JoinHostPort(host, port)
}

// ConnectFabric returns the API of the fabric's node at home.
func ConnectFabric(ctx context.Context, t Target) (*control.FabricClient, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, max(t.Config.LockTimeout, time.Second), capsule.Errorf(capsule.Unavailable,
		"the node at %s does not answer; `spacectl fabric serve` may be stopped or overloaded", control.FabricSocketPath(t.Home)))
	defer cancel()
	c, err := control.DialFabric(ctx, t.Home)
	if !errors.Is(err, control.ErrNoNode) {
		return c, err
	}
	if _, err := identity.OpenNode(vfs.OS(), FabricDir(t.Home), clock.System()); errors.Is(err, fs.ErrNotExist) {
		return nil, errNoFabric
	}
	return nil, capsule.Errorf(capsule.Unavailable, "no node of the fabric runs here: start it with `spacectl fabric serve`")
}
