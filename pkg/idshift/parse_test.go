package idshift_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func TestParseExtentsForms(t *testing.T) {
	t.Parallel()
	two := idshift.Extents{{0, 100000, 65536}, {70000, 0, 1}}
	tests := []struct {
		name, text string
		want       idshift.Extents
	}{
		{"one extent", "0:100000:65536", idshift.Extents{{0, 100000, 65536}}},
		{"podman without size", "5:1005", idshift.Extents{{5, 1005, 1}}},
		{"commas", "0:100000:65536,70000:0:1", two},
		{"commas and blanks", " 0:100000:65536 ,\t70000:0:1 ", two},
		{"lines", "0:100000:65536\n70000:0:1\n", two},
		{"lines of DOS", "0:100000:65536\r\n70000:0:1\r\n", two},
		{"empty lines", "\n\n0:100000:65536\n\n70000:0:1", two},
		{"lines and commas", "70000:0\n\n0:100000:1,1:100001:65535", two},
		{"uid_map", "         0     100000      65536\n     70000          0          1\n", two},
		{"uid_map with tabs", "0\t100000\t65536\n70000\t0\t1", two},
		{"uid_map of the first namespace", "         0          0 4294967295\n", idshift.Extents{{0, 0, 4294967295}}},
		{"wire", ":0:100000:65536:70000:0:1", two},
		{"wire without the leading colon", "0:100000:65536:70000:0:1", two},
		{"wire of one extent", ":0:100000:65536", idshift.Extents{{0, 100000, 65536}}},
		{"forms mixed", "0 100000 65536,:70000:0:1", two},
		{"leading zeros", "00:0100000:065536", idshift.Extents{{0, 100000, 65536}}},
		{"last valid ID", "4294967294:0:1", idshift.Extents{{4294967294, 0, 1}}},
		{"last valid host ID", "0:4294967294:1", idshift.Extents{{0, 4294967294, 1}}},
		{"keep-id", "0:1:1000,1000:0:1,1001:1001:64536", idshift.Extents{{0, 1, 1000}, {1000, 0, 1}, {1001, 1001, 64536}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := idshift.ParseExtents(tt.text)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
			again, err := idshift.ParseExtents(got.String())
			require.NoError(t, err)
			assert.Equal(t, got, again, "what String writes, ParseExtents reads")
		})
	}
}

func TestParseExtentsErrors(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 5000)
	tests := []struct {
		name, text string
		kind       error
		message    string
	}{
		{"empty", "", idshift.ErrNoExtents, "mapping has no extents"},
		{"blank", " \n\t\n", idshift.ErrNoExtents, "mapping has no extents"},
		{"word", "auto", idshift.ErrSyntax, `extent "auto": 1 numbers; write container:host:size`},
		{"one number", "7", idshift.ErrSyntax, `extent "7": 1 numbers; write container:host:size`},
		{"four numbers", "1:2:3:4", idshift.ErrSyntax, `extent "1:2:3:4": 4 numbers; write container:host:size`},
		{"wire of two", ":1:2", idshift.ErrSyntax, `extent ":1:2": 2 numbers; write container:host:size`},
		{"colon", ":", idshift.ErrSyntax, `extent ":": 1 numbers; write container:host:size`},
		{"empty number", "0::5", idshift.ErrSyntax, `extent "0::5": host ID "" is not a decimal number`},
		{"hexadecimal", "0:0x10:5", idshift.ErrSyntax, `extent "0:0x10:5": host ID "0x10" is not a decimal number`},
		{"negative", "-1:0:5", idshift.ErrSyntax, `extent "-1:0:5": container ID "-1" is not a decimal number`},
		{"underscore", "0:100_000:5", idshift.ErrSyntax, `extent "0:100_000:5": host ID "100_000" is not a decimal number`},
		{"size is a word", "0:0:all", idshift.ErrSyntax, `extent "0:0:all": size "all" is not a decimal number`},
		{"name", "root:root:1", idshift.ErrSyntax, `extent "root:root:1": container ID "root" is not a decimal number`},
		{"trailing comma", "0:0:5,", idshift.ErrSyntax, "extent is missing before or after a comma; write container:host:size"},
		{"two columns", "0 100000", idshift.ErrSyntax, `extent "0 100000": 2 columns, /proc/PID/uid_map has 3: container ID, host ID, size`},
		{"blank instead of comma", "0:0:5 5:5:5", idshift.ErrSyntax, `extent "0:0:5 5:5:5": 2 columns, /proc/PID/uid_map has 3: container ID, host ID, size`},
		{"four columns", "0 1 2 3", idshift.ErrSyntax, `extent "0 1 2 3": 4 columns, /proc/PID/uid_map has 3: container ID, host ID, size`},
		{"podman +", "+1:2:3", idshift.ErrSyntax, `extent "+1:2:3": the flags +, u, g and @ are podman's own and are resolved by podman; write plain numbers, container:host:size`},
		{"podman @", "0:@1000:1", idshift.ErrSyntax, `extent "0:@1000:1": the flags +, u, g and @ are podman's own`},
		{"podman u", "u0:1:2", idshift.ErrSyntax, `extent "u0:1:2": the flags +, u, g and @ are podman's own`},
		{"podman +g@", "+g1:@2", idshift.ErrSyntax, `extent "+g1:@2": the flags +, u, g and @ are podman's own`},
		{"zero size", "0:100000:0", idshift.ErrExtentSize, "extent 0:100000:0: size is zero; an extent maps at least one ID"},
		{"33 bits", "0:4294967296:1", idshift.ErrExtentRange, `extent "0:4294967296:1": host ID "4294967296" has more than 32 bits`},
		{"size of 33 bits", "0:0:4294967296", idshift.ErrExtentRange, `size "4294967296" has more than 32 bits`},
		{"500 bits", "0:" + strings.Repeat("9", 150) + ":1", idshift.ErrExtentRange, `has more than 32 bits`},
		{"container overflow", "4294967290:0:10", idshift.ErrExtentRange, "extent 4294967290:0:10 has container IDs 4294967290-4294967299; the last valid ID is 4294967294"},
		{"host overflow", "0:4294967290:6", idshift.ErrExtentRange, "extent 0:4294967290:6 has host IDs 4294967290-4294967295; the last valid ID is 4294967294"},
		{"(uid_t)-1", "4294967295:0:1", idshift.ErrExtentRange, "extent 4294967295:0:1 has container ID 4294967295; the last valid ID is 4294967294"},
		{"overlap in container IDs", "0:100000:65536,10:500000:5", idshift.ErrOverlap, "extent 0:100000:65536 overlaps extent 10:500000:5 in container IDs 10-14"},
		{"overlap, given in reverse", "10:500000:5,0:100000:65536", idshift.ErrOverlap, "extent 10:500000:5 overlaps extent 0:100000:65536 in container IDs 10-14"},
		{"overlap in host IDs", "0:100000:65536,70000:165535:3", idshift.ErrOverlap, "extent 0:100000:65536 overlaps extent 70000:165535:3 in host ID 165535"},
		{"overlap as written", "  0  100000  10\n 5\t7 1", idshift.ErrOverlap, "extent 0 100000 10 overlaps extent 5 7 1 in container ID 5"},
		{"overlap on the wire", ":0:10:5:9:12:1", idshift.ErrOverlap, "extent 0:10:5 overlaps extent 9:12:1 in host ID 12"},
		{"overlap of podman's short form", "3:7,3:8", idshift.ErrOverlap, "extent 3:7 overlaps extent 3:8 in container ID 3"},
		{"the same twice", "0:0:5,0:0:5", idshift.ErrOverlap, "extent 0:0:5 overlaps extent 0:0:5 in container IDs 0-4"},
		{"long", long, idshift.ErrSyntax, `xxx"...: 1 numbers`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := idshift.ParseExtents(tt.text)
			require.ErrorIs(t, err, tt.kind)
			assert.Nil(t, got)
			assert.ErrorContains(t, err, tt.message)
			assert.Less(t, len(err.Error()), 400, "a message does not grow with the input")
		})
	}
}

// apart is a mapping text of n extents that cannot be merged.
func apart(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d:%d:1\n", 2*i, 1000+3*i)
	}
	return b.String()
}

func TestParseExtentsLimit(t *testing.T) {
	t.Parallel()
	got, err := idshift.ParseExtents(apart(idshift.MaxExtents))
	require.NoError(t, err)
	assert.Len(t, got, idshift.MaxExtents)

	_, err = idshift.ParseExtents(apart(idshift.MaxExtents + 1))
	require.ErrorIs(t, err, idshift.ErrTooManyExtents)
	require.EqualError(t, err, "mapping has 341 extents, the kernel accepts at most 340; merge or drop some")

	var adjacent strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&adjacent, "%d:%d:1\n", i, 5000+i)
	}
	got, err = idshift.ParseExtents(adjacent.String())
	require.NoError(t, err, "the limit is on what is left after merging")
	assert.Equal(t, idshift.Extents{{0, 5000, 1000}}, got)
}

func FuzzParseExtents(f *testing.F) {
	for _, seed := range []string{
		"", "0:100000:65536", "5:1005", "0:100000:65536,70000:0:1", ":0:100000:65536:70000:0:1",
		"         0     100000      65536\n     70000          0          1\n", "0:0:4294967295", "4294967295:0:1",
		"0:100000:65536,10:500000:5", "+u0:@1000:1", "0:0:0", ",", ":", "0::", "1:2:3:4", "0 1 2 3", "0:1:1000,1000:0:1,1001:1001:64536",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := idshift.ParseExtents(text)
		if err != nil {
			require.Nil(t, got)
			return
		}
		require.NotEmpty(t, got)
		again, err := idshift.ParseExtents(got.String())
		require.NoError(t, err)
		require.Equal(t, got, again)
		normal, err := got.Normalize()
		require.NoError(t, err)
		require.Equal(t, got, normal)
		for _, x := range got {
			for _, id := range []uint32{x.ContainerID, x.ContainerID + x.Size - 1} {
				host, ok := got.ToHost(id)
				require.True(t, ok)
				back, ok := got.ToContainer(host)
				require.True(t, ok)
				require.Equal(t, id, back)
			}
		}
		_, ok := got.ToHost(1<<32 - 1)
		require.False(t, ok, "4294967295 is not an ID")
	})
}
