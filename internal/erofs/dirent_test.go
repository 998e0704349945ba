package erofs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// directory makes a directory of names, which get the inodes from 100 on.
func directory(names []string) *dir {
	slices.Sort(names)
	names = slices.Compact(names)
	d := &dir{self: &node{mode: unix.S_IFDIR, nid: 7}, parent: &dir{self: &node{nid: 3}}}
	for i, name := range names {
		d.nodes = append(d.nodes, node{mode: unix.S_IFREG, text: uint32(len(d.text)), name: uint8(len(name)), nid: uint32(100 + i)})
		d.text = append(d.text, name...)
	}
	d.measure()
	return d
}

// content returns the bytes of a directory as they are on disk.
func content(d *dir) []byte {
	var out []byte
	for k := 0; k < d.entries(); {
		out = append(out, make([]byte, -len(out)&(blockSize-1))...)
		out, k = d.appendBlock(out, k)
	}
	return out
}

func checkDirectory(t require.TestingT, names []string) {
	d := directory(names)
	b := content(d)
	require.Equal(t, d.self.size, int64(len(b)))
	var got []childName
	var all []string
	for ; len(b) > 0; b = b[min(len(b), blockSize):] {
		block := b[:min(len(b), blockSize)]
		var err error
		got, err = appendNames(got, block)
		require.NoError(t, err)
		for at := 0; at < int(le.Uint16(block[8:])); at += direntSize {
			from, to := int(le.Uint16(block[at+8:])), len(block)
			if at+direntSize < int(le.Uint16(block[8:])) {
				to = int(le.Uint16(block[at+direntSize+8:]))
			}
			name := strings.TrimRight(string(block[from:to]), "\x00")
			all = append(all, name)
			switch name {
			case ".":
				require.Equal(t, uint64(7), le.Uint64(block[at:]))
			case "..":
				require.Equal(t, uint64(3), le.Uint64(block[at:]))
			}
		}
	}
	require.True(t, slices.IsSorted(all), "%q", all)
	require.Contains(t, all, ".")
	require.Contains(t, all, "..")
	require.Len(t, all, len(d.nodes)+2)
	require.Len(t, got, len(d.nodes))
	for i := range d.nodes {
		require.Equal(t, childName{string(d.name(&d.nodes[i])), uint64(100 + i)}, got[i])
	}
}

// TestDirectory checks the content of directories: few names and many, long
// ones, and such as come before or between "." and "..".
func TestDirectory(t *testing.T) {
	checkDirectory(t, nil)
	checkDirectory(t, []string{"!", "-", ".\x01", "...", "..a", ".a", "a"})
	checkDirectory(t, []string{"!", "+", "-"})
	var full []string
	for n := range 400 { // sizes around a whole block
		full = append(full, fmt.Sprintf("%03d", n))
		if n > 260 {
			checkDirectory(t, slices.Clone(full))
		}
	}
	var long []string
	for i := range 60 {
		long = append(long, fmt.Sprintf("%02d", i)+strings.Repeat("x", 253))
	}
	checkDirectory(t, long)
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringOfN(rapid.RuneFrom([]rune("!-./0az\x01ü")), 1, 255, 255)
		name = rapid.Map(name, func(s string) string { return strings.ReplaceAll(s, "/", "_") }).
			Filter(func(s string) bool { return s != "." && s != ".." && len(s) <= nameMax })
		checkDirectory(t, rapid.SliceOfN(name, 0, 300).Draw(t, "names"))
	})
}

// TestAppendNamesDamaged checks that no block makes the reader panic.
func TestAppendNamesDamaged(t *testing.T) {
	good := content(directory([]string{"a", "b", "c"}))
	rapid.Check(t, func(t *rapid.T) {
		b := slices.Clone(good)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		if _, err := appendNames(nil, b[:rapid.IntRange(0, len(b)).Draw(t, "length")]); err != nil {
			assert.ErrorIs(t, err, ErrDamaged)
		}
	})
}
