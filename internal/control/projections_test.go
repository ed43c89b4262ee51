package control

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/views"
)

// What a projection is asked for, what it is and who uses it cross the socket
// as they are.
func TestProjectionsCrossTheSocket(t *testing.T) {
	f := &fake{
		projection: views.Info{ID: "1", View: views.NVMe, Target: "nqn.x#3", Capsule: capsule.NewID(time.Now()), Name: "v", Mode: views.ModeTCP,
			Since: time.Unix(1, 2).UTC(), Note: "n", NVMe: &views.Namespace{NQN: "nqn.x", NSID: 3, UUID: capsule.NewID(time.Now()), ReadOnly: true,
				Snapshot: "s", Addresses: []string{"[::1]:4420"}, Hosts: []string{"nqn.h"}, Configured: true}},
		clients: []views.Client{{View: views.NVMe, Subsystem: "nqn.x", Host: "nqn.h", Address: "[::1]:9", Controller: 7, Since: time.Unix(3, 4).UTC(), Queues: 2,
			Reads: views.Traffic{Operations: 1, Bytes: 2, P50: 3, P99: 4}, Writes: views.Traffic{Operations: 5, Bytes: 6, P50: 7, P99: 8}}},
	}
	c := serve(t, f)
	req := MountRequest{View: views.NVMe, Ref: "v", ReadOnly: true, Snapshot: "s", NVMe: NVMeExport{Listen: []string{"127.0.0.1:0", "[::1]:0"},
		NQN: "nqn.x", NSID: 3, Hosts: []NVMeHost{{NQN: "nqn.h", Secret: "a", CtrlSecret: "b"}, {NQN: "nqn.i"}}}}
	got, err := c.Mount(t.Context(), req)
	if err != nil || !reflect.DeepEqual(f.mount, req) || !reflect.DeepEqual(got, f.projection) {
		t.Errorf("%v\nasked  %+v\nbecame %+v\nanswer %+v\nbecame %+v", err, req, f.mount, f.projection, got)
	}
	list, err := c.Projections(t.Context())
	if err != nil || !reflect.DeepEqual(list, []views.Info{f.projection}) {
		t.Errorf("listed %+v: %v", list, err)
	}
	clients, err := c.Clients(t.Context())
	if err != nil || !reflect.DeepEqual(clients, f.clients) {
		t.Errorf("clients %+v: %v", clients, err)
	}
	files := MountRequest{View: views.FUSE, Ref: "v", Target: "/mnt", AllowOther: true}
	f.projection = views.Info{View: views.FUSE, Target: "/mnt"}
	if got, err := c.Mount(t.Context(), files); err != nil || !reflect.DeepEqual(f.mount, files) || got.NVMe != nil {
		t.Errorf("%v: %+v became %+v, answer %+v", err, files, f.mount, got)
	}
	for name, change := range map[string]func(*MountRequest){
		"a directory":       func(r *MountRequest) { r.Target = "/mnt" },
		"the namespace":     func(r *MountRequest) { r.Ref, r.All = "", true },
		"a long name":       func(r *MountRequest) { r.NVMe.NQN = strings.Repeat("n", 1000) },
		"a NUL":             func(r *MountRequest) { r.NVMe.Hosts = []NVMeHost{{NQN: "nqn.\x00"}} },
		"many hosts":        func(r *MountRequest) { r.NVMe.Hosts = make([]NVMeHost, 1000) },
		"many addresses":    func(r *MountRequest) { r.NVMe.Listen = make([]string, 1000) },
		"a bad snapshot":    func(r *MountRequest) { r.Snapshot = "a/b" },
		"no capsule at all": func(r *MountRequest) { r.Ref = "" },
	} {
		bad := req
		change(&bad)
		if _, err := c.Mount(t.Context(), bad); capsule.KindOf(err) != capsule.Invalid {
			t.Errorf("%s was taken: %v", name, err)
		}
	}
}
