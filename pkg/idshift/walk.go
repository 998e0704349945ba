package idshift

import (
	"context"
	"fmt"
	"path"
	"runtime"

	"golang.org/x/sys/unix"
)

// Xattr is one extended attribute of an Entry, as listxattr(2) and
// getxattr(2) give it.
type Xattr struct {
	Name  string
	Value []byte
}

// Entry is one name of the merged view of a chain.
type Entry struct {
	// Name is the last component, "" for the root of the chain.
	Name string
	// Stat is what lstat(2) says of the uppermost layer's inode.
	Stat unix.Stat_t
	// Layer is the index, in the chain given to Walk, of the layer that the
	// name comes from; 0 is the uppermost.
	Layer int
	// Target is the target of a symbolic link.
	Target string
	// Xattrs are the inode's extended attributes without overlay's own, in
	// the order of the file system.
	Xattrs []Xattr

	opaque bool // a directory that hides what lower layers have of it
}

// IsDir tells whether the entry is a directory.
func (e *Entry) IsDir() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// LinkKey identifies an inode of a chain: names with the same key are hard
// links of each other. The layer is a part of it, since deduplicated layers
// may share inodes that the merged view must keep apart.
type LinkKey struct {
	Layer    int
	Dev, Ino uint64
}

// Link returns the entry's key and whether the inode may have other names.
func (e *Entry) Link() (LinkKey, bool) {
	return LinkKey{Layer: e.Layer, Dev: e.Stat.Dev, Ino: e.Stat.Ino}, e.Stat.Nlink > 1 && !e.IsDir()
}

// Dir is a merged directory: the unit of work of a Walk.
type Dir struct {
	// Self is the directory's own entry.
	Self Entry
	// Entries is every child that the merged view shows, sorted by name. It
	// belongs to the sink for the duration of Sink.Directory.
	Entries []Entry
	// State is the sink's own: what it stores here it finds again through
	// the Parent of the children.
	State any

	parent  *Dir
	sources []source // open directories of this merged directory
	refs    refcount
	given   bool // to the sink, which is to hear of its release
}

// Parent returns the directory above, nil for the root.
func (d *Dir) Parent() *Dir { return d.parent }

// Path returns the path from the root of the chain, without a leading slash;
// "." for the root.
func (d *Dir) Path() string {
	if d.parent == nil {
		return "."
	}
	if d.parent.parent == nil {
		return d.Self.Name
	}
	return d.parent.Path() + "/" + d.Self.Name
}

// Open opens the source of one of the directory's entries for reading. The
// caller owns the descriptor. It may be called only while Sink.Directory runs
// for d.
func (d *Dir) Open(e *Entry) (int, error) {
	for _, s := range d.sources {
		if s.layer == e.Layer {
			return openSource(s.fd, e.Name, path.Join(d.Path(), e.Name))
		}
	}
	return -1, fmt.Errorf("open %s: layer %d has no such directory", path.Join(d.Path(), e.Name), e.Layer)
}

// Sink receives the merged directories of a Walk.
type Sink interface {
	// Directory is called once for every merged directory, after its
	// parent's call has returned; calls for other directories run at the same
	// time on other threads. Each call runs on a locked operating system
	// thread that is the walk's own and has umask 0; a sink that changes the
	// thread's file system user ID must set it back before it returns. An
	// error ends the walk.
	Directory(ctx context.Context, d *Dir) error
	// Release is called once for every directory that Directory was called
	// for, when no child will look at its State any more, also when the walk
	// fails.
	Release(d *Dir)
}

// Namespace says which extended attributes overlay uses on the layers of a
// chain (overlayfs.rst, mount option userxattr).
type Namespace string

// The two namespaces. Only the chosen one is interpreted; names of the other
// are ordinary attributes.
const (
	TrustedOverlay Namespace = "trusted.overlay."
	UserOverlay    Namespace = "user.overlay."
)

// Attribute returns the full name of one of overlay's attributes, such as
// "opaque". The empty Namespace is TrustedOverlay.
func (n Namespace) Attribute(name string) string {
	if n == "" {
		n = TrustedOverlay
	}
	return string(n) + name
}

// WalkOptions are the settings of a Walk. The zero value is usable.
type WalkOptions struct {
	// Workers is the number of threads; 0 stands for one per processor.
	Workers int
	// Namespace is TrustedOverlay if empty.
	Namespace Namespace
	// Done, if set, is called with the number of entries of each directory that the
	// sink is done with, by several threads at the same time. While it waits, so
	// does its thread.
	Done func(entries int)
}

// LayerError says that a layer holds something that has no meaning in a
// merged view of whole layers, such as a redirect or a file whose data is
// elsewhere.
type LayerError struct {
	Layer string // the layer's folder
	Path  string // below the layer
	Xattr string // the extended attribute that says so
}

// Error implements error.
func (e *LayerError) Error() string {
	return fmt.Sprintf("layer %s: %s carries %s: redirected and metadata-only files inside an image layer cannot be shifted", e.Layer, e.Path, e.Xattr)
}

// Walk reads a chain of layer folders, uppermost first, as the one tree that
// overlay would show, and hands it to sink directory by directory: whiteouts
// (character device 0/0; an empty file with overlay's "whiteout" attribute)
// and what they hide are left out, directories are merged down to the first
// opaque one, and everything else is shown as the uppermost layer has it
// (Documentation/filesystems/overlayfs.rst, sections "Merging", "Whiteouts and
// opaque directories", "Redirecting directories").
//
// The layers are read by file descriptor, no symbolic link is followed below
// their roots, and the number of open descriptors grows with the depth, not
// the size of the tree. What cannot be read is an error with its path, never
// left out. A directory redirect or a metadata-only file inside a layer is a
// *LayerError. Walk returns when all its threads have ended; a cancelled ctx
// ends it with context.Cause(ctx).
func Walk(ctx context.Context, chain []string, o WalkOptions, sink Sink) error {
	if len(chain) == 0 {
		return fmt.Errorf("walk: empty chain of layers")
	}
	if o.Workers <= 0 {
		o.Workers = runtime.NumCPU()
	}
	if o.Namespace == "" {
		o.Namespace = TrustedOverlay
	}
	w := newWalker(ctx, chain, o, sink)
	return w.run()
}
