package erofs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// node is one name of a directory and what its inode says. There are many:
// without pointers they cost the garbage collector nothing.
type node struct {
	size     int64 // bytes, of a symbolic link's target, too; of a device its number
	sec      int64 // modification time
	nsec     uint32
	uid, gid uint32
	text     uint32 // where in dir.text the name begins; a link's target is behind it
	set      uint32 // of attributes, in xattrTable.sets
	ref      uint32 // if not 0: of a directory 1 + its place in dir.subs, else 1 + its place in collector.links
	nid      uint32 // number of the inode; known when it has its place
	block    uint32 // first of those blocks of the data that are not behind the inode, counted from the first of all
	mode     uint16
	name     uint8 // length
	inline   bool  // the end of the data is behind the inode
	alias    bool  // the inode has its place with another name
}

func (n *node) is(typ uint16) bool { return n.mode&unix.S_IFMT == typ }

// dataless tells whether the node is a file whose data is in the layers.
func (n *node) dataless() bool { return n.is(unix.S_IFREG) && n.size > 0 }

// dir is a directory of the merged tree. It does not change once its sink call
// has returned, but for the places of inodes and data.
type dir struct {
	parent *dir
	self   *node // in parent.nodes
	nodes  []node
	text   []byte
	subs   []dir // by name
	// Of the names in order, with "." and "..": where those two are.
	dot, dotdot int
	pathLen     int // of the path from the root, with a slash before each name
}

func (d *dir) name(n *node) []byte { return d.text[n.text : n.text+uint32(n.name)] }

func (d *dir) target(n *node) []byte {
	return d.text[n.text+uint32(n.name):][:n.size]
}

// appendPath appends the path of the directory, with a slash before each name.
func (d *dir) appendPath(b []byte) []byte {
	if d.parent == nil {
		return b
	}
	b = append(d.parent.appendPath(b), '/')
	return append(b, d.parent.name(d.self)...)
}

// rel is the path of a name in the directory, or with "" of the directory
// itself, as errors show it: "." for the root.
func (d *dir) rel(name string) string {
	return path.Join(".", strings.TrimPrefix(string(d.appendPath(nil)), "/"), name)
}

// nodeRel is the path of a node of the directory, or of its own.
func (d *dir) nodeRel(n *node) string {
	if n == d.self {
		return d.rel("")
	}
	return d.rel(string(d.name(n)))
}

// link is an inode with several names.
type link struct {
	names uint32 // that the merged view shows
	// The name that a redirect leads to: the shortest path and, of several,
	// the first, so that it is the same in every run.
	dir    *dir
	node   int
	length int
	// When it has its place:
	nid uint32
}

// collector is the sink of the walk that Build does.
type collector struct {
	layout Layout
	xattrs *xattrTable
	root   *dir

	mu    sync.Mutex
	byKey map[idshift.LinkKey]uint32
	links []link
}

func newCollector(layout Layout) (*collector, error) {
	x, err := newXattrTable()
	if err != nil {
		return nil, err
	}
	return &collector{layout: layout, xattrs: x, byKey: map[idshift.LinkKey]uint32{}}, nil
}

// Directory implements idshift.Sink.
func (c *collector) Directory(ctx context.Context, src *idshift.Dir) error {
	f := filler{collector: c}
	if p := src.Parent(); p == nil {
		c.root = &dir{self: &node{}}
		f.dir = c.root
		if err := f.inode(f.dir.self, &src.Self); err != nil {
			return f.at("", err)
		}
		f.count(f.dir.self)
	} else if f.dir = p.State.(*dir).sub(src.Self.Name); f.dir == nil {
		return fmt.Errorf("read %s: its parent has no such directory", src.Path())
	}
	src.State = f.dir
	return f.fill(ctx, src.Entries)
}

// Release implements idshift.Sink.
func (*collector) Release(*idshift.Dir) {}

// sub returns the subdirectory of a name.
func (d *dir) sub(name string) *dir {
	i, ok := sort.Find(len(d.subs), func(i int) int { return strings.Compare(name, string(d.name(d.subs[i].self))) })
	if !ok {
		return nil
	}
	return &d.subs[i]
}

// filler takes in one directory.
type filler struct {
	*collector
	dir *dir
	// The entry that was looked up last, as most have what their neighbour
	// has, the set of its attributes, and how many more inodes have it.
	last *idshift.Entry
	mark mark
	set  uint32
	uses int
}

// at adds to an error the path of a name in the directory, or with "" that of
// the directory itself.
func (f *filler) at(name string, err error) error {
	p := f.dir.rel(name)
	if u, ok := errors.AsType[*UnfitError](err); ok {
		return &UnfitError{Path: p, Reason: u.Reason}
	}
	return idshift.AtPath(err, p)
}

// fill takes in the entries of the directory.
func (f *filler) fill(ctx context.Context, entries []idshift.Entry) error {
	subs, text := 0, 0
	for i := range entries {
		e := &entries[i]
		text += len(e.Name) + len(e.Target)
		if e.IsDir() {
			subs++
		}
	}
	d := f.dir
	if uint64(text) > math.MaxUint32 {
		return f.at("", &UnfitError{Reason: fmt.Sprintf("names and targets of %d bytes are too many for a directory", text)})
	}
	d.nodes = make([]node, len(entries))
	d.text = make([]byte, 0, text)
	d.subs = make([]dir, 0, subs)
	// Names first: as soon as a hard link is known, others look at its path.
	for i := range entries {
		e, n := &entries[i], &d.nodes[i]
		n.text, n.name = uint32(len(d.text)), uint8(len(e.Name))
		d.text = append(append(d.text, e.Name...), e.Target...)
	}
	for i := range entries {
		if i%4096 == 4095 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, n := &entries[i], &d.nodes[i]
		if err := f.inode(n, e); err != nil {
			return f.at(e.Name, err)
		}
		if e.IsDir() {
			d.subs = append(d.subs, dir{parent: d, self: n, pathLen: d.pathLen + 1 + len(e.Name)})
			n.ref = uint32(len(d.subs))
		} else if key, ok := e.Link(); ok && !f.hardLink(n, i, key) {
			continue // counted with another name
		}
		f.count(n)
	}
	f.flush()
	d.measure()
	return nil
}

// inode takes what an entry says of its inode.
func (f *filler) inode(n *node, e *idshift.Entry) error {
	st := &e.Stat
	n.mode, n.uid, n.gid = uint16(st.Mode), st.Uid, st.Gid
	n.sec, n.nsec = st.Mtim.Sec, uint32(st.Mtim.Nsec)
	if len(e.Name) > nameMax {
		return &UnfitError{Reason: fmt.Sprintf("its name has %d bytes, more than %d", len(e.Name), nameMax)}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.size = st.Size
		if count, _ := chunks(n.size); f.layout == DataOnly && count > chunksMax {
			return &UnfitError{Reason: fmt.Sprintf("%d bytes are too many for a hole", n.size)}
		}
	case unix.S_IFLNK:
		n.size = int64(len(e.Target))
		if n.size == 0 || n.size > targetMax {
			return &UnfitError{Reason: fmt.Sprintf("a target of %d bytes", n.size)}
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		number, ok := device(st.Rdev)
		if !ok {
			return &UnfitError{Reason: fmt.Sprintf("the device number %#x", st.Rdev)}
		}
		n.size = int64(number)
	}
	mark := f.markOf(n, e)
	if len(e.Xattrs) > 0 && f.last != nil && f.mark == mark && sameXattrs(f.last.Xattrs, e.Xattrs) {
		n.set = f.set
		return nil
	}
	var err error
	if n.set, err = f.xattrs.add(e.Xattrs, mark); err != nil {
		return err
	}
	if len(e.Xattrs) > 0 {
		f.flush()
		f.last, f.mark, f.set = e, mark, n.set
	}
	return nil
}

// markOf is what overlay is to know of an inode.
func (f *filler) markOf(n *node, e *idshift.Entry) mark {
	switch {
	case n.dataless():
		return markMetacopy
	case f.layout == Opaque && n.is(typeDir) && e.Name != "":
		return markOpaque
	default:
		return markNone
	}
}

// count counts an inode that has the attributes of the last look-up.
func (f *filler) count(n *node) {
	if n.set >= uint32(marks) {
		f.uses++
	}
}

// flush hands on what was counted.
func (f *filler) flush() {
	if f.uses > 0 {
		f.xattrs.use(f.set, f.uses)
		f.uses = 0
	}
}

// hardLink takes in one of several names of an inode and tells whether it is
// the first that was found.
func (f *filler) hardLink(n *node, i int, key idshift.LinkKey) (first bool) {
	d := f.dir
	length := d.pathLen + 1 + int(n.name)
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.byKey[key]
	if !ok {
		at = uint32(len(f.links))
		f.byKey[key] = at
		f.links = append(f.links, link{dir: d, node: i, length: length})
	}
	n.ref = at + 1
	l := &f.links[at]
	l.names++
	if length < l.length || length == l.length && d.nodeRel(n) < l.dir.nodeRel(&l.dir.nodes[l.node]) {
		l.dir, l.node, l.length = d, i, length
	}
	return !ok
}
