package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"
)

// pdus returns one PDU of each type with its data, as one side would send it.
func pdus(f Framing) [][]byte {
	data := bytes.Repeat([]byte{0xa5, 1, 2, 3}, 128)
	var sqe SQE
	sqe.SetOpcode(OpWrite)
	sqe.SetCID(7)
	sqe.SetRange(99, 1)
	sqe.SetSGL(SGL{Length: uint32(len(data)), Type: SGLInCapsule})
	with := func(b []byte) []byte { return f.AppendDigest(append(b, data...), data) }
	return [][]byte{
		ICReq{HPDA: 3, HeaderDigest: true, MaxR2T: 5}.Append(nil),
		ICResp{CPDA: 1, DataDigest: true, MaxH2CData: 131072}.Append(nil),
		TermReq{FES: FESSequence, FEI: 4, Header: data[:72]}.Append(nil),
		TermReq{FromHost: true, FES: FESInvalidHeader, FEI: 9}.Append(nil),
		with(f.AppendCommand(nil, &sqe, len(data))),
		f.AppendCommand(nil, &sqe, 0),
		f.AppendResponse(nil, CQE{Result: 1 << 40, SQHead: 3, CID: 7, Status: LBARange | DNR}),
		with(f.AppendC2HData(nil, Data{CID: 7, Offset: 512, Length: uint32(len(data)), Last: true, Success: true})),
		with(f.AppendH2CData(nil, Data{CID: 7, TTag: 9, Length: uint32(len(data))})),
		f.AppendR2T(nil, R2T{CID: 7, TTag: 9, Offset: 4096, Length: 8192}),
	}
}

var framings = []Framing{{}, {HeaderDigest: true}, {DataDigest: true}, {HeaderDigest: true, DataDigest: true, PDA: 31}, {PDA: 7}}

func readerFor(f Framing, b []byte) *Reader {
	r := NewReader(bytes.NewReader(b), 0)
	r.HeaderDigest, r.DataDigest, r.PDA, r.MaxData = f.HeaderDigest, f.DataDigest, f.PDA, 1<<20
	return r
}

// Every PDU comes out as it went in, in one stream, with all digests and
// alignments.
func TestPDUs(t *testing.T) {
	for _, f := range framings {
		list := pdus(f)
		r := readerFor(f, slices.Concat(list...))
		for _, p := range list {
			typ, h, err := r.Next()
			if err != nil {
				t.Fatalf("%+v %s: %v", f, PDUType(p[0]), err)
			}
			data := make([]byte, r.DataLen())
			if err := r.ReadData(data); err != nil {
				t.Fatal(err)
			}
			var again []byte
			switch typ {
			case TypeICReq:
				q, err := ParseICReq(h)
				if err != nil {
					t.Fatal(err)
				}
				again = q.Append(nil)
			case TypeICResp:
				q, err := ParseICResp(h)
				if err != nil {
					t.Fatal(err)
				}
				again = q.Append(nil)
			case TypeC2HTermReq, TypeH2CTermReq:
				q := ParseTermReq(h)
				q.Header = data
				again = q.Append(nil)
			case TypeCapsuleCmd:
				var c SQE
				ParseSQE(h, &c)
				again = f.AppendCommand(nil, &c, len(data))
			case TypeCapsuleResp:
				again = f.AppendResponse(nil, ParseCQE(h))
			case TypeC2HData, TypeH2CData:
				d, err := ParseData(h, len(data))
				if err != nil {
					t.Fatal(err)
				}
				if typ == TypeC2HData {
					again = f.AppendC2HData(nil, d)
				} else {
					again = f.AppendH2CData(nil, d)
				}
			case TypeR2T:
				again = f.AppendR2T(nil, ParseR2T(h))
			}
			if hasDigests(typ) && len(data) > 0 {
				again = f.AppendDigest(append(again, data...), data)
			}
			if !bytes.Equal(again, p) {
				t.Fatalf("%+v %s: read as\n%x, was\n%x", f, typ, again, p)
			}
		}
		if _, _, err := r.Next(); err != io.EOF {
			t.Fatalf("at the end: %v", err)
		}
	}
}

// Data that nobody reads is skipped, and may be read in parts.
func TestReaderParts(t *testing.T) {
	f := Framing{HeaderDigest: true, DataDigest: true}
	r := readerFor(f, slices.Concat(pdus(f)...))
	for {
		_, _, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := r.DataLen(); n == 512 {
			for range 3 {
				if err := r.ReadData(make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// Data that was not read is not taken for the next PDU.
func TestBuffered(t *testing.T) {
	var f Framing
	data := make([]byte, 100)
	one := append(f.AppendC2HData(nil, Data{Length: 100}), data...)
	for n, want := range map[int]bool{len(one): false, len(one) + CommonLen: false, len(one) + DataLen: true, 2 * len(one): true} {
		r := readerFor(f, append(bytes.Clone(one), one...)[:n])
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if r.Buffered() != want {
			t.Errorf("with %d bytes behind the PDU: %t", n-len(one), !want)
		}
	}
}

// A flipped bit is noticed: in a header it ends the connection, in data it
// fails the command and the stream goes on.
func TestDigestErrors(t *testing.T) {
	f := Framing{HeaderDigest: true, DataDigest: true}
	data := make([]byte, 4096)
	good := f.AppendDigest(append(f.AppendC2HData(nil, Data{Length: 4096}), data...), data)

	bad := bytes.Clone(good)
	bad[12] ^= 1
	var p *ProtocolError
	if _, _, err := readerFor(f, bad).Next(); !errors.As(err, &p) || p.FES != FESHeaderDigest || len(p.Header) != DataLen {
		t.Fatalf("bad header digest: %v", err)
	}

	bad = bytes.Clone(good)
	bad[len(bad)-100] ^= 1
	r := readerFor(f, append(bad, good...))
	for i, want := range []error{ErrDataDigest, nil} {
		if _, _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if err := r.ReadData(data); err != want {
			t.Fatalf("PDU %d: %v, should be %v", i, err, want)
		}
	}
}

// Each malformed header is refused with the status and the offset that the
// termination request has to name.
func TestMalformed(t *testing.T) {
	f := Framing{HeaderDigest: true}
	command := pdus(f)[4]
	h2c := pdus(f)[8]
	change := func(p []byte, off int, v ...byte) []byte {
		p = bytes.Clone(p)
		copy(p[off:], v)
		return p
	}
	for name, c := range map[string]struct {
		p   []byte
		fes FES
		fei uint32
	}{
		"type":         {change(command, 0, 8), FESInvalidHeader, 0},
		"type too":     {change(command, 0, 0xff), FESInvalidHeader, 0},
		"no digest":    {change(command, 1, 0), FESInvalidHeader, 1},
		"data digest":  {change(command, 1, 3), FESInvalidHeader, 1},
		"header len":   {change(command, 2, 64), FESInvalidHeader, 2},
		"data offset":  {change(command, 3, 72), FESInvalidHeader, 3},
		"unaligned":    {change(command, 3, 78), FESInvalidHeader, 3},
		"short":        {change(command, 4, 7, 0, 0, 0), FESInvalidHeader, 4},
		"long":         {change(command, 4, 0xff, 0xff, 0xff, 0xff), FESInvalidHeader, 4},
		"too much":     {change(h2c, 4, 0, 0, 0x20, 0), FESLimitExceeded, 0},
		"R2T and data": {change(pdus(f)[9], 4, 64, 0, 0, 0), FESInvalidHeader, 4},
	} {
		var p *ProtocolError
		if _, _, err := readerFor(f, c.p).Next(); !errors.As(err, &p) || p.FES != c.fes || p.FEI != c.fei {
			t.Errorf("%s: %v (%+v), should be %s at %d", name, err, p, c.fes, c.fei)
		}
	}
	for _, p := range pdus(f) {
		for n := 1; n < len(p); n++ {
			r := readerFor(f, p[:n])
			_, _, err := r.Next()
			if err == nil {
				err = r.ReadData(make([]byte, r.DataLen()))
			}
			if err != io.ErrUnexpectedEOF {
				t.Fatalf("%s cut off at %d: %v", PDUType(p[0]), n, err)
			}
		}
	}
	if _, err := ParseICReq(change(pdus(f)[0], 8, 1)); err == nil {
		t.Error("another PDU format version passed")
	}
	if _, err := ParseICReq(change(pdus(f)[0], 10, 32)); err == nil {
		t.Error("a data alignment of 132 bytes passed")
	}
	if _, err := ParseICResp(change(pdus(f)[1], 12, 0, 1, 0, 0)); err == nil {
		t.Error("a MAXH2CDATA of 256 passed")
	}
}

// fill sets every field of a structure to something.
func fill(s any) {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("nqn"[:1+i%3])
		case reflect.Array:
			for j := range f.Len() {
				f.Index(j).SetUint(uint64(i + j + 1))
			}
		default:
			if f.CanUint() {
				f.SetUint(uint64(i) + 1)
			}
		}
	}
}

// Every structure is read as it was written; no two of its fields overlap.
func TestStructures(t *testing.T) {
	for _, s := range []structure{&IdentifyController{}, &IdentifyNamespace{}, &IdentifyNamespaceCommon{}, &IdentifyControllerNVM{},
		&DiscoveryHeader{}, &DiscoveryEntry{}, &ErrorEntry{}, &SMART{}, &ReservNotice{}} {
		fill(s)
		b := appendStructure(nil, s)
		got := reflect.New(reflect.TypeOf(s).Elem()).Interface().(structure)
		if err := parseStructure(b, got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, s) {
			t.Errorf("%T read as\n%+v, was\n%+v", s, got, s)
		}
		if parseStructure(b[:len(b)-1], got) == nil {
			t.Errorf("a short %T passed", s)
		}
	}
	c := Connect{QID: 1, SQSize: 127, CAttr: 4, KATO: 5000, HostID: [16]byte{1, 2}, CNTLID: 3, SubNQN: DiscoveryNQN, HostNQN: "nqn.2014-08.org.x:h"}
	var s SQE
	c.Command(&s)
	if got, err := ParseConnect(&s, c.AppendData(nil)); err != nil || got != c {
		t.Errorf("connect read as %+v, %v", got, err)
	}
	groups := []ANAGroup{{ID: 1, Change: 3, State: ANAOptimized, NSIDs: []uint32{1, 5}}, {ID: 9, State: ANALoss}}
	if n, got := ParseANALog(AppendANALog(nil, 77, groups)); n != 77 || !reflect.DeepEqual(got, groups) {
		t.Errorf("ANA log read as %d %+v", n, got)
	}
	for _, extended := range []bool{true, false} {
		r := ReservStatus{Generation: 5, Type: ReservExclusive, PTPLS: 1, Registrants: []Registrant{{CNTLID: 1, Holder: true, HostID: [16]byte{1}, Key: 9}, {CNTLID: 0xffff, Key: 1}}}
		if got := ParseReservStatus(AppendReservStatus(nil, r, extended), extended); !reflect.DeepEqual(got, r) {
			t.Errorf("reservation report read as %+v", got)
		}
	}
	if d := ParseDescriptors(AppendDescriptor(AppendDescriptor(nil, Descriptor{1, make([]byte, 8)}), Descriptor{4, []byte{0}})); len(d) != 2 || d[1].Type != 4 {
		t.Errorf("descriptors read as %+v", d)
	}
	if r := (DSMRange{1, 2, 3}); ParseDSMRange(AppendDSMRange(nil, r)) != r {
		t.Error("DSM range changed on the way")
	}
}

// CRC32C of the examples in RFC 3720 B.4.
func TestDigest(t *testing.T) {
	if d := Digest(0, make([]byte, 32)); d != 0x8a9136aa {
		t.Errorf("of zeroes: %08x", d)
	}
	if d := Digest(0, bytes.Repeat([]byte{0xff}, 32)); d != 0x62a8ab43 {
		t.Errorf("of ones: %08x", d)
	}
}

func TestNQN(t *testing.T) {
	for s, want := range map[string]bool{DiscoveryNQN: true, "nqn.2026-11.io.x:a": true, "": false, "nqn.": false,
		"nqn.2014-08": false, "nqn.x014-08.org.x": false, "nqn.2014.08.org.x": false, "iqn.2014-08.org.x": false,
		"nqn.2014-08.org.\nx": false, string(bytes.Repeat([]byte("n"), 300)): false} {
		if ValidNQN(s) != want {
			t.Errorf("%q: %t", s, !want)
		}
	}
}

// FuzzReader reads what claims to be a stream of PDUs and decodes each.
func FuzzReader(f *testing.F) {
	for i, g := range framings {
		for _, p := range pdus(g) {
			f.Add(byte(i), p)
		}
		f.Add(byte(i), slices.Concat(pdus(g)...))
	}
	f.Fuzz(func(t *testing.T, framing byte, b []byte) {
		r := readerFor(framings[int(framing)%len(framings)], b)
		total := 0
		for {
			typ, h, err := r.Next()
			var p *ProtocolError
			if errors.As(err, &p) {
				if n := len(TermReq{FES: p.FES, FEI: p.FEI, Header: p.Header}.Append(nil)); n > MaxTermReqLen {
					t.Fatalf("a termination request of %d bytes", n)
				}
			}
			if err != nil {
				return
			}
			if total += r.DataLen(); total > len(b) && r.DataLen() > 1<<20 {
				t.Fatalf("%d bytes of data", r.DataLen())
			}
			data := make([]byte, r.DataLen())
			if err := r.ReadData(data); err != nil && err != ErrDataDigest {
				return
			}
			switch typ {
			case TypeICReq:
				_, _ = ParseICReq(h)
			case TypeICResp:
				_, _ = ParseICResp(h)
			case TypeCapsuleCmd:
				var c SQE
				ParseSQE(h, &c)
				_ = OpcodeName(true, &c)
				_, _ = ParseConnect(&c, data)
				_, _ = ParseProperty(&c)
				_ = ParseAuth(&c)
			case TypeCapsuleResp:
				_ = ParseCQE(h).Status.String()
			case TypeC2HData, TypeH2CData:
				_, _ = ParseData(h, len(data))
			case TypeR2T:
				_ = ParseR2T(h)
			case TypeC2HTermReq, TypeH2CTermReq:
				_ = ParseTermReq(h).FES.String()
			}
		}
	})
}

// FuzzStructures decodes identify structures and log pages from a target that
// is not to be trusted, and encodes them again.
func FuzzStructures(f *testing.F) {
	for _, s := range []structure{&IdentifyController{}, &IdentifyNamespace{}, &DiscoveryEntry{}, &ErrorEntry{}, &SMART{}} {
		fill(s)
		f.Add(appendStructure(nil, s))
	}
	f.Add(AppendANALog(nil, 1, []ANAGroup{{ID: 1, NSIDs: []uint32{1}}}))
	f.Add(AppendReservStatus(nil, ReservStatus{Registrants: []Registrant{{Key: 1}}}, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range []structure{&IdentifyController{}, &IdentifyNamespace{}, &IdentifyNamespaceCommon{}, &IdentifyControllerNVM{},
			&DiscoveryHeader{}, &DiscoveryEntry{}, &ErrorEntry{}, &SMART{}, &ReservNotice{}} {
			if parseStructure(b, s) != nil {
				continue
			}
			once := appendStructure(nil, s)
			if err := parseStructure(once, s); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(appendStructure(nil, s), once) {
				t.Fatalf("%T changes when it is read and written", s)
			}
		}
		ParseANALog(b)
		ParseDescriptors(b)
		ParseNamespaceList(b)
		ParseReservStatus(b, true)
		ParseReservStatus(b, false)
	})
}

// A code means one thing of a fabrics command and another of the NVM command set's.
func TestStatusNames(t *testing.T) {
	var read, connect SQE
	read.SetOpcode(OpRead)
	connect.SetFabrics(FCConnect)
	for _, c := range []struct {
		status Status
		cmd    *SQE
		want   string
	}{
		{0x182, &connect, "connect: invalid parameters"},
		{0x182 | DNR, &read, "attempted write to read only range (do not retry)"},
		{0x183, &read, "command size limit exceeded"},
		{AuthRequired, &read, "authentication required"},
		{LBARange, &read, "LBA out of range"},
		{0x1b8, &read, "status b8h, type 1"},
	} {
		if got := c.status.Of(c.cmd); got != c.want {
			t.Errorf("%03xh: %q; should be %q", uint16(c.status), got, c.want)
		}
	}
}
