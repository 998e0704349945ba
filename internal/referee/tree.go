package referee

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
	"golang.org/x/sys/unix"
)

// RootPath is the path of the root in a Tree and in a Difference.
const RootPath = "."

// Options say what is read and how it is compared. The zero value compares
// all metadata, with link counts as stat(2) gives them.
type Options struct {
	// Content hashes regular files. Holes and blocks of zeros are the same
	// content. It must be set for the Scan of both trees and for Compare.
	Content bool
	// MergedNlink counts the names that an inode has in the tree instead of
	// trusting st_nlink. An overlay whose upper layer replaces one name of a
	// lower inode keeps reporting the old count.
	MergedNlink bool
	// OverlayXattrs reads trusted.overlay.* and user.overlay.*, too. An
	// overlay mount hides its own and shows only those that the image itself
	// carries (overlayfs.rst, section Nesting overlayfs mounts), so that they
	// count there; in the folder of a layer they are overlay's own.
	OverlayXattrs bool
	// Workers bounds the directories that are read at the same time; 0
	// stands for the number of processors in use.
	Workers int
}

// Xattr is one extended attribute as getxattr(2) gives it.
type Xattr struct {
	Name  string
	Value []byte
}

// Node is what was read of one path. A Node of a Tree must not be changed.
type Node struct {
	Path    string // relative to the root, any bytes; RootPath for the root
	Mode    uint32 // st_mode, type included
	UID     uint32 // as the reading process sees it
	GID     uint32
	Size    int64 // bytes
	Mtime   unix.Timespec
	Rdev    uint64 // of character and block devices
	Nlink   uint64 // st_nlink
	Target  string // of a symbolic link
	Xattrs  []Xattr
	Digest  [sha256.Size]byte // of a regular file, when read with Options.Content
	Unknown bool              // the content was not read

	dev, ino uint64
	links    []string // all paths of the inode, sorted; nil for a single one
}

// Links returns every path of the tree that is a hard link of the node's
// inode, the node's own included, sorted. It is nil for a directory. The
// slice must not be changed.
func (n *Node) Links() []string {
	if n.IsDir() {
		return nil
	}
	if n.links == nil {
		return []string{n.Path}
	}
	return n.links
}

// IsDir reports whether the node is a directory.
func (n *Node) IsDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

// Tree is a directory tree in memory. It does not change once it is made and
// is safe for concurrent use.
type Tree struct {
	root  string
	nodes []Node // sorted by path
}

// NewTree makes a tree of nodes that were not read from disk. Nodes with the
// same inode number in inodes, a map from path to any number, are hard links
// of each other; paths that it does not have are single. Two nodes of one
// path are an error.
func NewTree(root string, nodes []Node, inodes map[string]uint64) (*Tree, error) {
	t := &Tree{root: root, nodes: slices.Clone(nodes)}
	for i := range t.nodes {
		n := &t.nodes[i]
		ino, ok := inodes[n.Path]
		if !ok {
			n.dev, n.ino = 1, uint64(i)
			continue
		}
		n.dev, n.ino = 0, ino
	}
	if err := t.finish(); err != nil {
		return nil, err
	}
	return t, nil
}

// Root is the folder that the tree was read from.
func (t *Tree) Root() string { return t.root }

// Len is the number of paths, the root included.
func (t *Tree) Len() int { return len(t.nodes) }

// Lookup finds a path, relative to the root.
func (t *Tree) Lookup(path string) (*Node, bool) {
	i, ok := slices.BinarySearchFunc(t.nodes, path, func(n Node, p string) int { return cmp.Compare(n.Path, p) })
	if !ok {
		return nil, false
	}
	return &t.nodes[i], true
}

// finish sorts the nodes and finds the groups of hard links.
func (t *Tree) finish() error {
	slices.SortFunc(t.nodes, func(a, b Node) int { return cmp.Compare(a.Path, b.Path) })
	type inode struct{ dev, ino uint64 }
	groups := map[inode][]int{}
	for i := range t.nodes {
		n := &t.nodes[i]
		if i > 0 && t.nodes[i-1].Path == n.Path {
			return fmt.Errorf("read tree %s: path %q appears twice", t.root, n.Path)
		}
		if n.IsDir() {
			continue
		}
		k := inode{n.dev, n.ino}
		groups[k] = append(groups[k], i)
	}
	for _, members := range groups {
		if len(members) < 2 {
			continue
		}
		paths := make([]string, len(members))
		for j, i := range members {
			paths[j] = t.nodes[i].Path
		}
		for _, i := range members {
			t.nodes[i].links = paths
		}
	}
	return nil
}

// Shift returns the tree as it must look under the mapping of s: owners and
// the ids inside POSIX ACLs and file capabilities mapped, everything else
// kept. The tree itself stays as it is. An id that s refuses is an error that
// names the path.
func (t *Tree) Shift(s *idshift.Shift) (*Tree, error) {
	out := &Tree{root: t.root, nodes: slices.Clone(t.nodes)}
	for i := range out.nodes {
		n := &out.nodes[i]
		var err error
		if n.UID, n.GID, err = s.Owner(n.UID, n.GID); err != nil {
			return nil, fmt.Errorf("shift owner of %q: %w", n.Path, err)
		}
		xattrs := make([]Xattr, 0, len(n.Xattrs))
		for _, x := range n.Xattrs {
			if isOverlayXattr(x.Name) { // only there when asked for: the image's own
				xattrs = append(xattrs, x)
				continue
			}
			value, keep, err := s.Xattr(x.Name, x.Value)
			if err != nil {
				return nil, fmt.Errorf("shift attribute %s of %q: %w", x.Name, n.Path, err)
			}
			if keep {
				xattrs = append(xattrs, Xattr{Name: x.Name, Value: value})
			}
		}
		n.Xattrs = xattrs
	}
	return out, nil
}
