package lint

import (
	"slices"
	"strings"
)

// floors is the house from top to ground. A package imports only from floors
// below its own, and from its parents on its own floor: views/fuse may import
// views, and neither views/nfs nor the other way round. A name that ends in
// "/..." stands for everything under it that has no place of its own.
var floors = [][]string{
	{"cmd/spacectl"},
	{"internal/node"},
	{"internal/bench/..."},
	{"internal/control/transfer"},
	{"internal/control"},
	{"internal/control/controlpb"},
	{"csi/..."},
	{"views/fuse/...", "views/nfs/...", "views/nvme/...", "views/cache/..."},
	{"views/nvme/wire", "views/nvme/dhchap"},
	{"views"},
	{"federation/..."},
	{"federation/zone/..."},
	{"transform/..."},
	{"fabric/forward", "fabric/vpn", "fabric/files"},
	{"fabric/tunneltest"},
	{"fabric"},
	{"fabric/carrier", "fabric/directory", "fabric/admit"},
	{"fabric/identity/identitytest"},
	{"fabric/session"},
	{"fabric/frame", "fabric/bulk", "fabric/identity", "fabric/relay"},
	{"capsule/tree/..."},
	{"capsule/store"},
	{"capsule/lock", "internal/scratch", "capsule/store/journal", "capsule/store/keyring", "capsule/store/metafs", "capsule/store/seglog"},
	{"internal/holder", "internal/ledger"},
	{"internal/unixsocket"},
	{"capsule"},
	{"pipeline"},
	{"internal/vfs/...", "internal/clock", "internal/notify", "internal/testenv/..."},
	{"internal/testenv/kernelvm/agent"},
	{"vendorstubs/..."},
}

// outside are packages that nothing imports: tests and tools over the whole.
var outside = []string{"internal/e2e", "internal/lint", "scripts/..."}

// testOnly are packages for tests, which nothing that ships may import.
var testOnly = []string{"internal/vfs/vfstest", "fabric/tunneltest", "fabric/identity/identitytest", "internal/testenv/..."}

// engineUsers may import the metadata engine, Pebble.
var engineUsers = []string{"capsule/store", "capsule/store/metafs", "internal/vfs/..."}

// pure packages touch nothing outside of memory.
var pure = []string{"capsule", "pipeline"}

func matches(pattern, pkg string) bool {
	base, all := strings.CutSuffix(pattern, "/...")
	return pkg == base || all && strings.HasPrefix(pkg, base+"/")
}

func matchesAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

// floorOf returns a package's floor, 0 being the top, by the longest name that
// fits; -1: it has none.
func floorOf(pkg string) int {
	floor, length := -1, -1
	for i, row := range floors {
		for _, p := range row {
			if matches(p, pkg) && len(p) > length {
				floor, length = i, len(p)
			}
		}
	}
	return floor
}

// mayImport reports whether the house lets from import to.
func mayImport(from, to string) bool {
	f, t := floorOf(from), floorOf(to)
	return f >= 0 && t >= 0 && (f < t || f == t && strings.HasPrefix(from, to+"/"))
}
