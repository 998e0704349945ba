package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"golang.org/x/sys/unix"
)

// The format on disk, little-endian (fs/erofs/erofs_fs.h).
const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	// Fields of struct erofs_super_block.
	superChecksum  = 4
	superCompat    = 8
	superBlockBits = 12
	superRoot      = 14
	superInodes    = 16
	superBlocks    = 36
	superXattrs    = 44
	superUUID      = 48
	superIncompat  = 80

	compatChecksum    = 1
	compatMtime       = 2
	compatXattrFilter = 4
	incompatChunked   = 4

	// An inode's number is its offset in slots of 32 bytes; the extended form
	// has two.
	slotSize  = 32
	inodeSize = 64

	// Fields of struct erofs_inode_extended.
	inodeFormat = 0
	inodeXattrs = 2
	inodeMode   = 4
	inodeBytes  = 8  // st_size
	inodeUnion  = 16 // first block, device number or chunk format
	inodeIno    = 20
	inodeUID    = 24
	inodeGID    = 28
	inodeMtime  = 32
	inodeNsec   = 40
	inodeNlink  = 44

	extended   = 1 // of inodeFormat; the data layout is above it
	flatPlain  = 0
	flatInline = 2
	chunkBased = 4

	// The first four bytes of an inode's attributes are its filter, the fifth
	// is the number of shared ones.
	xattrHeaderSize = 12
	xattrEntrySize  = 4
	xattrAlign      = 4
	xattrShared     = 4
	// The inode has the length of its attributes in 16 bits, in units of 4
	// bytes.
	xattrBodyMax   = xattrHeaderSize + (1<<16-2)*xattrAlign
	xattrValueMax  = 1<<16 - 1
	xattrNameMax   = 1<<8 - 1
	xattrSharedMax = 1<<8 - 1

	// Numbers that stand for the beginning of an attribute's name.
	indexUser       = 1
	indexACLAccess  = 2
	indexACLDefault = 3
	indexTrusted    = 4
	indexSecurity   = 6

	typeDir  = unix.S_IFDIR
	typeLink = unix.S_IFLNK

	direntSize = 12
	nameMax    = 255
	targetMax  = unix.PathMax - 1

	redirectDataMax = unix.PathMax - 1

	chunkEntrySize = 4
	chunkHole      = 1<<32 - 1
	chunkBitsMax   = 31 // above the size of a block
	chunksMax      = 1 << 10
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// align rounds n up to a multiple of unit, a power of 2.
func align[T int | int64](n, unit T) T { return (n + unit - 1) &^ (unit - 1) }

// chunks returns how a hole of size bytes is divided: into n chunks of
// 1<<bits blocks.
func chunks(size int64) (n int64, chunkBits uint32) {
	blocks := uint64(size) >> blockBits
	if size%blockSize != 0 {
		blocks++
	}
	chunkBits = min(uint32(bits.Len64(max(blocks, 1)-1)), chunkBitsMax)
	return int64((blocks + 1<<chunkBits - 1) >> chunkBits), chunkBits
}

// superSum is the checksum of a superblock, over the rest of its block; the
// field itself counts as 0. The kernel leaves out the inversion at the end
// (erofs_superblock_csum_verify in fs/erofs/super.c).
func superSum(block []byte) uint32 {
	sum := crc32.Update(0, castagnoli, block[superOffset:superOffset+superChecksum])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return ^crc32.Update(sum, castagnoli, block[superOffset+superChecksum+4:blockSize])
}

// super is what a superblock says.
type super struct {
	layout Layout
	inodes int64
	blocks int64
	xattrs int64 // first block of the shared attributes
	root   uint32
	uuid   [16]byte
}

// put writes the superblock into the first block, which is complete otherwise.
func (s *super) put(block []byte) {
	b := block[superOffset : superOffset+superSize]
	clear(b)
	le.PutUint32(b, superMagic)
	compat, incompat := uint32(compatChecksum|compatMtime), uint32(0)
	if s.layout == DataOnly {
		compat |= compatXattrFilter
		incompat |= incompatChunked
	}
	le.PutUint32(b[superCompat:], compat)
	b[superBlockBits] = blockBits
	le.PutUint16(b[superRoot:], uint16(s.root))
	le.PutUint64(b[superInodes:], uint64(s.inodes))
	le.PutUint32(b[superBlocks:], uint32(s.blocks))
	le.PutUint32(b[superXattrs:], uint32(s.xattrs))
	copy(b[superUUID:], s.uuid[:])
	le.PutUint32(b[superIncompat:], incompat)
	le.PutUint32(b[superChecksum:], superSum(block))
}

// direntType is the type of an inode as a directory gives it
// (include/linux/fs_types.h, FT_*).
func direntType(mode uint16) byte {
	const types = "\x00\x05\x03\x00\x02\x00\x04\x00\x01\x00\x07\x00\x06\x00\x00\x00" // by st_mode>>12
	return types[mode>>12]
}

// device is a device number as the kernel stores it (new_encode_dev in
// include/linux/kdev_t.h); false if it does not fit.
func device(rdev uint64) (uint32, bool) {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12, major < 1<<12 && minor < 1<<20
}
