package erofs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Patch writes to dst, an empty file, the image of the template src with all
// IDs shifted: owners, ACLs and file capabilities, as shift has it. Inode
// numbers, UUID and everything else stay as they are. A capability that shift
// drops becomes an attribute of a name that overlay hides.
//
// An ID that shift refuses is an *idshift.UnmappedError that names the first
// path that has one. A template that is damaged, anywhere, is ErrDamaged. A
// cancelled ctx ends Patch with context.Cause(ctx). After an error dst holds
// nothing of worth.
func Patch(ctx context.Context, dst, src *os.File, shift *idshift.Shift) error {
	st, err := src.Stat()
	if err == nil {
		err = patch(ctx, dst, src, st.Size(), shift)
	}
	if err != nil {
		return fmt.Errorf("shift EROFS image %s: %w", src.Name(), err)
	}
	return nil
}

// patcher is the state of one Patch.
type patcher struct {
	*header
	dst   io.WriterAt
	src   io.ReaderAt
	shift *idshift.Shift
	table []byte
	sums  []uint32 // of the blocks of the template
	next  atomic.Int64
}

// patch is Patch for a template of a length in bytes.
func patch(ctx context.Context, dst io.WriterAt, src io.ReaderAt, length int64, shift *idshift.Shift) error {
	h, err := readHeader(src, length)
	if err != nil {
		return err
	}
	if h.patched {
		return damaged("it is no template, its IDs are shifted already")
	}
	p := &patcher{
		header: h, dst: dst, src: src, shift: shift,
		table: make([]byte, h.table), sums: make([]uint32, h.size/blockSize),
	}
	if err := readFull(src, p.table, h.size); err != nil {
		return err
	}
	if crc32.Checksum(p.table, castagnoli) != h.tableSum {
		return damaged("checksum of the table")
	}
	if err := p.run(ctx); err != nil {
		if u, ok := errors.AsType[*idshift.UnmappedError](err); ok && u.Path == "" {
			return findRefused(ctx, src, h, shift, err)
		}
		return err
	}
	if digest(h.layout, h.inodes, p.sums) != h.digest {
		return damaged("checksum of the content")
	}
	return nil
}

// readFull fills b from an offset.
func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return damaged("it ends after %d bytes", at+int64(n))
	default:
		return err
	}
}

// run patches all segments. Copying the bytes is most of the work, and most of
// that is the kernel's, so more than a few threads are of no use.
func (p *patcher) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for range min(int64(runtime.GOMAXPROCS(0)), 4, segments(p.size)) {
		group.Go(func() {
			if err := p.work(ctx); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

// work patches segments until there are no more.
func (p *patcher) work(ctx context.Context) error {
	s := segment{patcher: p, buf: make([]byte, min(segmentSize, p.size))}
	for {
		i := p.next.Add(1) - 1
		if i >= segments(p.size) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.patch(i); err != nil {
			return err
		}
	}
}

// segment is what one thread of a Patch works on.
type segment struct {
	*patcher
	buf []byte
	// The owner before, as most have the same as their neighbours.
	known          bool
	uid, gid       uint32
	newUID, newGID uint32
}

// patch patches segment i.
func (s *segment) patch(i int64) error {
	at := i * segmentSize
	b := s.buf[:min(segmentSize, s.size-at)]
	if err := readFull(s.src, b, at); err != nil {
		return err
	}
	sumBlocks(s.sums, at, b)
	if i == 0 {
		if err := s.checkFirst(b[:blockSize]); err != nil {
			return err
		}
	}
	part, err := tablePart(s.table, segments(s.size), i)
	if err != nil {
		return err
	}
	part, err = places(part, slotSize, int64(len(b)), func(at int64) error { return s.owner(b[at:]) })
	if err != nil {
		return err
	}
	part, err = places(part, xattrAlign, int64(len(b)), func(at int64) error { return s.value(b[at:]) })
	if err != nil {
		return err
	}
	if len(part) > 0 {
		return damaged("table of segment %d", i)
	}
	if i == 0 {
		h := header{layout: s.layout, acl: s.acl, patched: true, inodes: s.inodes, size: s.size, digest: s.digest}
		h.put(b)
		le.PutUint32(b[superOffset+superChecksum:], superSum(b))
	}
	_, err = s.dst.WriteAt(b, at)
	return err
}

// owner shifts the owner of the inode that b begins with, all of which need
// not be there.
func (s *segment) owner(b []byte) error {
	if len(b) < inodeGID+4 {
		return damaged("inode at the end")
	}
	uid, gid := le.Uint32(b[inodeUID:]), le.Uint32(b[inodeGID:])
	if !s.known || uid != s.uid || gid != s.gid {
		newUID, newGID, err := s.shift.Owner(uid, gid)
		if err != nil {
			return err
		}
		s.known, s.uid, s.gid, s.newUID, s.newGID = true, uid, gid, newUID, newGID
	}
	le.PutUint32(b[inodeUID:], s.newUID)
	le.PutUint32(b[inodeGID:], s.newGID)
	return nil
}

// value shifts the IDs of the attribute that b begins with.
func (s *segment) value(b []byte) error {
	index, name, value, ok := cutEntry(b)
	if !ok {
		return damaged("attribute that crosses segments")
	}
	full, ok := fullName(index, name)
	if !ok {
		return damaged("attribute %q of kind %d has no IDs", name, index)
	}
	out, keep, err := shiftValue(s.shift, full, value)
	switch {
	case err != nil:
		return err
	case full != idshift.Capability:
		if len(out) != len(value) {
			return damaged("ACL of %d bytes", len(value))
		}
		copy(value, out)
		return nil
	case len(value) != capabilitySize:
		return damaged("capability of %d bytes", len(value))
	case !keep:
		b[1] = indexTrusted
		copy(name, droppedName)
		return nil
	}
	root := uint32(0)
	if len(out) == capabilitySize {
		root = le.Uint32(out[capabilityRoot:])
	}
	le.PutUint32(value[capabilityRoot:], root)
	return nil
}

// shiftValue shifts an attribute of a template, where none is malformed that
// Build has written.
func shiftValue(shift *idshift.Shift, name string, value []byte) (out []byte, keep bool, err error) {
	out, keep, err = shift.Xattr(name, value)
	if errors.Is(err, idshift.ErrBadACL) || errors.Is(err, idshift.ErrBadCapability) {
		err = damaged("%v", err)
	}
	return out, keep, err
}

// cutEntry takes apart the attribute that b begins with; false if b ends
// before it does.
func cutEntry(b []byte) (index byte, name, value []byte, ok bool) {
	if len(b) < xattrEntrySize {
		return 0, nil, nil, false
	}
	nameEnd := xattrEntrySize + int(b[0])
	end := nameEnd + int(le.Uint16(b[2:]))
	if len(b) < end {
		return 0, nil, nil, false
	}
	return b[1], b[xattrEntrySize:nameEnd], b[nameEnd:end], true
}

// fullName returns the name of an attribute that holds IDs.
func fullName(index byte, name []byte) (string, bool) {
	switch {
	case index == indexACLAccess && len(name) == 0:
		return idshift.ACLAccess, true
	case index == indexACLDefault && len(name) == 0:
		return idshift.ACLDefault, true
	case index == indexSecurity && string(name) == capabilityName:
		return idshift.Capability, true
	default:
		return "", false
	}
}
