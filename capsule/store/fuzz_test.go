package store

import (
	"bytes"
	"maps"
	"testing"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/pipeline"
)

// FuzzRecords feeds every decoder of metadata records. What one accepts it must
// encode to something that it reads as the same again.
func FuzzRecords(f *testing.F) {
	c := content{id: contentID{1}, size: 100, inline: []extent{{len: 60, id: pipeline.SegmentID{2}}, {len: 40, hole: true}}, extents: 1}
	rec := capsuleRecord{kind: capsule.Object, name: "a/b", version: 3, created: 1, modified: 2, content: c}
	f.Add(rec.encode())
	f.Add(encodeContent(&c))
	f.Add(encodePage(c.inline))
	f.Add((&segmentRow{log: 1, off: 2, recordLen: 3, plainLen: 4, key: 5, refs: 6}).encode(nil))
	f.Add((&logRow{live: 1, again: 2, oldestKey: 3}).encode())
	f.Add((&policyRow{refs: 1, text: "x"}).encode())
	f.Add((&totals{capsules: 1}).encode())
	f.Add((&capsuleRecord{kind: capsule.Volume, name: "v", living: living{family: 1, node: 2, size: 3, block: 512}}).encode())
	f.Add((&snapshotRow{created: 1, content: c}).encode(capsule.Object))
	f.Add((&snapshotRow{created: 1, living: living{family: 1, node: 2}}).encode(capsule.Tree))
	f.Add([]byte("\x01\x800000000")) // a snapshot of kind 6144
	f.Add((&familyRow{policy: policyID{1}}).encode())
	f.Add((&retentionRow{every: 3600e9, keep: 24, last: 1}).encode())
	f.Add(Notes{"a": []byte("x"), "b": nil}.encode())
	f.Add((&nodeRow{parent: 7, owner: ownerSnapshot}).encode())
	f.Add((&row{state: rowBlock, block: &liveBlock{pieces: []piece{
		{off: 3, n: 2, mem: []byte("ab")}, {off: 9, n: 5, id: pipeline.SegmentID{2}, segOff: 1, segLen: 6}}}}).encode())
	f.Add((&row{state: rowData, value: []byte("v")}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, err error) {
			if err != nil {
				t.Fatalf("%s: what was encoded does not decode: %v", what, err)
			}
		}
		if r, err := decodeCapsule(b); err == nil {
			_, err := decodeCapsule(r.encode())
			same("capsule", err)
		}
		if r, err := decodeContent(b); err == nil {
			_, err := decodeContent(encodeContent(&r))
			same("content", err)
		}
		if l, err := decodePage(b, 0); err == nil {
			_, err := decodePage(encodePage(l), 0)
			same("page", err)
		}
		if r, err := decodeSegment(b); err == nil {
			q, err := decodeSegment(r.encode(nil))
			if same("segment", err); q != r {
				t.Fatalf("%+v became %+v", r, q)
			}
		}
		if r, err := decodeLog(b); err == nil {
			q, err := decodeLog(r.encode())
			if same("log", err); q != r {
				t.Fatalf("%+v became %+v", r, q)
			}
		}
		if r, err := decodePolicy(b); err == nil {
			q, err := decodePolicy(r.encode())
			if same("policy", err); q != r {
				t.Fatalf("%+v became %+v", r, q)
			}
		}
		if r, err := decodeTotals(b); err == nil {
			q, err := decodeTotals(r.encode())
			if same("totals", err); q != r {
				t.Fatalf("%+v became %+v", r, q)
			}
		}
		if r, err := decodeRetention(b); err == nil {
			q, err := decodeRetention(r.encode())
			if same("snapshot policy", err); q != r {
				t.Fatalf("%+v became %+v", r, q)
			}
		}
		if n, err := decodeNotes(b); err == nil {
			q, err := decodeNotes(n.encode())
			if same("notes", err); !maps.EqualFunc(n, q, bytes.Equal) {
				t.Fatalf("%q became %q", n, q)
			}
		}
		if r, err := decodeFamily(b); err == nil {
			q, err := decodeFamily(r.encode())
			if same("family", err); q != r {
				t.Fatalf("%+v became %+v", r, q)
			}
		}
		if r, err := decodeNode(b); err == nil {
			q, err := decodeNode(r.encode())
			if same("node", err); q != r {
				t.Fatalf("%+v became %+v", r, q)
			}
		}
		if _, err := decodeSnapshot(b); err == nil {
			r, _ := decodeSnapshot(b)
			_, err := decodeSnapshot(r.encode(capsule.Kind(b[1])))
			same("snapshot", err)
		}
		if r, err := decodeRow("k", b); err == nil {
			q, err := decodeRow("k", r.encode())
			if same("row", err); q.state != r.state || !bytes.Equal(q.encode(), r.encode()) {
				t.Fatalf("%+v became %+v", r, q)
			}
			if r.state == rowBlock {
				// Whatever is written to it, its pieces stay in order.
				w := r.block.write(100, []byte("xyz")).replace(50, 102)
				if _, err := decodeRow("k", (&row{state: rowBlock, block: w}).encode()); err != nil {
					t.Fatalf("%+v after a write: %v", w, err)
				}
			}
		}
		if version, id, err := parseFormat(b); err == nil && !bytes.Equal(encodeFormat(version, id), b) {
			t.Fatal("a format file was accepted that was not written by us")
		}
	})
}
