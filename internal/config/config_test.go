package config

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	d := Default()
	with := func(change func(c *Config)) Config {
		c := d
		change(&c)
		return c
	}
	tests := []struct {
		name, text string
		want       Config
	}{
		{"empty", "", d},
		{"comment", "# nothing\n", d},
		{"empty table", "[shiftoverlay]\n", d},
		{
			"all", `
[shiftoverlay]
engine = "metacopy"
unmapped = "refuse"
cache_max_size = "512m"
cache_max_age = "90m"
workers = 4
background_after = "3s"
`, Config{Engine: "metacopy", Unmapped: "refuse", CacheMaxSize: 512 << 20, CacheMaxAge: 90 * time.Minute, Workers: 4, BackgroundAfter: 3 * time.Second},
		},
		{"one key", "[shiftoverlay]\nworkers = 3", with(func(c *Config) { c.Workers = 3 })},
		{"inline table", `shiftoverlay = { engine = "idmap" }`, with(func(c *Config) { c.Engine = "idmap" })},
		{"dotted", `shiftoverlay.engine = "erofs"`, with(func(c *Config) { c.Engine = "erofs" })},
		{"erofs without", "[shiftoverlay]\nerofs_without = \"data-only, file\"", with(func(c *Config) { c.ErofsWithout = []string{"data-only", "file"} })},
		{"no bounds", "[shiftoverlay]\ncache_max_size = \"0\"\ncache_max_age = \"0\"", with(func(c *Config) { c.CacheMaxSize, c.CacheMaxAge = 0, 0 })},
		{"bytes", "[shiftoverlay]\ncache_max_size = \"12345\"", with(func(c *Config) { c.CacheMaxSize = 12345 })},
		{"GiB", "[shiftoverlay]\ncache_max_size = \"1.5 GiB\"", with(func(c *Config) { c.CacheMaxSize = 3 << 29 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(d, tt.text)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
	t.Run("base is kept", func(t *testing.T) {
		base := with(func(c *Config) { c.Engine, c.Workers = "copyup", 7 })
		got, err := Parse(base, "[shiftoverlay]\nunmapped = \"refuse\"")
		require.NoError(t, err)
		require.Equal(t, Config{Engine: "copyup", Unmapped: "refuse", CacheMaxSize: d.CacheMaxSize, CacheMaxAge: d.CacheMaxAge, Workers: 7, BackgroundAfter: d.BackgroundAfter}, got)
	})
}

func TestParseErrors(t *testing.T) {
	const table = "[shiftoverlay]\n"
	tests := []struct {
		name, text string
		says       []string
	}{
		{"not TOML", "[shift overlay]\n", []string{"line 1"}},
		{"not TOML in line 3", table + "\nengine\n", []string{"line 3"}},
		{"twice", table + "workers = 1\nworkers = 2\n", []string{"workers", "line 3"}},
		{"not UTF-8", table + "engine = \"\xff\"", []string{"UTF-8"}},
		{"unknown table", "[storage]\n", []string{`"storage"`, "[shiftoverlay]"}},
		{"key without table", "engine = \"auto\"", []string{`"engine"`, "[shiftoverlay]"}},
		{"not a table", "shiftoverlay = 1", []string{`"1"`, "[shiftoverlay]"}},
		{"array of tables", "[[shiftoverlay]]\nengine = \"auto\"", []string{"[shiftoverlay]"}},
		{"unknown key", table + "engin = \"auto\"", []string{`"engin"`, "engine", "cache_max_age"}},
		{"upper case", table + "Engine = \"auto\"", []string{`"Engine"`}},
		{"table below", table + "[shiftoverlay.engine]\na = 1", []string{"engine", "text in quotation marks"}},
		{"engine", table + "engine = \"zfs\"", []string{"engine", `"zfs"`, "auto, idmap, erofs, metacopy, copyup"}},
		{"erofs_without", table + "erofs_without = \"idmap, loop\"", []string{"erofs_without", `"loop"`, "data-only, file, idmap"}},
		{"engine empty", table + "engine = \"\"", []string{"engine", `""`, "auto"}},
		{"engine of type", table + "engine = 1", []string{"engine", `"1"`, "text"}},
		{"unmapped", table + "unmapped = \"drop\"", []string{"unmapped", `"drop"`, "overflow, refuse"}},
		{"size", table + "cache_max_size = \"ten\"", []string{"cache_max_size", `"ten"`, "10g"}},
		{"size negative", table + "cache_max_size = \"-1g\"", []string{"cache_max_size", `"-1g"`}},
		{"size without quotes", table + "cache_max_size = 10", []string{"cache_max_size", `"10"`, "quotation marks"}},
		{"size too large", table + "cache_max_size = \"9223372036854775808\"", []string{"cache_max_size"}},
		{"size far too large", table + "cache_max_size = \"99999999999p\"", []string{"cache_max_size"}},
		{"size infinite", table + "cache_max_size = \"inf\"", []string{"cache_max_size", `"inf"`}},
		{"size NaN", table + "cache_max_size = \"nan\"", []string{"cache_max_size", `"nan"`}},
		{"size empty", table + "cache_max_size = \"\"", []string{"cache_max_size"}},
		{"age", table + "cache_max_age = \"30 days\"", []string{"cache_max_age", `"30 days"`, "720h"}},
		{"age negative", table + "cache_max_age = \"-1h\"", []string{"cache_max_age", `"-1h"`}},
		{"age as number", table + "cache_max_age = 30", []string{"cache_max_age", `"30"`, "quotation marks"}},
		{"workers negative", table + "workers = -1", []string{"workers", `"-1"`}},
		{"workers too many", table + "workers = 1025", []string{"workers", `"1025"`, "1024"}},
		{"workers far too many", table + "workers = 9223372036854775807", []string{"workers"}},
		{"workers as text", table + "workers = \"4\"", []string{"workers", `"4"`, "without quotation marks"}},
		{"workers as fraction", table + "workers = 1.5", []string{"workers", "1.5", "whole number"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(Default(), tt.text)
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, got)
			for _, says := range tt.says {
				require.ErrorContains(t, err, says)
			}
		})
	}
}

func TestApply(t *testing.T) {
	c := Default()
	require.NoError(t, c.Apply("engine", "copyup"))
	require.NoError(t, c.Apply("unmapped", "refuse"))
	require.NoError(t, c.Apply("workers", "12"))
	require.NoError(t, c.Apply("erofs_without", "file:idmap"))
	want := Default()
	want.Engine, want.Unmapped, want.Workers, want.ErofsWithout = "copyup", "refuse", 12, []string{"file", "idmap"}
	require.Equal(t, want, c)

	for _, tt := range []struct{ key, value, says string }{
		{"engine", "zfs", "auto, idmap"},
		{"unmapped", "", "overflow, refuse"},
		{"workers", "-1", "whole number"},
		{"workers", "", "whole number"},
		{"workers", "99999999999999999999", "whole number"},
		{"cache_max_size", "1g", "unknown key"}, // of the cache, not of a mount
		{"cache_max_age", "1h", "engine, erofs_without, unmapped, workers"},
		{"", "", "unknown key"},
	} {
		err := c.Apply(tt.key, tt.value)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, tt.says)
		require.Equal(t, want, c, "unchanged after an error")
	}
}

func TestEveryFieldHasAKey(t *testing.T) {
	require.Len(t, setters(), reflect.TypeFor[Config]().NumField())
}

func FuzzParse(f *testing.F) {
	f.Add("[shiftoverlay]\nengine = \"auto\"\nunmapped = \"refuse\"\n")
	f.Add("[shiftoverlay]\ncache_max_size = \"10g\"\ncache_max_age = \"720h\"\nworkers = 2\n")
	f.Add("shiftoverlay = { workers = 1, cache_max_size = \"8E+9 g\" }")
	f.Add("[shiftoverlay]\ncache_max_size = \"0x1p63\"")
	f.Add("[[shiftoverlay]]")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(Default(), text)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.NotEmpty(t, strings.TrimSpace(err.Error()))
			return
		}
		require.True(t, slices.Contains(Engines(), c.Engine), c.Engine)
		require.True(t, slices.Contains(UnmappedPolicies(), c.Unmapped), c.Unmapped)
		require.GreaterOrEqual(t, c.CacheMaxSize, int64(0))
		require.Less(t, c.CacheMaxSize, int64(math.MaxInt64))
		require.GreaterOrEqual(t, c.CacheMaxAge, time.Duration(0))
		require.GreaterOrEqual(t, c.Workers, 0)
		require.LessOrEqual(t, c.Workers, maxWorkers)
	})
}
