package erofs

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestXXH32 checks the hash against values that xxhsum(1) gives.
func TestXXH32(t *testing.T) {
	for text, want := range map[string]uint32{
		"":     0x02cc5d05,
		"a":    0x550d7456,
		"as":   0x9d5a0464,
		"asd":  0x3d83552b,
		"asdf": 0x5e702c32,
		"abc":  0x32d153ff,
		"Nobody inspects the spammish repetition":                         0xe2293b2f,
		"Call me Ishmael. Some years ago--never mind how long precisely-": 0x6f320359,
	} {
		assert.Equal(t, want, xxh32(text, 0), "%q", text)
	}
}

// TestChunks checks that holes of any size are covered by their chunks.
func TestChunks(t *testing.T) {
	for _, c := range []struct {
		size, n int64
		bits    uint32
	}{
		{1, 1, 0},
		{4095, 1, 0},
		{4096, 1, 0},
		{4097, 1, 1},
		{8192, 1, 1},
		{8193, 1, 2},
		{1 << 40, 1, 28},
		{1<<40 + 1, 1, 29},
		{1 << 43, 1, 31},
		{1<<43 + 1, 2, 31},
		{1 << 44, 2, 31},
		{1<<63 - 1, 1 << 20, 31},
	} {
		n, b := chunks(c.size)
		assert.Equal(t, c.n, n, "chunks of %d", c.size)
		assert.Equal(t, c.bits, b, "size of chunks of %d", c.size)
	}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1<<62).Draw(t, "size")
		n, b := chunks(size)
		assert.LessOrEqual(t, b, uint32(chunkBitsMax))
		assert.GreaterOrEqual(t, uint64(n)<<(b+blockBits), uint64(size))
		assert.Less(t, uint64(n-1)<<(b+blockBits), uint64(size))
	})
}

// TestDevice checks the encoding against the kernel's decoding
// (new_decode_dev in include/linux/kdev_t.h).
func TestDevice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		major, minor := rapid.Uint32Range(0, 1<<12-1).Draw(t, "major"), rapid.Uint32Range(0, 1<<20-1).Draw(t, "minor")
		dev, ok := device(unix.Mkdev(major, minor))
		assert.True(t, ok)
		assert.Equal(t, major, dev&0xfff00>>8)
		assert.Equal(t, minor, dev&0xff|dev>>12&0xfff00)
	})
	_, ok := device(unix.Mkdev(1<<12, 0))
	assert.False(t, ok)
	_, ok = device(unix.Mkdev(0, 1<<20))
	assert.False(t, ok)
}

// TestDirentType checks the types of directory entries (FT_*).
func TestDirentType(t *testing.T) {
	for mode, want := range map[uint32]byte{
		unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
	} {
		assert.Equal(t, want, direntType(uint16(mode|0o7777)))
	}
}
