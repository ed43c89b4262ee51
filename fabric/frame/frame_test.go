package frame

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

// next reads a frame's head and returns the body's reader.
func next(t testing.TB, b []byte) (Head, *bytes.Reader) {
	t.Helper()
	r := bytes.NewReader(b)
	h, err := ReadHead(r)
	if err != nil {
		t.Fatal(err)
	}
	return h, r
}

// TestGolden: these bytes are what other versions of the program expect.
func TestGolden(t *testing.T) {
	data := make([]byte, DataSize)
	PutData(data, 5, 258)
	start := make([]byte, DataSize)
	PutData(start, 5, 0)
	packets := append([]byte{7}, make([]byte, 15)...)
	for _, p := range []string{"one", "t"} {
		packets, _ = AppendPacket(packets, []byte(p))
	}
	for want, b := range map[string][]byte{
		"01010100" + "00000023" + "010100" + "07" + strings.Repeat("00", 15) + "09" + strings.Repeat("00", 15): HelloBody{1, 1, 0, [16]byte{7}, [16]byte{9}}.Encode(FlagResume),
		"01020104" + "00000012" + "0000000000000005" + "0000000000000102" + "6869":                             Append(nil, Head{Type: Data, Flags: FlagFin, Class: Bulk}, data, []byte("hi")),
		"01030000" + "00000018" + "0000000000000005" + "0000000000000007" + "0000000000000009":                 Append(nil, Head{Type: Window}, AppendWindow(nil, WindowEntry{5, 7, 9})),
		"01040100" + "0000000f" + "0000000000000005" + "00000003" + "776879":                                   ResetBody{5, 3, 0, "why"}.Encode(2, FlagAnswer),
		"01040000" + "0000000f" + "0000000000000005" + "00000002" + "776879":                                   ResetBody{5, 2, time.Second, "why"}.Encode(1, 0),
		"02040000" + "00000013" + "0000000000000005" + "00000002" + "000003e8" + "776879":                      ResetBody{5, 2, time.Second, "why"}.Encode(2, 0),
		"01020202" + "00000017" + "0000000000000005" + "0000000000000000" + "0002" + "6f70" + "686579":         Append(nil, Head{Type: Data, Flags: FlagOpen, Class: DNS}, start, []byte{0, 2}, []byte("op"), []byte("hey")),
		"01050003" + "00000018" + "07" + strings.Repeat("00", 15) + "0003" + "6f6e65" + "0001" + "74":          Append(nil, Head{Type: Packets, Class: Packet}, packets),
		"01070000" + "00000008" + "000000000000000a":                                                           Number(Pong, 10),
		"01080000" + "00000002" + "646f":                                                                       Append(nil, Head{Type: Command}, []byte("do")),
		"010a0100" + "00000000":                                                                                Append(nil, Head{Type: Retire, Flags: FlagAnswer}),
		"01060000" + "00000008" + "000000000000000a":                                                           Number(Ping, 10),
		"01090000" + "00000007" + "00000002" + "627965":                                                        (&GoAwayError{2, "bye"}).Encode(),
	} {
		if got := hex.EncodeToString(b); got != want {
			t.Errorf("%s; it was %s", got, want)
		}
	}
}

func TestRoundTrips(t *testing.T) {
	hello := HelloBody{1, 3, 2, [16]byte{1, 2}, [16]byte{3, 4}}
	if got, flags, err := ReadHello(bytes.NewReader(hello.Encode(FlagResume))); got != hello || flags != FlagResume || err != nil {
		t.Errorf("%+v, %d, %v", got, flags, err)
	}
	for max, want := range map[uint8]uint8{1: 1, 2: 2, 3: 3, 9: 3} {
		if v, err := hello.Agree(max); v != want || err != nil {
			t.Errorf("version %d, %v", v, err)
		}
	}
	if _, err := (HelloBody{Min: 2, Max: 9}).Agree(1); err == nil {
		t.Error("agreed on a version that this node does not speak")
	}
	for version, retry := range map[uint8]time.Duration{1: 0, 2: 1500 * time.Millisecond} {
		h, r := next(t, ResetBody{7, 2, 1500 * time.Millisecond, "busy"}.Encode(version, 0))
		if got, err := ReadReset(r, h); got != (ResetBody{7, 2, retry, "busy"}) || err != nil {
			t.Errorf("version %d: %+v, %v", version, got, err)
		}
	}
	body := make([]byte, DataSize)
	PutData(body, 7, 0)
	h, r := next(t, Append(nil, Head{Type: Data, Flags: FlagOpen, Class: DNS}, body, []byte{0, 2}, []byte("op"), []byte("payload")))
	stream, off, open, n, err := ReadData(r, h)
	rest, _ := io.ReadAll(r)
	if stream != 7 || off != 0 || string(open) != "op" || n != 7 || string(rest) != "payload" || err != nil || h.Class != DNS {
		t.Errorf("%d %d %q %d %q, %v", stream, off, open, n, rest, err)
	}
	b := make([]byte, 16)
	for _, p := range []string{"one", "", "three"} {
		b, _ = AppendPacket(b, []byte(p))
	}
	h, r = next(t, Append(nil, Head{Type: Packets}, b))
	if _, packets, err := ReadPackets(r, h); err != nil || !reflect.DeepEqual(packets, [][]byte{[]byte("one"), {}, []byte("three")}) {
		t.Errorf("%q, %v", packets, err)
	}
	h, r = next(t, (&GoAwayError{2, "bye"}).Encode())
	var bye *GoAwayError
	if err := ReadGoAway(r, h); !errors.As(err, &bye) || bye.Code != 2 || bye.Text != "bye" {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	for what, b := range map[string][]byte{
		"a body of more than 8 MiB": {1, 2, 0, 0, 0, 0x80, 0, 1},
		"an unknown class":          {1, 2, 0, 9, 0, 0, 0, 0},
		"an unknown version":        {9, 2, 0, 0, 0, 0, 0, 0},
	} {
		if _, err := ReadHead(bytes.NewReader(b)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, ok := AppendPacket(make([]byte, MaxPacketBytes), nil); ok {
		t.Error("a batch of packets has no end")
	}
	many := make([]byte, 16, 20<<10)
	for range MaxPackets + 1 {
		many, _ = AppendPacket(many, nil)
	}
	h, r := next(t, Append(nil, Head{Type: Packets}, many))
	if _, _, err := ReadPackets(r, h); !errors.Is(err, ErrProtocol) {
		t.Errorf("%d packets: %v", MaxPackets+1, err)
	}
}

func FuzzFrames(f *testing.F) {
	body := make([]byte, DataSize)
	PutData(body, 7, 0)
	f.Add(HelloBody{1, 1, 0, [16]byte{}, [16]byte{}}.Encode(0))
	f.Add(Append(nil, Head{Type: Data, Flags: FlagOpen}, body, []byte{0, 1}, []byte("x")))
	f.Add(Append(nil, Head{Type: Window}, AppendWindow(nil, WindowEntry{1, 2, 3})))
	f.Add(ResetBody{1, 2, 0, "x"}.Encode(1, 0))
	f.Add(ResetBody{1, 2, time.Second, "x"}.Encode(2, 0))
	f.Add(Append(nil, Head{Type: Retire, Flags: FlagAnswer}))
	f.Add(append(Append(nil, Head{Type: 99}, []byte("from the future")), Append(nil, Head{Type: Command}, []byte("do"))...))
	f.Add(Append(nil, Head{Type: Packets}, make([]byte, 16), []byte{0, 1, 9}))
	f.Add(Number(Ping, 3))
	f.Add((&GoAwayError{1, "x"}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = ReadHello(bytes.NewReader(b)) // must not panic
		r := bytes.NewReader(b)
		for {
			h, err := ReadHead(r)
			if err != nil {
				return
			}
			before := r.Len()
			switch h.Type {
			case Data:
				_, _, _, n, derr := ReadData(r, h)
				if err = derr; err == nil && (n < 0 || n > h.Length) {
					t.Fatalf("%d bytes of payload in a body of %d", n, h.Length)
				}
				if err == nil {
					_, err = io.CopyN(io.Discard, r, int64(n))
				}
			case Window:
				_, err = ReadWindow(r, h)
			case Reset:
				_, err = ReadReset(r, h)
			case Packets:
				_, _, err = ReadPackets(r, h)
			case Ping, Pong:
				_, err = ReadNumber(r, h)
			case GoAway:
				err = ReadGoAway(r, h)
				var bye *GoAwayError
				if errors.As(err, &bye) {
					err = nil
				}
			default:
				_, err = ReadBody(r, h, MaxCommand)
			}
			if err != nil {
				return
			}
			if before-r.Len() != h.Length {
				t.Fatalf("type %d: %d bytes were read of a body of %d", h.Type, before-r.Len(), h.Length)
			}
		}
	})
}
