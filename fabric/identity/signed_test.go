package identity

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func TestRecords(t *testing.T) {
	f := newFabric(t)
	one, two := f.node(), f.node()
	signed := one.SignRecord([]byte("what I am"))
	rec, err := two.CheckRecord(signed)
	if err != nil || rec.From != one.ID() || rec.Organization != DefaultOrganization || string(rec.Body) != "what I am" || rec.Until.Sub(f.clock.Now()) != CertLife {
		t.Fatalf("%+v, %v", rec, err)
	}
	if body, err := PeekRecord(signed); err != nil || string(body) != "what I am" {
		t.Errorf("%q, %v", body, err)
	}
	if _, err := newFabric(t).node().CheckRecord(signed); err == nil {
		t.Error("another fabric's record was believed")
	}
	for i := range signed {
		changed := bytes.Clone(signed)
		changed[i] ^= 4
		if rec, err := two.CheckRecord(changed); err == nil {
			t.Fatalf("byte %d was changed, and it is %v's", i, rec.From)
		}
		if _, err := two.CheckRecord(signed[:i]); err == nil {
			t.Fatalf("%d bytes of it are a record", i)
		}
	}
	// A signature under a command is none under a record, and the other way round.
	v := two.Verifier()
	command, err := one.Signer().Sign(two.ID(), v.Life(), "kind", []byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.CheckRecord(command); err == nil {
		t.Error("a command was taken for a record")
	}
	as, err := PeekRecord(command)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(one.SignRecord(as)); err == nil {
		t.Error("a record was taken for a command")
	}
	if _, err := v.Verify(command); err != nil {
		t.Error(err)
	}
	list, err := f.Revoke(one.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Revoke(list); err != nil {
		t.Fatal(err)
	}
	if _, err := two.CheckRecord(signed); !errors.Is(err, ErrRevoked) || !two.Revoked(one.ID()) || two.Revoked(two.ID()) {
		t.Error(err)
	}
	f.clock.Advance(CertLife + time.Hour)
	if _, err := f.node().CheckRecord(two.SignRecord(nil)); err == nil {
		t.Error("an expired certificate's record was believed")
	}
}
