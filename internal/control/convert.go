package control

import (
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/capsule/store"
	"github.com/spacestore/space/internal/control/controlpb"
	"github.com/spacestore/space/views"
)

// Both directions of each message stand side by side here, so that a field
// added to one is missed in neither.

func idTo(id capsule.ID) []byte {
	if id.IsZero() {
		return nil
	}
	return id[:]
}

func idFrom(b []byte) (id capsule.ID, err error) {
	switch len(b) {
	case 0, len(id):
		copy(id[:], b)
		return id, nil
	}
	return id, capsule.Errorf(capsule.Invalid, "a capsule ID has 16 bytes, not %d", len(b))
}

func timeTo(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeFrom(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

func infoTo(i capsule.Info) *controlpb.Info {
	return &controlpb.Info{Id: idTo(i.ID), Kind: uint32(i.Kind), Name: i.Name, Size: i.Size, Version: i.Version,
		CreatedUnixNano: timeTo(i.Created), ModifiedUnixNano: timeTo(i.Modified)}
}

func infoFrom(p *controlpb.Info) capsule.Info {
	id, _ := idFrom(p.GetId())
	return capsule.Info{ID: id, Kind: capsule.Kind(p.GetKind()), Name: p.GetName(), Size: p.GetSize(), Version: p.GetVersion(),
		Created: timeFrom(p.GetCreatedUnixNano()), Modified: timeFrom(p.GetModifiedUnixNano())}
}

func statTo(s capsule.Stat) *controlpb.StatResponse {
	return &controlpb.StatResponse{Info: infoTo(s.Info), Segments: s.Segments, HoleBytes: s.HoleBytes, UniqueBytes: s.UniqueBytes,
		StoredBytes: s.StoredBytes, OwnBytes: s.OwnBytes, Ratio: s.Ratio, Policy: policyTo(s.Policy), NotEnforced: s.NotEnforced,
		AllocatedBytes: s.AllocatedBytes}
}

func statFrom(p *controlpb.StatResponse) (capsule.Stat, error) {
	pol, err := policyFrom(p.GetPolicy())
	return capsule.Stat{Info: infoFrom(p.GetInfo()), Segments: p.GetSegments(), HoleBytes: p.GetHoleBytes(), UniqueBytes: p.GetUniqueBytes(),
		StoredBytes: p.GetStoredBytes(), OwnBytes: p.GetOwnBytes(), Ratio: p.GetRatio(), Policy: pol, NotEnforced: p.GetNotEnforced(),
		AllocatedBytes: p.GetAllocatedBytes()}, err
}

func volumeTo(r store.CreateRequest) *controlpb.VolumeHeader {
	return &controlpb.VolumeHeader{Name: r.Name, Size: r.Size, BlockSize: int64(r.BlockSize), Policy: policyTo(r.Policy)}
}

func volumeFrom(p *controlpb.VolumeHeader) (store.CreateRequest, error) {
	pol, err := policyFrom(p.GetPolicy())
	return store.CreateRequest{Kind: capsule.Volume, Name: p.GetName(), Size: p.GetSize(), BlockSize: int(p.GetBlockSize()), Policy: pol}, err
}

func snapshotTo(s capsule.Snapshot) *controlpb.Snapshot {
	return &controlpb.Snapshot{Name: s.Name, CreatedUnixNano: timeTo(s.Created), Size: s.Size}
}

func snapshotFrom(p *controlpb.Snapshot) capsule.Snapshot {
	return capsule.Snapshot{Name: p.GetName(), Created: timeFrom(p.GetCreatedUnixNano()), Size: p.GetSize()}
}

func snapshotPolicyTo(p capsule.SnapshotPolicy) *controlpb.SnapshotPolicy {
	return &controlpb.SnapshotPolicy{EveryNano: int64(p.Every), Keep: int32(p.Keep), LastUnixNano: timeTo(p.Last)}
}

func snapshotPolicyFrom(p *controlpb.SnapshotPolicy) capsule.SnapshotPolicy {
	return capsule.SnapshotPolicy{Every: capsule.Duration(p.GetEveryNano()), Keep: int(p.GetKeep()), Last: timeFrom(p.GetLastUnixNano())}
}

func usageTo(u capsule.Usage) *controlpb.UsageResponse {
	return &controlpb.UsageResponse{Capsules: u.Capsules, Segments: u.Segments, LogicalBytes: u.LogicalBytes, UniqueBytes: u.UniqueBytes,
		StoredBytes: u.StoredBytes, DeadBytes: u.DeadBytes, MetaBytes: u.MetaBytes, DiskBytes: u.DiskBytes, FreeBytes: u.FreeBytes,
		PendingBytes: u.PendingBytes, Ratio: u.Ratio, DedupRatio: u.DedupRatio}
}

func usageFrom(p *controlpb.UsageResponse) capsule.Usage {
	return capsule.Usage{Capsules: p.GetCapsules(), Segments: p.GetSegments(), LogicalBytes: p.GetLogicalBytes(), UniqueBytes: p.GetUniqueBytes(),
		StoredBytes: p.GetStoredBytes(), DeadBytes: p.GetDeadBytes(), MetaBytes: p.GetMetaBytes(), DiskBytes: p.GetDiskBytes(), FreeBytes: p.GetFreeBytes(),
		PendingBytes: p.GetPendingBytes(), Ratio: p.GetRatio(), DedupRatio: p.GetDedupRatio()}
}

func gcReportTo(r store.GCReport) *controlpb.GCReport {
	return &controlpb.GCReport{LogsRemoved: int64(r.LogsRemoved), LogsMoved: int64(r.LogsMoved), FreedBytes: r.FreedBytes,
		MovedBytes: r.MovedBytes, Recompressed: r.Recompressed, Resealed: r.Resealed, Unmovable: int64(r.Unmovable)}
}

func gcReportFrom(p *controlpb.GCReport) store.GCReport {
	return store.GCReport{LogsRemoved: int(p.GetLogsRemoved()), LogsMoved: int(p.GetLogsMoved()), FreedBytes: p.GetFreedBytes(),
		MovedBytes: p.GetMovedBytes(), Recompressed: p.GetRecompressed(), Resealed: p.GetResealed(), Unmovable: int(p.GetUnmovable())}
}

func damageTo(d store.Damage) *controlpb.Damage {
	return &controlpb.Damage{Capsule: idTo(d.Capsule), Name: d.Name, Off: d.Off, Len: d.Len, Log: d.Log, LogOff: d.LogOff, Why: d.Why}
}

func damageFrom(p *controlpb.Damage) store.Damage {
	id, _ := idFrom(p.GetCapsule())
	return store.Damage{Capsule: id, Name: p.GetName(), Off: p.GetOff(), Len: p.GetLen(), Log: p.GetLog(), LogOff: p.GetLogOff(), Why: p.GetWhy()}
}

func projectionTo(p views.Info) *controlpb.Projection {
	return &controlpb.Projection{Id: p.ID, View: p.View, Target: p.Target, Capsule: idTo(p.Capsule), Name: p.Name,
		Mode: string(p.Mode), SinceUnixNano: timeTo(p.Since), Note: p.Note, Nvme: nvmeTo(p.NVMe)}
}

func projectionFrom(p *controlpb.Projection) views.Info {
	id, _ := idFrom(p.GetCapsule())
	return views.Info{ID: p.GetId(), View: p.GetView(), Target: p.GetTarget(), Capsule: id, Name: p.GetName(),
		Mode: views.Mode(p.GetMode()), Since: timeFrom(p.GetSinceUnixNano()), Note: p.GetNote(), NVMe: nvmeFrom(p.GetNvme())}
}

func nvmeTo(n *views.Namespace) *controlpb.NVMeNamespace {
	if n == nil {
		return nil
	}
	return &controlpb.NVMeNamespace{Nqn: n.NQN, Nsid: n.NSID, Uuid: n.UUID[:], ReadOnly: n.ReadOnly, Snapshot: n.Snapshot,
		Addresses: n.Addresses, Hosts: n.Hosts, Configured: n.Configured}
}

func nvmeFrom(p *controlpb.NVMeNamespace) *views.Namespace {
	if p == nil {
		return nil
	}
	id, _ := idFrom(p.GetUuid())
	return &views.Namespace{NQN: p.GetNqn(), NSID: p.GetNsid(), UUID: id, ReadOnly: p.GetReadOnly(), Snapshot: p.GetSnapshot(),
		Addresses: p.GetAddresses(), Hosts: p.GetHosts(), Configured: p.GetConfigured()}
}

func mountTo(r MountRequest) *controlpb.MountRequest {
	p := &controlpb.MountRequest{View: r.View, Ref: r.Ref, All: r.All, Target: r.Target, AllowOther: r.AllowOther,
		ReadOnly: r.ReadOnly, Snapshot: r.Snapshot, Nvme: &controlpb.NVMeExport{Listen: r.NVMe.Listen, Nqn: r.NVMe.NQN, Nsid: r.NVMe.NSID}}
	for _, h := range r.NVMe.Hosts {
		p.Nvme.Hosts = append(p.Nvme.Hosts, &controlpb.NVMeHost{Nqn: h.NQN, Secret: h.Secret, CtrlSecret: h.CtrlSecret})
	}
	return p
}

func mountFrom(p *controlpb.MountRequest) MountRequest {
	n := p.GetNvme()
	r := MountRequest{View: p.GetView(), Ref: p.GetRef(), All: p.GetAll(), Target: p.GetTarget(), AllowOther: p.GetAllowOther(),
		ReadOnly: p.GetReadOnly(), Snapshot: p.GetSnapshot(), NVMe: NVMeExport{Listen: n.GetListen(), NQN: n.GetNqn(), NSID: n.GetNsid()}}
	for _, h := range n.GetHosts() {
		r.NVMe.Hosts = append(r.NVMe.Hosts, NVMeHost{NQN: h.GetNqn(), Secret: h.GetSecret(), CtrlSecret: h.GetCtrlSecret()})
	}
	return r
}

func clientTo(c views.Client) *controlpb.Client {
	return &controlpb.Client{View: c.View, Subsystem: c.Subsystem, Host: c.Host, Address: c.Address, Controller: uint32(c.Controller),
		SinceUnixNano: timeTo(c.Since), Queues: uint32(c.Queues), Reads: trafficTo(c.Reads), Writes: trafficTo(c.Writes)}
}

func clientFrom(p *controlpb.Client) views.Client {
	return views.Client{View: p.GetView(), Subsystem: p.GetSubsystem(), Host: p.GetHost(), Address: p.GetAddress(),
		Controller: uint16(p.GetController()), Since: timeFrom(p.GetSinceUnixNano()), Queues: int(p.GetQueues()),
		Reads: trafficFrom(p.GetReads()), Writes: trafficFrom(p.GetWrites())}
}

func trafficTo(t views.Traffic) *controlpb.Traffic {
	return &controlpb.Traffic{Operations: t.Operations, Bytes: t.Bytes, P50Nano: int64(t.P50), P99Nano: int64(t.P99)}
}

func trafficFrom(p *controlpb.Traffic) views.Traffic {
	return views.Traffic{Operations: p.GetOperations(), Bytes: p.GetBytes(), P50: capsule.Duration(p.GetP50Nano()), P99: capsule.Duration(p.GetP99Nano())}
}

func statusTo(s Status) *controlpb.StatusResponse {
	return &controlpb.StatusResponse{Version: s.Version, Pid: int64(s.PID), Ephemeral: s.Ephemeral, Draining: s.Draining,
		StartedUnixNano: timeTo(s.Started), Projections: int32(s.Projections)}
}

func statusFrom(p *controlpb.StatusResponse) Status {
	return Status{Version: p.GetVersion(), PID: int(p.GetPid()), Ephemeral: p.GetEphemeral(), Draining: p.GetDraining(),
		Started: timeFrom(p.GetStartedUnixNano()), Projections: int(p.GetProjections())}
}

// A policy travels as its YAML text and is parsed strictly at the other end,
// as a file is; no text stands for no policy.

func policyTo(p *capsule.Policy) string {
	if p == nil {
		return ""
	}
	return string(p.YAML())
}

func policyFrom(text string) (*capsule.Policy, error) {
	if text == "" {
		return nil, nil
	}
	return capsule.ParsePolicy("policy", []byte(text))
}
