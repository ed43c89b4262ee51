package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spacestore/space/capsule"
)

func TestConfigLayers(t *testing.T) {
	home := t.TempDir()
	file := "log_level: debug\nlog_format: json\ncache_size: 10MB\nlock_timeout: 1s\nmemory_limit: 300MB\nbackground: false\n"
	if err := os.WriteFile(filepath.Join(home, ConfigName), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"SPACE_LOG_FORMAT": "text", "SPACE_CACHE_SIZE": "20MB", "SPACE_HOME": "/elsewhere"}
	flags := map[string]string{"cache_size": "30MB"}
	got, err := LoadConfig(home, flags, func(name string) string { return env[name] })
	want := Config{LogLevel: slog.LevelDebug, LogFormat: "text", CacheSize: 30_000_000, MemoryLimit: 300_000_000, LockTimeout: time.Second,
		DrainTimeout: DefaultConfig.DrainTimeout, MountWait: DefaultConfig.MountWait, Background: false}
	if err != nil || got != want {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
	}
	if got, err := LoadConfig(t.TempDir(), nil, func(string) string { return "" }); err != nil || got != DefaultConfig {
		t.Errorf("nothing set: %v %+v", err, got)
	}
}

// The collector's limit leaves room for the cache.
func TestMemoryLimitForCache(t *testing.T) {
	load := func(flags map[string]string) (Config, error) {
		return LoadConfig(t.TempDir(), flags, func(string) string { return "" })
	}
	if c, err := load(map[string]string{"cache_size": "4GiB"}); err != nil || c.MemoryLimit != 8<<30+512<<20 {
		t.Errorf("%v, %+v", err, c)
	}
	if c, err := load(map[string]string{"cache_size": "9223372036854775807"}); err != nil || c.MemoryLimit < c.CacheSize/2 {
		t.Errorf("%v, %+v", err, c)
	}
	if c, err := load(map[string]string{"memory_limit": "128MiB"}); err != nil || c.MemoryLimit != 128<<20 {
		t.Errorf("%v, %+v", err, c)
	}
	if _, err := load(map[string]string{"memory_limit": "1GiB", "cache_size": "1GiB"}); capsule.KindOf(err) != capsule.Invalid {
		t.Errorf("as much cache as memory: %v", err)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "4096": 4096, "1k": 1000, "1KiB": 1024, "64MiB": 64 << 20, "1.5GB": 1_500_000_000,
		"2 TB": 2_000_000_000_000, "9223372036854775807": 1<<63 - 1, "12B": 12} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1x", "iB", "1iB", "16EiB", "9223372036854775808", "1e400", "NaN", "Inf", "0x10", "1 2"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d", in, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"64MiB", "1.5GB", "", "-1", "1e308E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && n < 0 {
			t.Errorf("ParseSize(%q) = %d", s, n)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{"", "# nothing\n", "log_level: debug\n", "a: &a [*a]\n", "- 1\n", "cache_size: 1\ncache_size: 2\n", "? [x]\n: y\n", "null"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig("space.yaml", data)
		if err == nil && len(c.lines) != len(c.values) {
			t.Errorf("%d lines for %d values", len(c.lines), len(c.values))
		}
	})
}

func TestLockHolder(t *testing.T) {
	table := "1: POSIX  ADVISORY  WRITE 77 fd:01:1234 0 EOF\n2: FLOCK  ADVISORY  WRITE 78 fd:01:12345 0 EOF\n" +
		"3: OFDLCK ADVISORY  WRITE -1 fd:01:99 0 EOF\n4: -> POSIX\n\n"
	for inode, want := range map[uint64]string{1234: "process 77", 12345: "process 78", 99: "?", 5: "?"} {
		if got := holderIn(table, 0xfd, 1, inode, "?"); got != want {
			t.Errorf("inode %d: %q, want %q", inode, got, want)
		}
	}
}

func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), LogName)
	if err := os.WriteFile(path, make([]byte, maxLog), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rotate(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a full log stays in place: %v", err)
	}
	if st, err := os.Stat(path + ".1"); err != nil || st.Size() != maxLog {
		t.Errorf("the log before it: %v", err)
	}
	if err := rotate(path); err != nil {
		t.Errorf("nothing to rotate: %v", err)
	}
}
