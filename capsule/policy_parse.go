package capsule

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// MaxPolicy is the largest policy file, in bytes.
const MaxPolicy = 64 << 10

// Bounds on what a policy file may ask for.
const (
	maxTargets      = 64
	maxTransforms   = 16
	maxArgs         = 64
	maxLabel        = 63 // names of zones and transforms
	maxArgName      = 256
	maxText         = 4096
	maxMemoryPages  = 65536 // all that a 32-bit WASM module can address: 4 GiB
	maxFuel         = 1_000_000_000_000
	maxRPO          = 30 * 24 * time.Hour
	maxLatency      = time.Hour
	maxPolicyErrors = 20
)

// ParsePolicy reads a policy file; file is its name for error messages. It is
// strict: whatever it does not know or cannot take at its word is an error that
// says where (file:line:column) and what is allowed. One call reports up to 20
// errors, a line each, in the order of the file. Keys left out, or an empty
// file, mean the defaults of [DefaultPolicy]. YAML's anchors, aliases, merge
// keys, explicit tags and second documents are refused.
func ParsePolicy(file string, data []byte) (*Policy, error) {
	p := &policyParser{file: file, out: DefaultPolicy()}
	if root := p.load(data); root != nil {
		p.policy(root)
	}
	if len(p.errs) == 0 {
		// The store keeps the canonical form and must be able to read it again.
		if n := len(p.out.YAML()); n > MaxPolicy {
			p.failAt(1, 1, "the policy is %d bytes long when written in full; the limit is %d", n, MaxPolicy)
		}
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return p.out, nil
}

type policyParser struct {
	file string
	out  *Policy
	errs []policyError
}

type policyError struct {
	line, col int
	msg       string
}

func (p *policyParser) failAt(line, col int, format string, args ...any) {
	p.errs = append(p.errs, policyError{line, col, fmt.Sprintf(format, args...)})
}

func (p *policyParser) fail(n *yaml.Node, format string, args ...any) {
	p.failAt(n.Line, n.Column, format, args...)
}

func (p *policyParser) err() error {
	if len(p.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(p.errs, func(a, b policyError) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col))
	})
	var lines []string
	for i, e := range p.errs {
		if i == maxPolicyErrors {
			lines = append(lines, fmt.Sprintf("%s:%d: and %d more errors", p.file, e.line, len(p.errs)-i))
			break
		}
		lines = append(lines, fmt.Sprintf("%s:%d:%d: %s", p.file, e.line, e.col, e.msg))
	}
	return Errorf(Invalid, "%s", strings.Join(lines, "\n"))
}

// load returns the root of the only document, or nil when there is none or an
// error was reported.
func (p *policyParser) load(data []byte) *yaml.Node {
	if len(data) > MaxPolicy {
		p.failAt(1, 1, "the file is longer than the limit of %d bytes", MaxPolicy)
		return nil
	}
	// The library reports these without a position, so look first.
	line, col := 1, 1
	for rest := data; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && n == 1:
			p.failAt(line, col, "not UTF-8 text")
			return nil
		case r == '\n':
			line, col = line+1, 0
		case unicode.IsControl(r) && r != '\t' && r != '\r':
			p.failAt(line, col, "the control character %U is not allowed", r)
			return nil
		}
		rest, col = rest[n:], col+1
	}
	var doc, next yaml.Node
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err == nil {
		err = loader.Load(&doc)
	}
	if err == io.EOF {
		return nil
	}
	if err == nil {
		switch nextErr := loader.Load(&next); {
		case nextErr == nil:
			p.fail(&next, "a second YAML document starts here; a policy file holds one")
			return nil
		case nextErr != io.EOF:
			err = nextErr
		}
	}
	if err != nil {
		line, col, msg := 1, 1, err.Error()
		if e, ok := errors.AsType[*yaml.LoadError](err); ok {
			line, col, msg = max(e.Mark.Line, 1), max(e.Mark.Column, 1), e.Message
			if e.ContextMsg != "" {
				msg += " " + e.ContextMsg
			}
		}
		p.failAt(line, col, "not valid YAML: %s", msg)
		return nil
	}
	if len(doc.Content) != 1 || isNull(doc.Content[0]) {
		return nil
	}
	return doc.Content[0]
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// field is one key of a mapping: what reads its value.
type field struct {
	name string
	read func(path string, n *yaml.Node)
}

func (p *policyParser) policy(root *yaml.Node) {
	out := p.out
	var targets *yaml.Node
	p.mapping("", root, []field{
		{"compression", func(path string, n *yaml.Node) { p.compression(path, n, &out.Compression) }},
		{"dedupe", func(path string, n *yaml.Node) { p.boolean(path, n, &out.Dedupe) }},
		{"encryption", func(path string, n *yaml.Node) { p.oneOf(path, n, encryptionNames, &out.Encryption) }},
		{"durability", func(path string, n *yaml.Node) { p.oneOf(path, n, durabilityNames, &out.Durability) }},
		{"rpo", func(path string, n *yaml.Node) { p.duration(path, n, maxRPO, &out.RPO) }},
		{"latency_target", func(path string, n *yaml.Node) { p.duration(path, n, maxLatency, &out.LatencyTarget) }},
		{"sovereignty", func(path string, n *yaml.Node) { p.oneOf(path, n, sovereigntyNames, &out.Sovereignty) }},
		{"views", func(path string, n *yaml.Node) { p.views(path, n, &out.Views) }},
		{"federation", func(path string, n *yaml.Node) {
			p.mapping(path, n, []field{
				{"targets", func(path string, n *yaml.Node) {
					targets = n
					p.targets(path, n, &out.Federation.Targets)
				}},
				{"priority", func(path string, n *yaml.Node) {
					p.oneOf(path, n, priorityNames, &out.Federation.Priority)
				}},
			})
		}},
		{"transform", func(path string, n *yaml.Node) {
			p.transforms(path, n, &out.Transform)
		}},
	})
	if out.Sovereignty == "local" && len(out.Federation.Targets) > 0 {
		p.fail(targets, "federation.targets: sovereignty is local, which keeps all data on this node, so there can be no targets; remove them, or set sovereignty to zone or global")
	}
}

// mapping reads n key by key. path is the mapping's own place, "" at the root.
func (p *policyParser) mapping(path string, n *yaml.Node, fields []field) {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	p.eachKey(path, n, func(sub string, key, value *yaml.Node) {
		i := slices.Index(names, key.Value)
		if i < 0 {
			hint := ""
			if near := nearest(key.Value, names); near != "" {
				hint = fmt.Sprintf("did you mean %s? ", near)
			}
			p.fail(key, "%s: unknown key; %sallowed: %s", sub, hint, strings.Join(names, ", "))
			return
		}
		fields[i].read(sub, value)
	})
}

// eachKey calls fn for every entry of the mapping n whose key is fit to be one
// and has not been there before, with the entry's path.
func (p *policyParser) eachKey(path string, n *yaml.Node, fn func(path string, key, value *yaml.Node)) {
	where := path
	if where == "" {
		where = "policy"
	}
	if !p.plain(where, n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.fail(n, "%s: is %s; want keys with values, like \"key: value\"", where, describe(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !p.plain(where, key) {
			continue
		}
		if key.Tag == "!!merge" {
			p.fail(key, "%s: merge keys (<<) are not allowed in a policy; write the keys out", where)
			continue
		}
		if key.Kind != yaml.ScalarNode || key.Tag != "!!str" {
			p.fail(key, "%s: the key is %s; want text", where, describe(key))
			continue
		}
		sub := strings.TrimPrefix(path+"."+show(key.Value), ".")
		if first, dup := seen[key.Value]; dup {
			p.fail(key, "%s: duplicate key; it is on line %d already", sub, first)
			continue
		}
		seen[key.Value] = key.Line
		fn(sub, key, value)
	}
}

// eachItem calls fn for every item of the list n, of which there may be limit,
// and reports whether n is such a list.
func (p *policyParser) eachItem(path string, n *yaml.Node, limit int, fn func(path string, item *yaml.Node)) bool {
	switch {
	case !p.plain(path, n):
		return false
	case n.Kind != yaml.SequenceNode:
		p.fail(n, "%s: is %s; want a list, like [a, b]", path, describe(n))
		return false
	case len(n.Content) > limit:
		p.fail(n, "%s: has %d items; the limit is %d", path, len(n.Content), limit)
		return false
	}
	for i, item := range n.Content {
		fn(fmt.Sprintf("%s[%d]", path, i), item)
	}
	return true
}

// plain refuses the parts of YAML that make one thing stand for another.
func (p *policyParser) plain(path string, n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		p.fail(n, "%s: aliases (*name) are not allowed in a policy; write the value out", path)
	case n.Anchor != "":
		p.fail(n, "%s: anchors (&name) are not allowed in a policy", path)
	case n.Style&yaml.TaggedStyle != 0:
		p.fail(n, "%s: explicit tags (!%s) are not allowed in a policy", path, show(strings.TrimLeft(n.Tag, "!")))
	default:
		return true
	}
	return false
}

// describe says what a value is, for a message about what it should be.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "empty"
	case n.Tag == "!!str":
		return fmt.Sprintf("the text \"%s\"", show(n.Value))
	case n.Tag == "!!int" || n.Tag == "!!float":
		return "the number " + show(n.Value)
	case n.Tag == "!!bool":
		return "the truth value " + show(n.Value)
	}
	return show(n.Value)
}

// show makes a text of the file's fit for a message: short, and harmless to a terminal.
func show(s string) string {
	const limit = 64
	if utf8.RuneCountInString(s) > limit {
		s = string([]rune(s)[:limit]) + "…"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		s = strings.Trim(strconv.Quote(s), `"`)
	}
	return s
}

// text returns n's text if it is a string; want says in a message what would be right.
func (p *policyParser) text(path string, n *yaml.Node, want string) (string, bool) {
	if !p.plain(path, n) {
		return "", false
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		return n.Value, true
	}
	p.fail(n, "%s: is %s; want %s", path, describe(n), want)
	return "", false
}

func (p *policyParser) oneOf(path string, n *yaml.Node, allowed []string, out *string) {
	want := "one of: " + strings.Join(allowed, ", ")
	if s, ok := p.text(path, n, want); !ok {
		return
	} else if !slices.Contains(allowed, s) {
		p.fail(n, "%s: \"%s\" is not a value of this key; want %s", path, show(s), want)
	} else {
		*out = s
	}
}

func (p *policyParser) compression(path string, n *yaml.Node, out *string) {
	want := fmt.Sprintf("one of: %s, zstd:1 to zstd:%d", strings.Join(compressionNames, ", "), maxZstdLevel)
	s, ok := p.text(path, n, want)
	if !ok {
		return
	}
	if level, found := strings.CutPrefix(s, "zstd:"); found {
		v, err := strconv.Atoi(level)
		ok = err == nil && v >= 1 && v <= maxZstdLevel && strconv.Itoa(v) == level
	} else {
		ok = slices.Contains(compressionNames, s)
	}
	if !ok {
		p.fail(n, "%s: \"%s\" is not a value of this key; want %s", path, show(s), want)
		return
	}
	*out = s
}

func (p *policyParser) boolean(path string, n *yaml.Node, out *bool) {
	if !p.plain(path, n) {
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!bool" && (n.Value == "true" || n.Value == "false") {
		*out = n.Value == "true"
		return
	}
	p.fail(n, "%s: is %s; want true or false (without quotes)", path, describe(n))
}

func (p *policyParser) duration(path string, n *yaml.Node, limit time.Duration, out *Duration) {
	if !p.plain(path, n) {
		return
	}
	want := fmt.Sprintf("a time from 0s to %dh with a unit, like 500us, 2ms, 5s or 1h30m", limit/time.Hour)
	if n.Kind != yaml.ScalarNode || isNull(n) {
		p.fail(n, "%s: is %s; want %s", path, describe(n), want)
		return
	}
	d, err := time.ParseDuration(n.Value) // takes a plain 0 too
	if err != nil || d < 0 || d > limit {
		p.fail(n, "%s: is %s; want %s", path, describe(n), want)
		return
	}
	*out = Duration(d)
}

func (p *policyParser) number(path string, n *yaml.Node, limit uint64, out *uint64) {
	if !p.plain(path, n) {
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
		v, err := strconv.ParseUint(n.Value, 10, 64)
		if err == nil && v >= 1 && v <= limit {
			*out = v
			return
		}
	}
	p.fail(n, "%s: is %s; want a whole number from 1 to %d", path, describe(n), limit)
}

func (p *policyParser) views(path string, n *yaml.Node, out *Views) {
	given := map[string]bool{}
	if !p.eachItem(path, n, len(viewNames), func(path string, item *yaml.Node) {
		want := "one of: " + strings.Join(viewNames, ", ")
		view, ok := p.text(path, item, want)
		name, mode, more := strings.Cut(view, ":")
		switch {
		case !ok:
		case !slices.Contains(viewNames, name):
			p.fail(item, "%s: \"%s\" is not a value of this key; want %s", path, show(view), want)
		case more && mode != "ro" && mode != "rw":
			p.fail(item, "%s: \"%s\" is not a value of this key; want %[3]s, %[3]s:ro or %[3]s:rw", path, show(view), name)
		case given[name]:
			p.fail(item, "%s: %s is in the list already", path, name)
		default:
			given[name], given[view] = true, true
		}
	}) {
		return
	}
	*out = Views{} // in one order, whatever the file's
	for _, name := range viewNames {
		switch {
		case given[name+":ro"]:
			*out = append(*out, name+":ro")
		case given[name+":rw"]:
			*out = append(*out, name+":rw")
		case given[name]:
			*out = append(*out, name)
		}
	}
}

func (p *policyParser) targets(path string, n *yaml.Node, out *[]string) {
	var targets []string
	if p.eachItem(path, n, maxTargets, func(path string, item *yaml.Node) {
		var zone string
		if p.label(path, item, "the name of a zone", &zone); zone == "" {
			return
		}
		if slices.Contains(targets, zone) {
			p.fail(item, "%s: %s is in the list already", path, zone)
		}
		targets = append(targets, zone)
	}) && targets != nil {
		*out = targets
	}
}

// label reads a name of 1 to 63 lower-case letters, digits and hyphens.
func (p *policyParser) label(path string, n *yaml.Node, what string, out *string) {
	want := fmt.Sprintf("%s: 1 to %d lower-case letters, digits and hyphens (in quotes, if it is a number)", what, maxLabel)
	s, ok := p.text(path, n, want)
	if !ok {
		return
	}
	if len(s) < 1 || len(s) > maxLabel || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		p.fail(n, "%s: \"%s\" will not do; want %s", path, show(s), want)
		return
	}
	*out = s
}

func (p *policyParser) transforms(path string, n *yaml.Node, out *[]Transform) {
	lineOf := map[string]int{}
	p.eachItem(path, n, maxTransforms, func(path string, item *yaml.Node) {
		t := p.transform(path, item)
		if first, dup := lineOf[t.Name]; dup && t.Name != "" {
			p.fail(item, "%s.name: the transform of line %d is called %s already", path, first, t.Name)
		}
		lineOf[t.Name] = item.Line
		*out = append(*out, t)
	})
}

func (p *policyParser) transform(path string, n *yaml.Node) Transform {
	t := Transform{Args: map[string]string{}, Resources: defaultResources()}
	missing := []string{"name", "image", "trigger"}
	need := func(key string, read func(string, *yaml.Node)) field {
		return field{key, func(path string, n *yaml.Node) {
			missing = slices.DeleteFunc(missing, func(m string) bool { return m == key })
			read(path, n)
		}}
	}
	before := len(p.errs)
	p.mapping(path, n, []field{
		need("name", func(path string, n *yaml.Node) { p.label(path, n, "a name for the transform", &t.Name) }),
		need("image", func(path string, n *yaml.Node) { p.image(path, n, &t.Image) }),
		need("trigger", func(path string, n *yaml.Node) { p.oneOf(path, n, triggerNames, &t.Trigger) }),
		{"args", func(path string, n *yaml.Node) { p.args(path, n, t.Args) }},
		{"resources", func(path string, n *yaml.Node) {
			p.mapping(path, n, []field{
				{"max_memory_pages", func(path string, n *yaml.Node) {
					p.number(path, n, maxMemoryPages, &t.Resources.MaxMemoryPages)
				}},
				{"fuel_limit", func(path string, n *yaml.Node) { p.number(path, n, maxFuel, &t.Resources.FuelLimit) }},
			})
		}},
		{"verification", func(path string, n *yaml.Node) {
			p.mapping(path, n, []field{
				{"sha256", func(path string, n *yaml.Node) { p.sha256(path, n, &t.Verification.SHA256) }},
				{"signature", func(path string, n *yaml.Node) {
					p.bounded(path, n, "the signature's text", 1, maxText, &t.Verification.Signature)
				}},
			})
		}},
	})
	// Keys that look missing because the value is no mapping, or are misspelt,
	// were reported as that.
	if len(missing) > 0 && len(p.errs) == before {
		p.fail(n, "%s: needs %s as well", path, strings.Join(missing, " and "))
	}
	return t
}

func (p *policyParser) image(path string, n *yaml.Node, out *string) {
	const want = "file://PATH or capsule://UUID"
	var s string
	if p.bounded(path, n, want, 1, maxText, &s); s == "" {
		return
	}
	scheme, rest, _ := strings.Cut(s, "://")
	switch {
	case scheme == "capsule":
		if _, err := ParseID(rest); err != nil {
			p.fail(n, "%s: \"%s\" will not do; want %s: %v", path, show(s), want, err)
			return
		}
	case scheme != "file" || rest == "":
		p.fail(n, "%s: \"%s\" will not do; want %s", path, show(s), want)
		return
	}
	*out = s
}

func (p *policyParser) args(path string, n *yaml.Node, out map[string]string) {
	if count := len(n.Content) / 2; count > maxArgs {
		p.fail(n, "%s: has %d arguments; the limit is %d", path, count, maxArgs)
		return
	}
	p.eachKey(path, n, func(path string, key, value *yaml.Node) {
		var k string
		p.bounded(path, key, "a name for the argument", 1, maxArgName, &k)
		// Arguments reach the module as text, so a number is as good as a string.
		if value.Kind == yaml.ScalarNode && !isNull(value) && p.plain(path, value) {
			v := *value
			v.Tag = "!!str"
			value = &v
		}
		var v string
		p.bounded(path, value, "a text or a number", 0, maxText, &v)
		out[k] = v
	})
}

func (p *policyParser) sha256(path string, n *yaml.Node, out *string) {
	const want = "the image's SHA-256: 64 lower-case hex digits (in quotes, if there are no letters)"
	s, ok := p.text(path, n, want)
	if !ok {
		return
	}
	if len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
		p.fail(n, "%s: \"%s\" will not do; want %s", path, show(s), want)
		return
	}
	*out = s
}

// bounded reads a free text of least to most bytes without control characters.
func (p *policyParser) bounded(path string, n *yaml.Node, what string, least, most int, out *string) {
	s, ok := p.text(path, n, what)
	switch {
	case !ok:
	case len(s) < least:
		p.fail(n, "%s: is empty; want %s", path, what)
	case len(s) > most:
		p.fail(n, "%s: is %d bytes long; the limit is %d", path, len(s), most)
	case strings.ContainsFunc(s, unicode.IsControl):
		p.fail(n, "%s: holds a control character", path)
	default:
		*out = s
	}
}

// nearest returns the name that s is most likely a slip for, or "".
func nearest(s string, names []string) string {
	fold := func(s string) string {
		return strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(s))
	}
	if len(s) > maxLabel {
		return ""
	}
	best, bestDistance := "", 3
	for _, name := range names {
		d := distance(fold(s), fold(name))
		if d < bestDistance && d <= len(name)/2 {
			best, bestDistance = name, d
		}
	}
	return best
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
