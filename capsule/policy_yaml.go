package capsule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v4"
)

// YAML returns the policy's canonical file: equal policies give equal bytes,
// and [ParsePolicy] gives the policy back. Scalars at their default are written
// out, so that a stored policy keeps its meaning if a later version changes a
// default; empty lists and mappings are left out. This is what the store keeps.
func (p *Policy) YAML() []byte {
	root := block().
		put("compression", text(p.Compression)).
		put("dedupe", scalar("!!bool", strconv.FormatBool(p.Dedupe))).
		put("encryption", text(p.Encryption)).
		put("durability", text(p.Durability)).
		put("rpo", text(p.RPO.String())).
		put("latency_target", text(p.LatencyTarget.String())).
		put("sovereignty", text(p.Sovereignty))
	if p.Views != nil {
		root.put("views", list(p.Views))
	}
	if !p.Federation.equal(DefaultPolicy().Federation) {
		root.put("federation", block().
			put("targets", list(p.Federation.Targets)).
			put("priority", text(p.Federation.Priority)))
	}
	if len(p.Transform) > 0 {
		seq := &yamlNode{Kind: yaml.SequenceNode}
		for _, t := range p.Transform {
			seq.Content = append(seq.Content, (*yaml.Node)(t.yaml()))
		}
		root.put("transform", seq)
	}
	out, err := yaml.Dump((*yaml.Node)(root), yaml.WithV4Defaults(), yaml.WithLineWidth(-1))
	if err != nil {
		panic(fmt.Sprintf("capsule: policy of plain strings and numbers did not encode: %v", err))
	}
	return out
}

func (t *Transform) yaml() *yamlNode {
	m := block().
		put("name", text(t.Name)).
		put("image", quoted(t.Image)).
		put("trigger", text(t.Trigger))
	if len(t.Args) > 0 {
		args := block()
		for _, k := range slices.Sorted(maps.Keys(t.Args)) {
			args.Content = append(args.Content, (*yaml.Node)(quoted(k)), (*yaml.Node)(quoted(t.Args[k])))
		}
		m.put("args", args)
	}
	m.put("resources", block().
		put("max_memory_pages", number(t.Resources.MaxMemoryPages)).
		put("fuel_limit", number(t.Resources.FuelLimit)))
	v := block()
	if t.Verification.SHA256 != "" {
		v.put("sha256", quoted(t.Verification.SHA256))
	}
	if t.Verification.Signature != "" {
		v.put("signature", quoted(t.Verification.Signature))
	}
	if len(v.Content) > 0 {
		m.put("verification", v)
	}
	return m
}

// yamlNode is a yaml.Node under construction.
type yamlNode yaml.Node

func (m *yamlNode) put(key string, value *yamlNode) *yamlNode {
	m.Content = append(m.Content, (*yaml.Node)(text(key)), (*yaml.Node)(value))
	return m
}

func block() *yamlNode { return &yamlNode{Kind: yaml.MappingNode} }

func scalar(tag, value string) *yamlNode {
	return &yamlNode{Kind: yaml.ScalarNode, Tag: tag, Value: value}
}

func text(s string) *yamlNode { return scalar("!!str", s) }

func number(v uint64) *yamlNode { return scalar("!!int", strconv.FormatUint(v, 10)) }

// quoted is for strings of the user's own making: in double quotes nothing in
// them can be taken for YAML.
func quoted(s string) *yamlNode {
	n := text(s)
	n.Style = yaml.DoubleQuotedStyle
	return n
}

func list(items []string) *yamlNode {
	n := &yamlNode{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, s := range items {
		n.Content = append(n.Content, (*yaml.Node)(text(s)))
	}
	return n
}
