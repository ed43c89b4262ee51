package control

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/tree"
	"github.com/spacestore/space/internal/control/controlpb"
)

type treesServer struct {
	controlpb.UnimplementedTreesServer
	*Server
}

func (s treesServer) Create(ctx context.Context, req *controlpb.CreateTreeRequest) (*controlpb.Info, error) {
	if err := checkOptionalName(req.GetName()); err != nil {
		return nil, err
	}
	pol, err := policyFrom(req.GetPolicy())
	if err != nil {
		return nil, err
	}
	return infoReply(s.api.CreateTree(ctx, CreateTreeRequest{Name: req.GetName(), Policy: pol,
		Quota: tree.Quota{Bytes: req.GetQuotaBytes(), Inodes: req.GetQuotaInodes()}, UID: req.GetUid(), GID: req.GetGid()}))
}

func (s treesServer) Quota(ctx context.Context, req *controlpb.TreeQuotaRequest) (*controlpb.TreeUsage, error) {
	if err := checkRef(req.GetRef()); err != nil {
		return nil, err
	}
	u, err := s.api.TreeQuota(ctx, TreeQuotaRequest{Ref: req.GetRef(), Bytes: req.Bytes, Inodes: req.Inodes})
	return &controlpb.TreeUsage{Bytes: u.Bytes, Inodes: u.Inodes, QuotaBytes: u.Quota.Bytes, QuotaInodes: u.Quota.Inodes}, err
}

func (s treesServer) Import(stream grpc.ClientStreamingServer[controlpb.PutRequest, controlpb.Info]) error {
	return s.watched(stream.Context(), s.limits.PutIdle, "tree import", func(ctx context.Context, touch func()) error {
		r := &putReader{stream: stream, touch: touch}
		defer r.close()
		first, err := r.next()
		if err != nil {
			return err
		}
		ref := first.GetHeader().GetName()
		if err := checkRef(ref); err != nil {
			return err
		}
		if err := s.api.ImportTree(ctx, ref, r); err != nil {
			return err
		}
		return stream.SendMsg(&controlpb.Info{})
	})
}

func (s treesServer) Export(req *controlpb.ExportRequest, stream grpc.ServerStreamingServer[controlpb.GetResponse]) error {
	if err := checkRef(req.GetRef()); err != nil {
		return err
	}
	if err := checkOptionalSnapshot(req.GetSnapshot()); err != nil {
		return err
	}
	return s.watched(stream.Context(), s.limits.GetIdle, "tree export", func(ctx context.Context, touch func()) error {
		w := &getWriter{stream: stream, pool: s.pool, touch: touch, head: func() proto.Message { return &controlpb.GetResponse{} }}
		defer w.close()
		if err := s.api.ExportTree(ctx, ExportRequest{Ref: req.GetRef(), Snapshot: req.GetSnapshot()}, w); err != nil {
			return err
		}
		return w.flush()
	})
}

func (s treesServer) Diff(req *controlpb.DiffRequest, stream grpc.ServerStreamingServer[controlpb.TreeChanges]) error {
	if err := checkDiff(req); err != nil {
		return err
	}
	return s.watched(stream.Context(), s.limits.GetIdle, "diff", func(ctx context.Context, touch func()) error {
		part := &controlpb.TreeChanges{}
		flush := func() error {
			err := stream.Send(part)
			part = &controlpb.TreeChanges{}
			touch()
			return err
		}
		err := s.api.DiffTree(ctx, DiffRequest{Ref: req.GetRef(), From: req.GetFrom(), To: req.GetTo()}, func(c TreeChange) error {
			part.Changes = append(part.Changes, &controlpb.TreeChange{Change: c.Change, Path: []byte(c.Path), From: []byte(c.From), Mode: c.Mode, Size: c.Size, Inode: c.Inode})
			if len(part.Changes) < reportBatch {
				return nil
			}
			return flush()
		})
		if err != nil {
			return err
		}
		return flush()
	})
}

func (s treesServer) List(req *controlpb.ListTreeRequest, stream grpc.ServerStreamingServer[controlpb.TreeEntries]) error {
	if err := checkRef(req.GetRef()); err != nil {
		return err
	}
	if err := checkOptionalSnapshot(req.GetSnapshot()); err != nil {
		return err
	}
	part := &controlpb.TreeEntries{}
	flush := func() error {
		err := stream.Send(part)
		part = &controlpb.TreeEntries{}
		return err
	}
	err := s.api.ListTree(stream.Context(), ListTreeRequest{Ref: req.GetRef(), Snapshot: req.GetSnapshot(), Path: string(req.GetPath())},
		func(e TreeEntry) error {
			part.Entries = append(part.Entries, &controlpb.TreeEntry{Name: []byte(e.Name), Mode: e.Mode, Nlink: e.Nlink, Uid: e.UID, Gid: e.GID,
				Size: e.Size, Mtime: e.Mtime.Unix(), MtimeNanos: uint32(e.Mtime.Nanosecond()), Inode: e.Inode, Target: []byte(e.Target)})
			if len(part.Entries) < reportBatch {
				return nil
			}
			return flush()
		})
	if err != nil {
		return err
	}
	return flush()
}

func (s treesServer) Check(req *controlpb.CheckTreeRequest, stream grpc.ServerStreamingServer[controlpb.TreeProblem]) error {
	if err := checkRef(req.GetRef()); err != nil {
		return err
	}
	return s.api.CheckTree(stream.Context(), req.GetRef(), req.GetRepair(), func(p tree.Problem) {
		_ = stream.Send(&controlpb.TreeProblem{Inode: p.Ino, What: clip(p.What, 1<<10), Repaired: p.Repaired}) // a client that is gone ends the context
	})
}

// CreateTree implements API.
func (c *Client) CreateTree(ctx context.Context, req CreateTreeRequest) (capsule.Info, error) {
	return c.info(ctx)(c.trees.Create(ctx, &controlpb.CreateTreeRequest{Name: req.Name, Policy: policyTo(req.Policy),
		QuotaBytes: req.Quota.Bytes, QuotaInodes: req.Quota.Inodes, Uid: req.UID, Gid: req.GID}))
}

// TreeQuota implements API.
func (c *Client) TreeQuota(ctx context.Context, req TreeQuotaRequest) (tree.Usage, error) {
	u, err := c.trees.Quota(ctx, &controlpb.TreeQuotaRequest{Ref: req.Ref, Bytes: req.Bytes, Inodes: req.Inodes})
	if err != nil {
		return tree.Usage{}, c.fromStatus(ctx, err)
	}
	return tree.Usage{Bytes: u.GetBytes(), Inodes: u.GetInodes(),
		Quota: tree.Quota{Bytes: u.GetQuotaBytes(), Inodes: u.GetQuotaInodes()}}, nil
}

// ImportTree implements API.
func (c *Client) ImportTree(ctx context.Context, ref string, tar io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.trees.Import(ctx)
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	if err := c.sendContent(ctx, stream, &controlpb.PutHeader{Name: ref, Size: -1}, chunkSize, tar); err != nil {
		return err
	}
	return c.fromStatus(ctx, stream.RecvMsg(&controlpb.Info{}))
}

// ExportTree implements API.
func (c *Client) ExportTree(ctx context.Context, req ExportRequest, tar io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.trees.Export(ctx, &controlpb.ExportRequest{Ref: req.Ref, Snapshot: req.Snapshot})
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	return receiveContent(c, ctx, stream, func() *controlpb.GetResponse { return &controlpb.GetResponse{} },
		func(_ *controlpb.GetResponse, data mem.BufferSlice) error { return writeAll(tar, data) })
}

// ListTree implements API.
func (c *Client) ListTree(ctx context.Context, req ListTreeRequest, fn func(TreeEntry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.trees.List(ctx, &controlpb.ListTreeRequest{Ref: req.Ref, Snapshot: req.Snapshot, Path: []byte(req.Path)})
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	return batches(c, ctx, stream, func(part *controlpb.TreeEntries) error {
		for _, e := range part.GetEntries() {
			if err := fn(TreeEntry{Name: string(e.GetName()), Mode: e.GetMode(), Nlink: e.GetNlink(), UID: e.GetUid(), GID: e.GetGid(), Size: e.GetSize(),
				Mtime: time.Unix(e.GetMtime(), int64(e.GetMtimeNanos())), Inode: e.GetInode(), Target: string(e.GetTarget())}); err != nil {
				return err
			}
		}
		return nil
	})
}

// CheckTree implements API.
func (c *Client) CheckTree(ctx context.Context, ref string, repair bool, fn func(tree.Problem)) error {
	stream, err := c.trees.Check(ctx, &controlpb.CheckTreeRequest{Ref: ref, Repair: repair})
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	return batches(c, ctx, stream, func(p *controlpb.TreeProblem) error {
		fn(tree.Problem{Ino: p.GetInode(), What: p.GetWhat(), Repaired: p.GetRepaired()})
		return nil
	})
}

// DiffTree implements API.
func (c *Client) DiffTree(ctx context.Context, req DiffRequest, fn func(TreeChange) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.trees.Diff(ctx, &controlpb.DiffRequest{Ref: req.Ref, From: req.From, To: req.To})
	if err != nil {
		return c.fromStatus(ctx, err)
	}
	return batches(c, ctx, stream, func(part *controlpb.TreeChanges) error {
		for _, x := range part.GetChanges() {
			change := TreeChange{Change: x.GetChange(), Path: string(x.GetPath()), From: string(x.GetFrom()), Mode: x.GetMode(), Size: x.GetSize(), Inode: x.GetInode()}
			if err := fn(change); err != nil {
				return err
			}
		}
		return nil
	})
}
