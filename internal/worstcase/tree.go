package worstcase

import (
	"hash/fnv"
	"iter"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// node is one path of one layer.
type node struct {
	layer  int // 0 is the lowest
	path   string
	typ    uint32 // type bits of the mode; 0 for a hard link
	mode   uint32
	owner  [2]uint32
	rdev   uint64
	size   int64
	data   []extent
	target string // of a symbolic link; of a hard link, another name
	source int    // layer of the target of a hard link
	xattrs []xattr
	mtime  unix.Timespec
	flags  int // inode flags, such as immutable
}

// extent is a piece of a file's content.
type extent struct {
	offset  int64
	content string
}

type xattr struct{ name, value string }

// option changes something of a node.
type option func(*node)

func owner(uid, gid uint32) option { return func(n *node) { n.owner = [2]uint32{uid, gid} } }

func mode(m uint32) option { return func(n *node) { n.mode = m } }

func mtime(sec, nsec int64) option {
	return func(n *node) { n.mtime = unix.Timespec{Sec: sec, Nsec: nsec} }
}

func attr(name, value string) option {
	return func(n *node) { n.xattrs = append(n.xattrs, xattr{name, value}) }
}

func flags(f int) option { return func(n *node) { n.flags = f } }

// opaque hides what lower layers have in a directory (overlayfs.rst, section
// "Whiteouts and opaque directories").
func opaque() option { return attr("trusted.overlay.opaque", "y") }

// tree is what is to be written. A path may come twice in a layer if it is a
// directory: the last one says what it is like.
type tree struct{ nodes []node }

// on is one layer of a tree that is being described.
type on struct {
	t     *tree
	layer int
}

func (t *tree) on(layer int) on { return on{t, layer} }

func (l on) add(n node, options []option) {
	n.layer, n.path = l.layer, path.Clean(n.path)
	n.mtime = timeOf(n.layer, n.path)
	for _, o := range options {
		o(&n)
	}
	l.t.nodes = append(l.t.nodes, n)
}

// timeOf is a path's own time, in the years 2001 to 2031.
func timeOf(layer int, p string) unix.Timespec {
	h := fnv.New64a()
	_, _ = h.Write(append([]byte{byte(layer)}, p...))
	sum := h.Sum64()
	return unix.Timespec{Sec: 981173106 + int64(sum>>34), Nsec: int64(sum % 1e9)}
}

func (l on) dir(p string, options ...option) {
	l.add(node{path: p, typ: unix.S_IFDIR, mode: 0o755}, options)
}

func (l on) file(p, content string, options ...option) {
	l.sparse(p, int64(len(content)), []extent{{0, content}}, options...)
}

func (l on) sparse(p string, size int64, data []extent, options ...option) {
	l.add(node{path: p, typ: unix.S_IFREG, mode: 0o644, size: size, data: data}, options)
}

func (l on) symlink(p, target string, options ...option) {
	l.add(node{path: p, typ: unix.S_IFLNK, mode: 0o777, target: target}, options)
}

func (l on) device(p string, typ, major, minor uint32, options ...option) {
	l.add(node{path: p, typ: typ, mode: 0o644, rdev: unix.Mkdev(major, minor)}, options)
}

func (l on) fifo(p string, options ...option) {
	l.add(node{path: p, typ: unix.S_IFIFO, mode: 0o644}, options)
}

func (l on) socket(p string, options ...option) {
	l.add(node{path: p, typ: unix.S_IFSOCK, mode: 0o755}, options)
}

// whiteout is overlay's mark of a deleted name.
func (l on) whiteout(p string, options ...option) { l.device(p, unix.S_IFCHR, 0, 0, options...) }

// link is a hard link to another path of the layer.
func (l on) link(p, target string) { l.linkFrom(p, l.layer, target) }

// linkFrom is a hard link to a path of any layer.
func (l on) linkFrom(p string, layer int, target string) {
	l.add(node{path: p, target: target, source: layer}, nil)
}

// sorted gives a map in the order of its keys, so that all is written in the
// same order in every run.
func sorted(m map[string]string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
