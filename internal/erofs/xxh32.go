package erofs

import "math/bits"

// Constants of the 32-bit xxHash (github.com/Cyan4973/xxHash,
// doc/xxhash_spec.md).
const (
	xxhPrime1 uint32 = 0x9E3779B1
	xxhPrime2 uint32 = 0x85EBCA77
	xxhPrime3 uint32 = 0xC2B2AE3D
	xxhPrime4 uint32 = 0x27D4EB2F
	xxhPrime5 uint32 = 0x165667B1
)

// xxh32 is the 32-bit xxHash of text.
func xxh32(text string, seed uint32) uint32 {
	b := []byte(text)
	h := seed + xxhPrime5
	if len(b) >= 16 {
		lanes := [4]uint32{seed + xxhPrime1 + xxhPrime2, seed + xxhPrime2, seed, seed - xxhPrime1}
		for ; len(b) >= 16; b = b[16:] {
			for i := range lanes {
				lanes[i] = bits.RotateLeft32(lanes[i]+le.Uint32(b[4*i:])*xxhPrime2, 13) * xxhPrime1
			}
		}
		h = bits.RotateLeft32(lanes[0], 1) + bits.RotateLeft32(lanes[1], 7) +
			bits.RotateLeft32(lanes[2], 12) + bits.RotateLeft32(lanes[3], 18)
	}
	h += uint32(len(text))
	for ; len(b) >= 4; b = b[4:] {
		h = bits.RotateLeft32(h+le.Uint32(b)*xxhPrime3, 17) * xxhPrime4
	}
	for _, c := range b {
		h = bits.RotateLeft32(h+uint32(c)*xxhPrime5, 11) * xxhPrime1
	}
	h = (h ^ h>>15) * xxhPrime2
	h = (h ^ h>>13) * xxhPrime3
	return h ^ h>>16
}

// xattrFilterSeed is EROFS_XATTR_FILTER_SEED.
const xattrFilterSeed = 0x25BBE08F

// filterBit is the bit of an inode's filter that is clear if the inode may
// have an attribute of that name, without the beginning that index stands
// for.
func filterBit(index byte, name string) uint32 {
	return 1 << (xxh32(name, xattrFilterSeed+uint32(index)) & 31)
}
