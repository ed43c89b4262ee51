package node

import (
	"context"
	"io"
	"strings"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/control"
)

// CreateTree implements control.API.
func (l *Local) CreateTree(ctx context.Context, req control.CreateTreeRequest) (capsule.Info, error) {
	return l.trees.Create(ctx, req.Name, req.Policy, tree.New{Mode: 0o755, UID: req.UID, GID: req.GID}, req.Quota)
}

// TreeQuota implements control.API.
func (l *Local) TreeQuota(ctx context.Context, req control.TreeQuotaRequest) (u tree.Usage, err error) {
	err = l.withTree(ctx, req.Ref, "", func(fs *tree.FS) error {
		q := fs.Usage().Quota
		for of, to := range map[*int64]*int64{&q.Bytes: req.Bytes, &q.Inodes: req.Inodes} {
			if to != nil {
				*of = *to
			}
		}
		if req.Bytes != nil || req.Inodes != nil {
			if err := fs.SetQuota(ctx, q); err != nil {
				return err
			}
			if err := fs.Sync(ctx); err != nil {
				return err
			}
		}
		u = fs.Usage()
		return nil
	})
	return u, err
}

// ImportTree implements control.API.
func (l *Local) ImportTree(ctx context.Context, ref string, tar io.Reader) error {
	return l.withTree(ctx, ref, "", func(fs *tree.FS) error {
		if err := fs.Import(ctx, tree.Root, tar); err != nil {
			return err
		}
		return fs.Sync(ctx)
	})
}

// ExportTree implements control.API. It exports a snapshot, so that a tree in
// use is what it was at one moment.
func (l *Local) ExportTree(ctx context.Context, req control.ExportRequest, tar io.Writer) error {
	info, err := l.store.Resolve(ctx, req.Ref)
	if err != nil {
		return err
	}
	export := func(snapshot string) error {
		return l.withTree(ctx, info.ID.String(), snapshot, func(fs *tree.FS) error { return fs.Export(ctx, tree.Root, tar) })
	}
	if req.Snapshot == "" && info.Kind == capsule.Tree {
		return l.trees.AtRest(ctx, info.ID, "export", export)
	}
	return export(req.Snapshot)
}

// DiffTree implements control.API.
func (l *Local) DiffTree(ctx context.Context, req control.DiffRequest, fn func(control.TreeChange) error) error {
	info, err := l.store.Resolve(ctx, req.Ref)
	if err != nil {
		return err
	}
	if info.Kind != capsule.Tree {
		return capsule.Errorf(capsule.Unsupported, "capsule %s is a %s and no tree", info.ID, info.Kind)
	}
	return l.trees.Diff(ctx, info.ID, req.From, req.To, func(d tree.Difference) error {
		return fn(control.TreeChange{Change: d.Kind.String(), Path: d.Path, From: d.From, Mode: d.Attr.StatMode(), Size: d.Attr.Size, Inode: d.Attr.Ino})
	})
}

// ListTree implements control.API.
func (l *Local) ListTree(ctx context.Context, req control.ListTreeRequest, fn func(control.TreeEntry) error) error {
	return l.withTree(ctx, req.Ref, req.Snapshot, func(fs *tree.FS) error {
		at, err := fs.GetAttr(ctx, tree.Root)
		if err != nil {
			return err
		}
		name := "."
		for part := range strings.SplitSeq(req.Path, "/") {
			if part == "" || part == "." {
				continue
			}
			if at, err = fs.Lookup(ctx, nil, at.Ino, part); err != nil {
				return err
			}
			name = part
		}
		entry := func(name string, a tree.Attr) error {
			e := control.TreeEntry{Name: name, Mode: a.StatMode(), Nlink: a.Nlink, UID: a.UID, GID: a.GID, Size: a.Size, Mtime: a.Mtime, Inode: a.Ino}
			if a.Type == tree.Symlink {
				target, err := fs.Readlink(ctx, a.Ino)
				if err != nil {
					return err
				}
				e.Target = target
			}
			return fn(e)
		}
		if at.Type != tree.Directory {
			return entry(name, at)
		}
		var failed error
		err = fs.ReadDirPlus(ctx, nil, at.Ino, 0, func(e tree.Entry) bool {
			failed = entry(e.Name, e.Attr)
			return failed == nil
		})
		if failed != nil {
			return failed
		}
		return err
	})
}

// CheckTree implements control.API.
func (l *Local) CheckTree(ctx context.Context, ref string, repair bool, fn func(tree.Problem)) error {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	return l.trees.Check(ctx, info.ID, repair, fn)
}

// withTree calls fn with an open tree.
func (l *Local) withTree(ctx context.Context, ref, snapshot string, fn func(*tree.FS) error) error {
	info, err := l.store.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	fs, done, err := l.trees.Open(ctx, info.ID, snapshot)
	if err != nil {
		return err
	}
	defer done()
	return fn(fs)
}
