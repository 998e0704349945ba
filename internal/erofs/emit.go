package erofs

import (
	"context"
	"fmt"
	"os"
)

// emitter writes what is planned.
type emitter struct {
	*plan
	main   stream // inodes, then shared attributes
	blocks stream // of directories and long targets
	table  table
	path   []byte // of the directory at work, with a slash at its end; for redirects
}

// write writes the image, its header and the table to f.
func (p *plan) write(ctx context.Context, f *os.File) (Info, error) {
	size := p.bytes()
	out := newOutput(f, size)
	e := &emitter{plan: p, main: stream{out: out}, blocks: stream{out: out, at: p.data}}
	err := e.emit(ctx)
	if werr := out.finish(); err == nil {
		err = werr
	}
	if err != nil {
		return Info{}, fmt.Errorf("write EROFS image: %w", err)
	}
	table := e.table.bytes(size)
	h := header{
		layout: p.layout, acl: p.xattrs.acl, inodes: p.inodes, size: size,
		digest: digest(p.layout, p.inodes, out.sums),
	}
	h.setTable(table)
	sb := super{
		layout: p.layout, inodes: p.inodes, blocks: size / blockSize, xattrs: p.sharedAt / blockSize,
		root: p.root.self.nid, uuid: h.uuid(),
	}
	h.put(out.first[:])
	sb.put(out.first[:])
	if _, err := f.WriteAt(table, size); err != nil {
		return Info{}, fmt.Errorf("write EROFS image: %w", err)
	}
	if _, err := f.WriteAt(out.first[:], 0); err != nil {
		return Info{}, fmt.Errorf("write EROFS image: %w", err)
	}
	return h.info(), nil
}

// emit makes all bytes but those of header and superblock.
func (e *emitter) emit(ctx context.Context) error {
	e.main.zeros(superOffset + superSize)
	for i, d := range e.order {
		if i%256 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.directory(d)
	}
	e.main.zeros(e.sharedAt)
	for _, a := range e.shared {
		e.main.zeros(a.at)
		if a.holdsIDs() {
			e.table.value(a.at)
		}
		e.main.buf = appendEntry(e.main.buf, a.index, a.name, a.value)
		e.main.drain(false)
	}
	e.main.zeros(e.data)
	e.main.drain(true)
	e.blocks.drain(true)
	return nil
}

// directory writes the inode of a directory and those of its names that have
// their place here.
func (e *emitter) directory(d *dir) {
	e.path = append(d.appendPath(e.path[:0]), '/')
	e.inode(d, d.self, 2+uint32(len(d.subs)))
	e.dirents(d)
	for i := range d.nodes {
		n := &d.nodes[i]
		if n.alias || n.is(typeDir) {
			continue
		}
		nlink := uint32(1)
		if n.ref > 0 {
			nlink = e.links[n.ref-1].names
		}
		e.inode(d, n, nlink)
		switch {
		case n.is(typeLink):
			s := &e.main
			if !n.inline {
				s = &e.blocks
			}
			s.buf = append(s.buf, d.target(n)...)
			e.blocks.zeros(align(e.blocks.pos(), blockSize))
		case e.layout == DataOnly && n.dataless():
			for count, _ := chunks(n.size); count > 0; count-- {
				e.main.buf = le.AppendUint32(e.main.buf, chunkHole)
			}
		}
		e.main.drain(false)
	}
	e.blocks.drain(false)
}

// dirents writes the content of a directory.
func (e *emitter) dirents(d *dir) {
	for k, block := 0, int64(0); k < d.entries(); block++ {
		s := &e.blocks
		if d.self.inline && block == d.self.size/blockSize {
			s = &e.main
		}
		s.buf, k = d.appendBlock(s.buf, k)
		e.blocks.zeros(align(e.blocks.pos(), blockSize))
	}
}

// inode writes an inode with its attributes.
func (e *emitter) inode(d *dir, n *node, nlink uint32) {
	at := int64(n.nid) * slotSize
	e.main.zeros(at)
	s := &e.xattrs.sets[n.set]
	redirect := n.dataless()
	length := 0
	if redirect {
		length = len(e.path) + int(n.name)
		if n.ref > 0 {
			length = e.links[n.ref-1].length
		}
	}
	body := s.body
	if redirect {
		body += entrySize(len(redirectName), length)
	}
	size, union, form := uint64(n.size), uint32(0), uint16(flatPlain)
	switch {
	case n.inline:
		form, union = flatInline, e.block(n)
	case n.is(typeDir), n.is(typeLink):
		union = e.block(n)
	case redirect && e.layout == DataOnly:
		form = chunkBased
		_, union = chunks(n.size)
	case !redirect:
		size, union = 0, uint32(n.size)
	}
	var b [inodeSize]byte
	le.PutUint16(b[inodeFormat:], extended|form<<1)
	if body > 0 {
		le.PutUint16(b[inodeXattrs:], uint16((body-xattrHeaderSize)/xattrAlign+1))
	}
	le.PutUint16(b[inodeMode:], n.mode)
	le.PutUint64(b[inodeBytes:], size)
	le.PutUint32(b[inodeUnion:], union)
	le.PutUint32(b[inodeIno:], n.nid)
	le.PutUint32(b[inodeUID:], n.uid)
	le.PutUint32(b[inodeGID:], n.gid)
	le.PutUint64(b[inodeMtime:], uint64(n.sec))
	le.PutUint32(b[inodeNsec:], n.nsec)
	le.PutUint32(b[inodeNlink:], nlink)
	e.table.owner(at)
	e.main.buf = append(e.main.buf, b[:]...)
	if body > 0 {
		e.body(d, n, s, redirect)
	}
}

// block is the number of the first block that holds data of the inode and no
// inodes; 0 if there is none.
func (e *emitter) block(n *node) uint32 {
	if n.inline && n.size < blockSize {
		return 0
	}
	return uint32(e.data>>blockBits) + n.block
}

// body writes the attributes of an inode.
func (e *emitter) body(d *dir, n *node, s *set, redirect bool) {
	filter := s.filter
	if redirect && e.layout == DataOnly {
		filter &^= filterBit(indexTrusted, redirectName)
	}
	b := le.AppendUint32(e.main.buf, filter)
	b = append(b, byte(s.shared), 0, 0, 0, 0, 0, 0, 0)
	for _, a := range s.attrs[:s.shared] {
		b = le.AppendUint32(b, uint32((a.at-e.sharedAt)/xattrShared))
	}
	for _, a := range s.attrs[s.shared:] {
		if a.holdsIDs() {
			e.table.value(e.main.at + int64(len(b)))
		}
		b = appendEntry(b, a.index, a.name, a.value)
	}
	if redirect {
		b = e.appendRedirect(b, d, n)
	}
	e.main.buf = b
}

// appendRedirect appends the attribute that says where the data of a file is.
func (e *emitter) appendRedirect(b []byte, d *dir, n *node) []byte {
	path := e.path
	if n.ref > 0 {
		l := &e.links[n.ref-1]
		if l.dir != d {
			path = append(l.dir.appendPath(nil), '/')
		}
		d, n = l.dir, &l.dir.nodes[l.node]
	}
	name := d.name(n)
	length := len(path) + len(name)
	b = append(b, byte(len(redirectName)), indexTrusted)
	b = le.AppendUint16(b, uint16(length))
	b = append(b, redirectName...)
	b = append(b, path...)
	b = append(b, name...)
	for pad := -(xattrEntrySize + len(redirectName) + length) & (xattrAlign - 1); pad > 0; pad-- {
		b = append(b, 0)
	}
	return b
}
