package erofs

import (
	"context"
	"fmt"
	"math"
)

// segmentSize is the part of an image that Patch works on at a time. Nothing
// that it has to change crosses the boundary of two.
const segmentSize = 1 << 20

// plan is the place of everything in an image.
type plan struct {
	*collector
	order    []*dir  // in the order of their inodes
	shared   []*attr // in the order of their entries
	inodes   int64
	end      int64  // of the inodes
	sharedAt int64  // offset of the shared attributes
	data     int64  // offset of the blocks of directories and long targets
	blocks   uint32 // number of those
}

// place gives everything its place.
func (c *collector) place(ctx context.Context) (*plan, error) {
	c.xattrs.freeze(c.layout)
	p := &plan{collector: c, end: superOffset + superSize}
	p.order = depthFirst(c.root)
	for i, d := range p.order {
		if i%1024 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := p.directory(d); err != nil {
			return nil, err
		}
	}
	p.sharedAt = align(p.end, blockSize)
	at := p.sharedAt
	for _, a := range p.shared {
		if size := int64(a.size()); a.holdsIDs() && at/segmentSize != (at+size-1)/segmentSize {
			at = align(at, segmentSize)
		}
		a.at = at
		at += int64(a.size())
	}
	p.data = align(at, blockSize)
	if p.bytes() > imageMax || at-p.sharedAt > math.MaxUint32*xattrShared {
		return nil, &UnfitError{Path: ".", Reason: fmt.Sprintf("an image of %d bytes", p.bytes())}
	}
	return p, nil
}

// bytes is the size of the file system.
func (p *plan) bytes() int64 { return p.data + int64(p.blocks)<<blockBits }

// depthFirst lists directories, each before those in it.
func depthFirst(root *dir) []*dir {
	var order []*dir
	for stack := []*dir{root}; len(stack) > 0; {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		order = append(order, d)
		for i := len(d.subs) - 1; i >= 0; i-- {
			stack = append(stack, &d.subs[i])
		}
	}
	return order
}

// directory places the inode of a directory and those of its names that are no
// directories.
func (p *plan) directory(d *dir) error {
	if err := p.inode(d, d.self, 0); err != nil {
		return err
	}
	for i := range d.nodes {
		n := &d.nodes[i]
		if n.is(typeDir) {
			continue
		}
		length := d.pathLen + 1 + int(n.name)
		if n.ref > 0 {
			l := &p.links[n.ref-1]
			if l.nid != 0 {
				n.nid, n.alias = l.nid, true
				continue
			}
			length = l.length
		}
		if err := p.inode(d, n, length); err != nil {
			return err
		}
		if n.ref > 0 {
			p.links[n.ref-1].nid = n.nid
		}
	}
	return nil
}

// inode places an inode and what is behind it: its attributes, then the chunks
// of a hole or the end of its data. length is that of a redirect.
func (p *plan) inode(d *dir, n *node, length int) error {
	s := &p.xattrs.sets[n.set]
	body, tail := s.body, int64(0)
	switch {
	case n.dataless():
		if length > p.layout.redirectMax() {
			return &UnfitError{Path: d.nodeRel(n), Reason: fmt.Sprintf("its path has %d bytes, more than a redirect can have", length), LongPath: true}
		}
		body += entrySize(len(redirectName), length)
		if p.layout == DataOnly {
			count, _ := chunks(n.size)
			tail = count * chunkEntrySize
		}
	case n.is(typeDir), n.is(typeLink):
		tail = n.size % blockSize
	}
	if body > xattrBodyMax {
		return &UnfitError{Path: d.nodeRel(n), Reason: fmt.Sprintf("its extended attributes take %d bytes, more than %d", body, xattrBodyMax)}
	}
	at, size := align(p.end, slotSize), inodeSize+int64(body)
	switch {
	case !n.is(typeDir) && !n.is(typeLink):
		size += tail
		at = fit(at, size, s.ids)
	default:
		at = p.tail(n, at, size, tail, s.ids)
		if n.inline {
			size += tail
		}
	}
	n.nid = uint32(at / slotSize)
	p.end = at + size
	p.inodes++
	p.share(s)
	return nil
}

// fit moves something forward that may not be where it is: an inode that
// crosses blocks, which early kernels misread, or IDs that cross segments.
func fit(at, size int64, ids bool) int64 {
	if ids && at/segmentSize != (at+size-1)/segmentSize {
		at = align(at, segmentSize)
	}
	if at%blockSize > blockSize-inodeSize {
		at = align(at, blockSize)
	}
	return at
}

// tail decides where the end of a directory or a link's target goes, and
// returns the place of the inode. Behind the inode it must be in one block
// with it: the kernel wants a tail in one block, and early ones want the whole
// of a symbolic link there (erofs_fill_symlink in fs/erofs/inode.c). Otherwise
// all data is in blocks.
func (p *plan) tail(n *node, at, size, tail int64, ids bool) int64 {
	n.block = p.blocks
	moved := at
	if at/blockSize != (at+size+tail-1)/blockSize {
		moved = align(at, blockSize)
	}
	if tail > 0 && size+tail <= blockSize && moved-at <= blockSize-tail {
		n.inline = true
		p.blocks += uint32(n.size / blockSize)
		return moved
	}
	p.blocks += uint32(align(n.size, blockSize) / blockSize)
	return fit(at, size, ids)
}

// share takes up the shared attributes of a set.
func (p *plan) share(s *set) {
	if s.listed {
		return
	}
	s.listed = true
	for _, a := range s.attrs[:s.shared] {
		if !a.listed {
			a.listed = true
			p.shared = append(p.shared, a)
		}
	}
}
