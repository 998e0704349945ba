package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseSubID(t *testing.T) {
	const text = "root:1:2\ncontainers:100000:65536\n\n# comment\ncontainers:2147483647:2147483648\ncontainersX:1:1\n"
	ranges, err := parseSubID(strings.NewReader(text), "subuid", autoUser)
	require.NoError(t, err)
	assert.Equal(t, []idRange{{100000, 165536}, {2147483647, 4294967295}}, ranges)

	for _, bad := range []string{"containers:1", "containers:a:1", "containers:1:99999999999", "containers:-1:5"} {
		_, err := parseSubID(strings.NewReader("x:1:1\n"+bad), "/etc/subuid", autoUser)
		assert.ErrorContains(t, err, "/etc/subuid line 2", bad)
	}
}

func TestAutoRanges(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	none := filepath.Join(dir, "none")
	ranges, err := autoRanges(none, none)
	require.NoError(t, err)
	assert.Equal(t, []idRange{{fallbackStart, fallbackEnd}}, ranges, "the fallback")

	ranges, err = autoRanges(write("other", "somebody:1:1\n"), none)
	require.NoError(t, err)
	assert.Equal(t, []idRange{{fallbackStart, fallbackEnd}}, ranges, "no line of the user")

	uid, gid := write("uid", "containers:100:100\ncontainers:1000:10\n"), write("gid", "containers:150:1000\n")
	ranges, err = autoRanges(uid, gid)
	require.NoError(t, err)
	assert.Equal(t, []idRange{{150, 200}, {1000, 1010}}, ranges, "what both have")

	ranges, err = autoRanges(uid, none)
	require.NoError(t, err)
	assert.Empty(t, ranges, "no group IDs")

	_, err = autoRanges(dir, none)
	assert.ErrorContains(t, err, dir)
}

func TestFreeRange(t *testing.T) {
	tests := []struct {
		name            string
		available, used []idRange
		size            uint32
		want            uint32
		err             string
	}{
		{name: "first", available: []idRange{{100, 200}}, size: 100, want: 100},
		{name: "too small", available: []idRange{{100, 200}}, size: 101, err: "no 101 free IDs"},
		{name: "none", size: 1, err: "add a range to /etc/subuid"},
		{name: "zero", available: []idRange{{100, 200}}, size: 0, err: "--auto-size"},
		{name: "after the used", available: []idRange{{100, 200}}, used: []idRange{{100, 110}}, size: 10, want: 110},
		{name: "before the used", available: []idRange{{100, 200}}, used: []idRange{{110, 120}}, size: 10, want: 100},
		{name: "gap too small", available: []idRange{{100, 200}}, used: []idRange{{105, 120}, {125, 130}}, size: 10, want: 130},
		{name: "used out of order, overlapping", available: []idRange{{100, 200}}, used: []idRange{{150, 160}, {90, 155}, {160, 161}}, size: 10, want: 161},
		{name: "second range", available: []idRange{{300, 400}, {100, 110}}, used: []idRange{{105, 106}}, size: 10, want: 300},
		{name: "up to the end", available: []idRange{{fallbackStart, fallbackEnd}}, used: []idRange{{fallbackStart, fallbackEnd - 65536}}, size: 65536, want: fallbackEnd - 65536},
		{name: "full", available: []idRange{{fallbackStart, fallbackEnd}}, used: []idRange{{fallbackStart, fallbackEnd - 65535}}, size: 65536, err: "no 65536 free IDs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := freeRange(tt.available, tt.used, tt.size)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

// TestFreeRangeLaws: what is found lies in one available range and touches no
// used one; if nothing is found, trying every start finds nothing either.
func TestFreeRangeLaws(t *testing.T) {
	ranges := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) idRange {
		start := rapid.Uint64Range(0, 60).Draw(t, "start")
		return idRange{start, start + rapid.Uint64Range(1, 20).Draw(t, "size")}
	}), 0, 6)
	fits := func(available, used []idRange, start, size uint64) bool {
		inside := false
		for _, a := range available {
			inside = inside || a.start <= start && start+size <= a.end
		}
		for _, u := range used {
			inside = inside && (u.end <= start || u.start >= start+size)
		}
		return inside
	}
	rapid.Check(t, func(t *rapid.T) {
		available, used := ranges.Draw(t, "available"), ranges.Draw(t, "used")
		size := rapid.Uint32Range(1, 15).Draw(t, "size")
		got, err := freeRange(available, used, size)
		if err == nil {
			if !fits(available, used, uint64(got), uint64(size)) {
				t.Fatalf("%d does not fit", got)
			}
			return
		}
		for start := range uint64(100) {
			if fits(available, used, start, uint64(size)) {
				t.Fatalf("%d would fit", start)
			}
		}
	})
}
