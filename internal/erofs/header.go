package erofs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// formatVersion is raised when an image of today would be read wrongly.
const formatVersion = 2

// The header, at the beginning of the image: the magic, then 32-bit version
// and flags, 64-bit size of the file system, number of inodes and length of
// the table behind it, the 32-bit checksum of that table, the digest of the
// content, and a checksum of all of it.
const (
	headerMagic   = "SHIFTIMG"
	headerVersion = 8
	headerFlags   = 12
	headerImage   = 16
	headerInodes  = 24
	headerTable   = 32
	headerTabSum  = 40
	headerDigest  = 44
	headerSum     = 76
	headerSize    = 80

	flagACL     = 1
	flagPatched = 2
	flagOpaque  = 4
	flagsKnown  = flagACL | flagPatched | flagOpaque
)

// Bounds of what a header may claim, so that nothing large is allocated for a
// file that is no image. A table has about one byte for each inode, which has
// 64 itself, and one for each attribute with IDs, which has more than 32.
const (
	imageMax     = (1<<32 - 1) * slotSize // inode numbers have 32 bits
	tableDivisor = 16                     // of the size of the image
)

// header is what the first bytes of an image say.
type header struct {
	layout       Layout
	acl, patched bool
	size, inodes int64
	table        int64 // bytes
	tableSum     uint32
	digest       [sha256.Size]byte
}

// setTable notes the length and the checksum of the table.
func (h *header) setTable(table []byte) {
	h.table, h.tableSum = int64(len(table)), crc32.Checksum(table, castagnoli)
}

// uuid is the UUID of an image with that digest (RFC 9562, version 8).
func (h *header) uuid() (id [16]byte) {
	copy(id[:], h.digest[:])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// info is what Build and TemplateInfo tell of the image.
func (h *header) info() Info {
	return Info{Layout: h.layout, ACL: h.acl, Patched: h.patched, Inodes: h.inodes, Size: h.size, UUID: h.uuid()}
}

// put writes the header to the beginning of b.
func (h *header) put(b []byte) {
	b = b[:headerSize]
	copy(b, headerMagic)
	le.PutUint32(b[headerVersion:], formatVersion)
	flags := uint32(0)
	if h.acl {
		flags |= flagACL
	}
	if h.patched {
		flags |= flagPatched
	}
	if h.layout == Opaque {
		flags |= flagOpaque
	}
	le.PutUint32(b[headerFlags:], flags)
	le.PutUint64(b[headerImage:], uint64(h.size))
	le.PutUint64(b[headerInodes:], uint64(h.inodes))
	le.PutUint64(b[headerTable:], uint64(h.table))
	le.PutUint32(b[headerTabSum:], h.tableSum)
	copy(b[headerDigest:], h.digest[:])
	le.PutUint32(b[headerSum:], crc32.Checksum(b[:headerSum], castagnoli))
}

// checkFirst checks that the first block of an image is what Build made to go
// with the header: nothing between header and superblock, and a superblock of
// the same content, whose checksum alone says that the root and the place of the
// shared attributes are right.
func (h *header) checkFirst(block []byte) error {
	for i, c := range block[headerSize:superOffset] {
		if c != 0 {
			return damaged("byte %d is not zero", headerSize+i)
		}
	}
	var want [blockSize]byte
	copy(want[:], block)
	sb := block[superOffset : superOffset+superSize]
	s := super{
		layout: h.layout, inodes: h.inodes, blocks: h.size / blockSize, xattrs: int64(le.Uint32(sb[superXattrs:])),
		root: uint32(le.Uint16(sb[superRoot:])), uuid: h.uuid(),
	}
	s.put(want[:])
	if !bytes.Equal(sb, want[superOffset:superOffset+superSize]) {
		return damaged("superblock")
	}
	return nil
}

// readHeader reads the header of a file of a length in bytes.
func readHeader(r io.ReaderAt, length int64) (*header, error) {
	b := make([]byte, headerSize)
	if _, err := r.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return nil, damaged("%d bytes", length)
	} else if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(b, []byte(headerMagic)) {
		return nil, damaged("no header")
	}
	if crc32.Checksum(b[:headerSum], castagnoli) != le.Uint32(b[headerSum:]) {
		return nil, damaged("checksum of the header")
	}
	if v := le.Uint32(b[headerVersion:]); v != formatVersion {
		return nil, damaged("version %d of the format instead of %d", v, formatVersion)
	}
	flags := le.Uint32(b[headerFlags:])
	h := &header{
		acl: flags&flagACL != 0, patched: flags&flagPatched != 0,
		size: int64(le.Uint64(b[headerImage:])), inodes: int64(le.Uint64(b[headerInodes:])),
		table: int64(le.Uint64(b[headerTable:])), tableSum: le.Uint32(b[headerTabSum:]),
	}
	if flags&flagOpaque != 0 {
		h.layout = Opaque
	}
	copy(h.digest[:], b[headerDigest:])
	switch {
	case flags&^flagsKnown != 0:
		return nil, damaged("flags %#x", flags)
	case h.size < blockSize || h.size > imageMax || h.size%blockSize != 0 || h.inodes < 1 || h.inodes > h.size/inodeSize,
		h.table < 0 || h.table > h.size/tableDivisor, h.patched && h.table != 0:
		return nil, damaged("%d bytes with %d inodes and a table of %d bytes", h.size, h.inodes, h.table)
	case h.size+h.table != length:
		return nil, damaged("%d bytes instead of %d", length, h.size+h.table)
	}
	return h, nil
}

// TemplateInfo reads what Build returned of an image, and of one that Patch
// made, from its header. An error that is ErrDamaged says that f is no such
// image; that the rest of it is undamaged is not checked.
func TemplateInfo(f *os.File) (Info, error) {
	st, err := f.Stat()
	if err != nil {
		return Info{}, fmt.Errorf("read EROFS image: %w", err)
	}
	h, err := readHeader(f, st.Size())
	if err != nil {
		return Info{}, fmt.Errorf("read EROFS image %s: %w", f.Name(), err)
	}
	return h.info(), nil
}
