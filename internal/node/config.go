package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"go.yaml.in/yaml/v4"

	"github.com/spacestore/space/capsule"
	"github.com/spacestore/space/internal/control/transfer"
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
	MemoryLimit  int64         // bytes of memory that a node stays below; 0: as Go does
	DrainTimeout time.Duration // how long a node waits for requests and busy mounts at its end
	LockTimeout  time.Duration // how long a command waits for another one to leave the store
	MountWait    time.Duration // how long a mount whose node has ended waits for the next one; 0: it ends too
	Background   bool          // a node collects garbage, re-seals and recompresses when idle
	Metrics      string        // address at which a node serves /metrics and /healthz; "": nowhere
	NVMe         *NVMeConfig   // the section of that name, of space.yaml alone; nil: there is none
	Fabric       *FabricConfig // the section of that name; nil: nothing is said of it
}

// DefaultConfig is what holds where nothing is set.
var DefaultConfig = Config{LogLevel: slog.LevelInfo, LogFormat: "text", CacheSize: 64 << 20, MemoryLimit: 1 << 30,
	DrainTimeout: 30 * time.Second, LockTimeout: 10 * time.Second, MountWait: time.Minute, Background: true}

// minMemory is what a node can work with.
const minMemory = 128 << 20

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
	{"memory_limit", func(c *Config, s string) (err error) {
		if c.MemoryLimit, err = ParseSize(s); err == nil && c.MemoryLimit < minMemory {
			err = errors.New("at least 128MiB")
		}
		return err
	}},
	{"metrics_listen", func(c *Config, s string) error {
		c.Metrics = s
		return checkAddress(s)
	}},
	{"mount_wait", func(c *Config, s string) error { return setTimeout(&c.MountWait, s) }},
}

// nvmeSection is a setting that is more than a value; fabricSection is the other.
const nvmeSection = "nvme"

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
	f, err := readConfig(path)
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
	for _, layer := range []map[string]any{f.values, env, flag} {
		if err := k.Load(confmap.Provider(layer, ""), nil); err != nil {
			return Config{}, err
		}
	}
	c := DefaultConfig
	c.NVMe = f.nvme
	if c.Fabric, err = loadFabric(f.fabric, flags, getenv); err != nil {
		return Config{}, err
	}
	for _, s := range settings {
		if !k.Exists(s.name) {
			continue
		}
		text := k.String(s.name)
		if err := s.set(&c, text); err != nil {
			where := fmt.Sprintf("%s:%d: %s", path, f.lines[s.name], s.name)
			if env[s.name] != nil {
				where = "environment variable SPACE_" + strings.ToUpper(s.name)
			}
			if flag[s.name] != nil {
				where = "--" + strings.ReplaceAll(s.name, "_", "-")
			}
			return Config{}, capsule.Errorf(capsule.Invalid, "%s: %.64q is not valid; allowed: %v", where, text, err)
		}
	}
	// A collector whose limit is below what is kept for good would never rest.
	if !k.Exists("memory_limit") {
		c.MemoryLimit = max(c.MemoryLimit, 2*min(c.CacheSize, 1<<61)+512<<20)
	} else if c.CacheSize > c.MemoryLimit/2 {
		return Config{}, capsule.Errorf(capsule.Invalid, "a cache_size of %d bytes does not go with a memory_limit of %d: that is at least twice as much",
			c.CacheSize, c.MemoryLimit)
	}
	return c, nil
}

// configFile is what the settings file says.
type configFile struct {
	values map[string]any // plain settings
	lines  map[string]int // where each is
	nvme   *NVMeConfig
	fabric *FabricConfig
}

func readConfig(path string) (configFile, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return configFile{}, nil
	}
	if err != nil {
		return configFile{}, transfer.FileError(err, "settings")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return configFile{}, transfer.FileError(err, "settings")
	}
	if len(data) > maxConfig {
		return configFile{}, capsule.Errorf(capsule.Invalid, "%s: larger than %d bytes", path, maxConfig)
	}
	return parseConfig(path, data)
}

func parseConfig(path string, data []byte) (configFile, error) {
	c := configFile{values: map[string]any{}, lines: map[string]int{}}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return c, capsule.Errorf(capsule.Invalid, "%s: %v", path, err)
	}
	if len(doc.Content) == 0 { // empty, or comments only
		return c, nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return c, nil
	}
	s := section{path}
	keys := map[string]func(*yaml.Node) error{nvmeSection: func(n *yaml.Node) (err error) {
		c.nvme, err = parseNVMe(path, n)
		return err
	}, fabricSection: func(n *yaml.Node) (err error) {
		c.fabric, err = parseFabric(path, n)
		return err
	}}
	for _, one := range settings {
		keys[one.name] = func(n *yaml.Node) error {
			if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
				return s.errorf(n, "%s wants one plain value", one.name)
			}
			c.lines[one.name], c.values[one.name] = n.Line, n.Value
			return nil
		}
	}
	return c, s.mapping(root, ConfigName, keys)
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
