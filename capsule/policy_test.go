package capsule

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spacestore/space/internal/testenv/seed"
)

func init() { seed.Rapid() }

var update = flag.Bool("update", false, "rewrite the golden files")

// TestPolicyErrors holds each bad file's whole error text to a golden file.
func TestPolicyErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/policy/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = ParsePolicy("policy.yaml", data)
			if err == nil {
				t.Fatal("accepted")
			}
			if KindOf(err) != Invalid {
				t.Errorf("kind %v, want %v", KindOf(err), Invalid)
			}
			got := err.Error() + "\n"
			for line := range strings.Lines(got) {
				if !strings.HasPrefix(line, "policy.yaml:") {
					t.Errorf("a line without its position: %q", line)
				}
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestPolicyTooLong(t *testing.T) {
	data := []byte("dedupe: true\n#" + strings.Repeat("x", MaxPolicy))
	if _, err := ParsePolicy("p", data); err == nil || !strings.Contains(err.Error(), "longer than the limit") {
		t.Errorf("got %v", err)
	}
	// Short as a flow mapping, longer than the limit in its canonical form.
	var long strings.Builder
	long.WriteString("transform: [{name: a, image: 'file://x', trigger: on-read, args: {")
	for i := range 16 {
		fmt.Fprintf(&long, "a%d: '%s',", i, strings.Repeat(`\`, 4000))
	}
	long.WriteString("}}]")
	if long.Len() > MaxPolicy {
		t.Fatalf("the test's own file is too long: %d", long.Len())
	}
	if _, err := ParsePolicy("p", []byte(long.String())); err == nil || !strings.Contains(err.Error(), "written in full") {
		t.Errorf("got %.200v", err)
	}
}

func TestPolicyDefaults(t *testing.T) {
	for _, data := range []string{"", "\n", "# nothing\n", "---\n", "{}", "\ufeff"} {
		p, err := ParsePolicy("p", []byte(data))
		if err != nil {
			t.Errorf("%q: %v", data, err)
		} else if !p.Equal(DefaultPolicy()) {
			t.Errorf("%q is not the default policy: %s", data, p.YAML())
		}
	}
}

func TestPolicyValues(t *testing.T) {
	p, err := ParsePolicy("p", []byte(`
compression: zstd:7
dedupe: false
rpo: 0
latency_target: 1m30s
sovereignty: global
views: [csi, fuse]
federation: {targets: [zone-2, '7'], priority: high}
transform:
- {name: t, image: "capsule://6ba7b810-9dad-41d1-80b4-00c04fd430c8", trigger: on-write, args: {n: 0x10, b: true, s: '', t: 2026-01-02}}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultPolicy()
	want.Compression, want.Dedupe, want.LatencyTarget, want.Sovereignty = "zstd:7", false, Duration(90*time.Second), "global"
	want.Views = Views{"fuse", "csi"}
	want.Federation = Federation{Targets: []string{"zone-2", "7"}, Priority: "high"}
	want.Transform = []Transform{{
		Name: "t", Image: "capsule://6ba7b810-9dad-41d1-80b4-00c04fd430c8", Trigger: "on-write",
		Args:      map[string]string{"n": "0x10", "b": "true", "s": "", "t": "2026-01-02"},
		Resources: TransformResources{MaxMemoryPages: 16, FuelLimit: 10_000_000},
	}}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

func TestPolicyCodec(t *testing.T) {
	for in, want := range map[string]struct {
		name  string
		level int
	}{
		"auto": {"auto", 0}, "none": {"none", 0}, "lz4": {"lz4", 0}, "s2": {"s2", 0},
		"zstd": {"zstd", 3}, "zstd:1": {"zstd", 1}, "zstd:19": {"zstd", 19},
	} {
		p, err := ParsePolicy("p", []byte("compression: "+in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if name, level := p.Codec(); name != want.name || level != want.level {
			t.Errorf("%s: %s %d, want %v", in, name, level, want)
		}
	}
	for _, in := range []string{"zstd:", "zstd:0", "zstd:03", "zstd:+3", "zstd:20", "ZSTD", "auto ,", "lz4:1"} {
		if _, err := ParsePolicy("p", []byte("compression: '"+in+"'")); err == nil {
			t.Errorf("%q accepted", in)
		}
	}
}

func TestPolicyViews(t *testing.T) {
	for in, want := range map[string]string{
		"dedupe: true":     "fuse nfs nvme csi cache",
		"views: []":        "",
		"views: [nfs]":     "nfs",
		"views: [nfs,csi]": "nfs csi",
	} {
		p, err := ParsePolicy("p", []byte(in))
		if err != nil {
			t.Fatal(err)
		}
		var allowed []string
		for _, v := range viewNames {
			if p.AllowsView(v) {
				allowed = append(allowed, v)
			}
		}
		if got := strings.Join(allowed, " "); got != want {
			t.Errorf("%s allows %q, want %q", in, got, want)
		}
		if again, err := ParsePolicy("p", p.YAML()); err != nil || !again.Equal(p) {
			t.Errorf("%s: does not survive its own YAML %q: %v", in, p.YAML(), err)
		}
	}
}

func TestPolicyViewModes(t *testing.T) {
	for in, want := range map[string][2]bool{ // may an object be written through FUSE, may a tree
		"dedupe: true":                 {false, true},
		"views: [fuse]":                {false, true},
		"views: ['fuse:ro']":           {false, false},
		"views: [nfs, 'fuse:rw', csi]": {true, true},
		"views: ['nfs:rw', fuse]":      {false, true},
	} {
		p, err := ParsePolicy("p", []byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]bool{p.AllowsWriting("fuse", Object), p.AllowsWriting("fuse", Tree)}; got != want || !p.AllowsView("fuse") {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
		if again, err := ParsePolicy("p", p.YAML()); err != nil || !again.Equal(p) {
			t.Errorf("%s: does not survive its own YAML %q: %v", in, p.YAML(), err)
		}
	}
	for _, in := range []string{"views: ['fuse:rx']", "views: ['smb:ro']", "views: [fuse, 'fuse:ro']", "views: ['fuse:']"} {
		if _, err := ParsePolicy("p", []byte(in)); err == nil {
			t.Errorf("%s is taken", in)
		}
	}
}

func TestPolicyNotEnforced(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "[]",
		"rpo: 0s\nlatency_target: 0":     "[]",
		"durability: journal":            "[]", // every capsule gets sync, which is more
		"encryption: disabled":           "[]",
		"views: [nfs]":                   "[]", // what it leaves out is refused
		"rpo: 5s\nlatency_target: 2ms":   "[rpo latency_target]",
		"sovereignty: local":             "[sovereignty]",
		"federation: {targets: [z]}":     "[federation]",
		"federation: {priority: high}":   "[federation]",
		"federation: {priority: normal}": "[]",
		"transform: [{name: a, image: 'file://a', trigger: on-read}]": "[transform]",
	} {
		p, err := ParsePolicy("p", []byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(p.NotEnforced()); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestPolicyJSON(t *testing.T) {
	b, err := json.Marshal(DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"compression":"auto","dedupe":true,"encryption":"aes-256-gcm","durability":"sync","rpo":"0s",` +
		`"latency_target":"0s","sovereignty":"zone","views":["fuse","nfs","nvme","csi","cache"],` +
		`"federation":{"targets":[],"priority":"normal"},"transform":[]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	var back Policy
	if err := json.Unmarshal(b, &back); err != nil {
		t.Error(err)
	}
}

func TestPolicyCanonicalYAML(t *testing.T) {
	const want = "compression: auto\ndedupe: true\nencryption: aes-256-gcm\ndurability: sync\n" +
		"rpo: 0s\nlatency_target: 0s\nsovereignty: zone\n"
	if got := string(DefaultPolicy().YAML()); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestExamplePolicies(t *testing.T) {
	files, err := filepath.Glob("../deployment/policies/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePolicy(file, data); err != nil {
			t.Error(err)
		}
	}
}

func drawPolicy(t *rapid.T) *Policy {
	label := rapid.StringMatching(`[a-z0-9-]{1,63}`)
	line := rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r >= ' ' && (r < 0x7f || r > 0x9f) }), 1, 40, 300)
	p := DefaultPolicy()
	p.Compression = rapid.SampledFrom(append([]string{"zstd:1", "zstd:19"}, compressionNames...)).Draw(t, "compression")
	p.Dedupe = rapid.Bool().Draw(t, "dedupe")
	p.Encryption = rapid.SampledFrom(encryptionNames).Draw(t, "encryption")
	p.Durability = rapid.SampledFrom(durabilityNames).Draw(t, "durability")
	p.RPO = Duration(rapid.Int64Range(0, int64(maxRPO)).Draw(t, "rpo"))
	p.LatencyTarget = Duration(rapid.Int64Range(0, int64(maxLatency)).Draw(t, "latency"))
	p.Sovereignty = rapid.SampledFrom([]string{"zone", "global"}).Draw(t, "sovereignty")
	if rapid.Bool().Draw(t, "has views") {
		p.Views = Views{}
		for _, v := range viewNames {
			if rapid.Bool().Draw(t, v) {
				p.Views = append(p.Views, v)
			}
		}
	}
	p.Federation.Targets = rapid.SliceOfNDistinct(label, 0, 4, rapid.ID).Draw(t, "targets")
	p.Federation.Priority = rapid.SampledFrom(priorityNames).Draw(t, "priority")
	for _, name := range rapid.SliceOfNDistinct(label, 0, 3, rapid.ID).Draw(t, "transforms") {
		tr := Transform{
			Name: name, Image: "file://" + line.Draw(t, "image"), Trigger: rapid.SampledFrom(triggerNames).Draw(t, "trigger"),
			Args:      rapid.MapOfN(line, line, 0, 4).Draw(t, "args"),
			Resources: TransformResources{rapid.Uint64Range(1, maxMemoryPages).Draw(t, "pages"), rapid.Uint64Range(1, maxFuel).Draw(t, "fuel")},
		}
		if rapid.Bool().Draw(t, "verified") {
			tr.Verification.SHA256 = rapid.StringMatching(`[0-9a-f]{64}`).Draw(t, "sha256")
			tr.Verification.Signature = line.Draw(t, "signature")
		}
		p.Transform = append(p.Transform, tr)
	}
	return p
}

func TestPolicyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPolicy(t)
		text := p.YAML()
		back, err := ParsePolicy("p", text)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		if !back.Equal(p) || !p.Equal(back) {
			t.Fatalf("came back different:\n%s\n%s", text, back.YAML())
		}
		if string(back.YAML()) != string(text) {
			t.Fatalf("not canonical:\n%s\n%s", text, back.YAML())
		}
	})
}

// TestPolicyEqual holds Equal to what can be seen of a policy.
func TestPolicyEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, q := drawPolicy(t), drawPolicy(t)
		if got, want := p.Equal(q), string(p.YAML()) == string(q.YAML()); got != want {
			t.Fatalf("Equal is %v for:\n%s\n%s", got, p.YAML(), q.YAML())
		}
	})
}

func FuzzParsePolicy(f *testing.F) {
	for _, pattern := range []string{"testdata/policy/bad/*.yaml", "../deployment/policies/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("no seeds in %s: %v", pattern, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte("transform: [{name: a, image: \"file://\\u00e9\\U0001F600\", trigger: on-read, args: {\"\\uFEFF\": '#'}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy("p", data)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "p:") {
					t.Fatalf("a line without its position: %q", line)
				}
			}
			return
		}
		back, err := ParsePolicy("p", p.YAML())
		if err != nil {
			t.Fatalf("%v in:\n%s", err, p.YAML())
		}
		if !back.Equal(p) {
			t.Fatalf("came back different:\n%s\n%s", p.YAML(), back.YAML())
		}
	})
}
