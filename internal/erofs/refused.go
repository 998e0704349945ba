package erofs

import (
	"context"
	"errors"
	"io"
	"path"
	"slices"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// findRefused returns the error of the first path of a template with an ID
// that shift refuses. Only inode numbers are known where the error was first
// seen. If none is found, the template being damaged, it returns err.
func findRefused(ctx context.Context, src io.ReaderAt, h *header, shift *idshift.Shift, err error) error {
	r := reader{src: src, size: h.size, left: h.size, shift: shift, fine: map[uint32]struct{}{}}
	sb := make([]byte, superSize)
	if readFull(src, sb, superOffset) != nil {
		return err
	}
	r.shared = int64(le.Uint32(sb[superXattrs:])) * blockSize
	type place struct {
		nid  uint64
		path string
	}
	seen := map[uint64]bool{}
	for todo := []place{{uint64(le.Uint16(sb[superRoot:])), ""}}; len(todo) > 0; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[at.nid] {
			continue
		}
		if seen[at.nid] = true; int64(len(seen)) > h.inodes {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		in, rerr := r.inode(at.nid)
		if rerr != nil {
			return errors.Join(err, rerr)
		}
		if refused := r.check(in); refused != nil {
			return idshift.AtPath(refused, path.Clean(at.path))
		}
		if !in.isDir() {
			continue
		}
		names, rerr := r.names(in)
		if rerr != nil {
			return errors.Join(err, rerr)
		}
		for _, n := range slices.Backward(names) {
			todo = append(todo, place{n.nid, path.Join(at.path, n.name)})
		}
	}
	return err
}

// reader reads the inodes of an image that may be damaged.
type reader struct {
	src    io.ReaderAt
	size   int64 // of the image
	shared int64 // offset of the shared attributes
	// How many bytes of directories there may still be: an image that is right
	// has each once, a damaged one might have the same for every inode.
	left  int64
	shift *idshift.Shift
	fine  map[uint32]struct{} // shared attributes that shift does not refuse
}

// inode is an inode and what is behind it.
type inode struct {
	at   int64
	raw  [inodeSize]byte
	body []byte // attributes
}

func (in *inode) isDir() bool { return le.Uint16(in.raw[inodeMode:])&0xf000 == typeDir }

// read reads n bytes at an offset.
func (r *reader) read(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || at > r.size || n > r.size-at {
		return nil, damaged("%d bytes at %d", n, at)
	}
	b := make([]byte, n)
	return b, readFull(r.src, b, at)
}

func (r *reader) inode(nid uint64) (*inode, error) {
	if nid > uint64(r.size/slotSize) {
		return nil, damaged("inode %d", nid)
	}
	in := &inode{at: int64(nid) * slotSize}
	b, err := r.read(in.at, inodeSize)
	if err != nil {
		return nil, err
	}
	copy(in.raw[:], b)
	if n := int64(le.Uint16(in.raw[inodeXattrs:])); n > 0 {
		in.body, err = r.read(in.at+inodeSize, xattrHeaderSize+(n-1)*xattrAlign)
	}
	return in, err
}

// check returns the error of shift for an inode.
func (r *reader) check(in *inode) error {
	if _, _, err := r.shift.Owner(le.Uint32(in.raw[inodeUID:]), le.Uint32(in.raw[inodeGID:])); err != nil {
		return err
	}
	if len(in.body) == 0 {
		return nil
	}
	b := in.body[xattrHeaderSize:]
	for range in.body[4] { // the number of shared ones
		if len(b) < xattrShared {
			return damaged("attributes of inode %d", in.at/slotSize)
		}
		if err := r.sharedEntry(le.Uint32(b)); err != nil {
			return err
		}
		b = b[xattrShared:]
	}
	for len(b) > 0 {
		n, err := r.entry(b)
		if err != nil {
			return err
		}
		b = b[min(n, len(b)):]
	}
	return nil
}

// sharedEntry checks the shared attribute of a number.
func (r *reader) sharedEntry(number uint32) error {
	if _, ok := r.fine[number]; ok {
		return nil
	}
	at := r.shared + int64(number)*xattrShared
	b, err := r.read(at, xattrEntrySize)
	if err == nil {
		b, err = r.read(at, xattrEntrySize+int64(b[0])+int64(le.Uint16(b[2:])))
	}
	if err == nil {
		_, err = r.entry(b)
	}
	if err == nil {
		r.fine[number] = struct{}{}
	}
	return err
}

// entry checks the attribute that b begins with and returns its length.
func (r *reader) entry(b []byte) (int, error) {
	index, name, value, ok := cutEntry(b)
	if !ok {
		return 0, damaged("attribute")
	}
	if full, ok := fullName(index, name); ok {
		if _, _, err := shiftValue(r.shift, full, value); err != nil {
			return 0, err
		}
	}
	return entrySize(len(name), len(value)), nil
}

// childName is an entry of a directory.
type childName struct {
	name string
	nid  uint64
}

// names reads a directory, without "." and "..".
func (r *reader) names(in *inode) ([]childName, error) {
	size := int64(le.Uint64(in.raw[inodeBytes:]))
	if size < 0 || size > r.left {
		return nil, damaged("directory of %d bytes", size)
	}
	r.left -= size
	at, full, tail := int64(le.Uint32(in.raw[inodeUnion:]))*blockSize, size, int64(0)
	if le.Uint16(in.raw[inodeFormat:])>>1 == flatInline {
		tail = size % blockSize
		full -= tail
	}
	data, err := r.read(at, full)
	if err != nil {
		return nil, err
	}
	end, err := r.read(in.at+inodeSize+int64(len(in.body)), tail)
	if err != nil {
		return nil, err
	}
	var out []childName
	for data = append(data, end...); len(data) > 0; data = data[min(len(data), blockSize):] {
		if out, err = appendNames(out, data[:min(len(data), blockSize)]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// appendNames reads one block of a directory.
func appendNames(out []childName, block []byte) ([]childName, error) {
	if len(block) < direntSize {
		return nil, damaged("block of a directory")
	}
	first := int(le.Uint16(block[8:]))
	if first == 0 || first%direntSize != 0 || first > len(block) {
		return nil, damaged("block of a directory")
	}
	for at := 0; at < first; at += direntSize {
		from, to := int(le.Uint16(block[at+8:])), len(block)
		if next := at + direntSize; next < first {
			to = int(le.Uint16(block[next+8:]))
		}
		if from > to || to > len(block) || from < first {
			return nil, damaged("block of a directory")
		}
		name := block[from:to]
		for len(name) > 0 && name[len(name)-1] == 0 {
			name = name[:len(name)-1]
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, childName{s, le.Uint64(block[at:])})
		}
	}
	return out, nil
}
