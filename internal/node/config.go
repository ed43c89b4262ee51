package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"go.yaml.in/yaml/v4"

	"github.com/spacestore/space/capsule"
)

// ConfigName is the settings file's name in SPACE_HOME.
const ConfigName = "space.yaml"

// Config are the settings of a node and of commands that open the store
// themselves. Each has one name in space.yaml, NAME, which is SPACE_NAME in
// the environment and --name with dashes where a command has it as a flag.
type Config struct {
	LogLevel     slog.Level
	LogFormat    string        // text or json
	CacheSize    int64         // bytes of decoded segments kept in memory
	DrainTimeout time.Duration // how long a node waits for requests and busy mounts at its end
	LockTimeout  time.Duration // how long a command waits for another one to leave the store
	MountWait    time.Duration // how long a mount whose node has ended waits for the next one; 0: it ends too
	Background   bool          // a node collects garbage, re-seals and recompresses when idle
}

// DefaultConfig is what holds where nothing is set.
var DefaultConfig = Config{LogLevel: slog.LevelInfo, LogFormat: "text", CacheSize: 64 << 20,
	DrainTimeout: 30 * time.Second, LockTimeout: 10 * time.Second, MountWait: time.Minute, Background: true}

// setting is how one value gets from text into a Config.
type setting struct {
	name string
	set  func(c *Config, text string) error
}

var settings = []setting{
	{"background", func(c *Config, s string) (err error) {
		if c.Background, err = strconv.ParseBool(s); err != nil {
			err = errors.New("true or false")
		}
		return err
	}},
	{"cache_size", func(c *Config, s string) (err error) {
		if c.CacheSize, err = ParseSize(s); err == nil && c.CacheSize < 1<<20 {
			err = errors.New("at least 1MiB")
		}
		return err
	}},
	{"drain_timeout", func(c *Config, s string) error { return setTimeout(&c.DrainTimeout, s) }},
	{"lock_timeout", func(c *Config, s string) error { return setTimeout(&c.LockTimeout, s) }},
	{"log_format", func(c *Config, s string) error {
		c.LogFormat = s
		if s != "text" && s != "json" {
			return errors.New("text or json")
		}
		return nil
	}},
	{"log_level", func(c *Config, s string) error {
		if c.LogLevel.UnmarshalText([]byte(s)) != nil {
			return errors.New("debug, info, warn or error")
		}
		return nil
	}},
	{"mount_wait", func(c *Config, s string) error { return setTimeout(&c.MountWait, s) }},
}

func setTimeout(d *time.Duration, s string) (err error) {
	if *d, err = time.ParseDuration(s); err != nil || *d < 0 {
		return errors.New("a duration such as 30s or 2m")
	}
	return nil
}

// maxConfig bounds the settings file.
const maxConfig = 64 << 10

// LoadConfig reads the settings: flags (name to value, those that were given)
// over the environment over the file in home over the defaults. What it can't
// accept is an error that says where it stands.
func LoadConfig(home string, flags map[string]string, getenv func(string) string) (Config, error) {
	path := filepath.Join(home, ConfigName)
	lines, file, err := readConfig(path)
	if err != nil {
		return Config{}, err
	}
	env := map[string]any{}
	for _, s := range settings {
		if v := getenv("SPACE_" + strings.ToUpper(s.name)); v != "" {
			env[s.name] = v
		}
	}
	flag := map[string]any{}
	for name, v := range flags {
		flag[name] = v
	}
	k := koanf.New("\x00") // no nesting
	for _, layer := range []map[string]any{file, env, flag} {
		if err := k.Load(confmap.Provider(layer, ""), nil); err != nil {
			return Config{}, err
		}
	}
	c := DefaultConfig
	for _, s := range settings {
		if !k.Exists(s.name) {
			continue
		}
		text := k.String(s.name)
		if err := s.set(&c, text); err != nil {
			where := fmt.Sprintf("%s:%d: %s", path, lines[s.name], s.name)
			if env[s.name] != nil {
				where = "environment variable SPACE_" + strings.ToUpper(s.name)
			}
			if flag[s.name] != nil {
				where = "--" + strings.ReplaceAll(s.name, "_", "-")
			}
			return Config{}, capsule.Errorf(capsule.Invalid, "%s: %.64q is not valid; allowed: %v", where, text, err)
		}
	}
	return c, nil
}

// readConfig returns the file's values and the line of each.
func readConfig(path string) (lines map[string]int, values map[string]any, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, capsule.Wrap(capsule.IO, err, "settings")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, nil, capsule.Wrap(capsule.IO, err, "settings")
	}
	if len(data) > maxConfig {
		return nil, nil, capsule.Errorf(capsule.Invalid, "%s: larger than %d bytes", path, maxConfig)
	}
	return parseConfig(path, data)
}

func parseConfig(path string, data []byte) (lines map[string]int, values map[string]any, err error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, nil, capsule.Errorf(capsule.Invalid, "%s: %v", path, err)
	}
	lines, values = map[string]int{}, map[string]any{}
	if len(doc.Content) == 0 { // empty, or comments only
		return lines, values, nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return lines, values, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, nil, capsule.Errorf(capsule.Invalid, "%s:%d: want lines of the form `name: value`", path, root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if !slices.ContainsFunc(settings, func(s setting) bool { return s.name == key.Value }) {
			var names []string
			for _, s := range settings {
				names = append(names, s.name)
			}
			return nil, nil, capsule.Errorf(capsule.Invalid, "%s:%d: unknown setting %.64q; there are %s", path, key.Line, key.Value, strings.Join(names, ", "))
		}
		if lines[key.Value] != 0 {
			return nil, nil, capsule.Errorf(capsule.Invalid, "%s:%d: %s is set twice, first in line %d", path, key.Line, key.Value, lines[key.Value])
		}
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
			return nil, nil, capsule.Errorf(capsule.Invalid, "%s:%d: %s wants one plain value", path, value.Line, key.Value)
		}
		lines[key.Value], values[key.Value] = key.Line, value.Value
	}
	return lines, values, nil
}

// ParseSize reads a number of bytes: 4096, 64MiB, 1.5GB, 100k. Units without
// an i are powers of 1000, those with one of 1024.
func ParseSize(s string) (int64, error) {
	bad := errors.New("a size such as 4096, 64MiB or 1.5GB")
	num := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.ToLower(strings.TrimSpace(s[len(num):]))
	unit = strings.TrimSuffix(unit, "b")
	base := 1000.0
	if u, ok := strings.CutSuffix(unit, "i"); ok {
		unit, base = u, 1024
		if u == "" {
			return 0, bad
		}
	}
	factor := 1.0
	if unit != "" {
		e := strings.Index("kmgtpe", unit)
		if e < 0 || len(unit) != 1 {
			return 0, bad
		}
		for range e + 1 {
			factor *= base
		}
	}
	if n, err := strconv.ParseInt(num, 10, 64); err == nil && factor == 1 && n >= 0 {
		return n, nil
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || !(f >= 0) || f*factor >= 1<<63 {
		return 0, bad
	}
	return int64(f * factor), nil
}
