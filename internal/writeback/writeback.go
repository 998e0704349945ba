// Package writeback computes what a container changed, from the container's
// upper alone: cost follows the change, not the size of the image. It
// understands all that overlay writes there (overlayfs.rst): whiteouts in both
// forms, opaque directories, renamed directories (redirect), metadata-only
// files with and without redirect, and translates host IDs back to container
// IDs, in owners, POSIX ACLs and file capabilities.
//
// The layers below are looked at only where the upper refers to them: whether
// a name existed, what a renamed directory holds, where the data of a
// metadata-only file is.
package writeback

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Layer is a layer and what is below it.
type Layer struct {
	// Upper is the folder that the container wrote to.
	Upper string
	// Lowers are the folders below, uppermost first.
	Lowers []string
	// Shift translates from host IDs to container IDs what is in Upper; nil if
	// Upper holds container IDs. Lowers always hold container IDs.
	Shift *idshift.Shift
	// Overlay says which attributes are overlay's; empty for
	// idshift.TrustedOverlay.
	Overlay idshift.Namespace
	// Whole says that everything is wanted that the merged view shows, not
	// only what differs from the layers below.
	Whole bool
}

// Change is what a layer changed.
type Change struct {
	Layer
	// Against is the layer to compare with; nil stands for what is directly
	// below, for which the upper alone tells.
	Against *Layer
}

// Scan is Scan or Compare, whichever the change needs.
func (c Change) Scan(ctx context.Context, yield func(*Item) error) error {
	if c.Against != nil {
		return Compare(ctx, c.Layer, *c.Against, yield)
	}
	return Scan(ctx, c.Layer, yield)
}

// Kind is what happened to a path.
type Kind int

// The kinds of change.
const (
	Modified Kind = iota // existed below, as the same or another type
	Added                // did not exist below
	Deleted              // exists below only
	Emptied              // a directory hides all that the same one below holds
)

// Item is one changed path.
type Item struct {
	Kind Kind
	// Path is relative to the root, without a leading slash; "." is the root.
	Path string
	// Entry is the inode with container IDs; zero for Deleted and Emptied.
	Entry idshift.Entry
	// LinkTo is the path of an earlier item that is the same inode.
	LinkTo string
	// Gone are the names that the directory of an Emptied item has below and
	// no more.
	Gone []string
	// Implied tells of an Emptied item that one of a directory above says so
	// already.
	Implied bool
	// InheritsACL tells whether the directory above has a default ACL, of which
	// whoever makes the path there gives it a copy.
	InheritsACL bool
	// InUpper tells whether the upper holds the inode; a renamed directory
	// has children that it does not.
	InUpper bool
	// MetadataOnly tells whether the upper holds the inode without its data.
	MetadataOnly bool

	open func() (int, error)
}

// Open opens the data of a regular file. It may be called only during the call
// that the item was given to. The caller owns the descriptor.
func (i *Item) Open() (int, error) { return i.open() }

// IsRegular tells whether the item is a regular file with content of its own.
func (i *Item) IsRegular() bool {
	return i.Kind <= Added && i.LinkTo == "" && i.Entry.Stat.Mode&unix.S_IFMT == unix.S_IFREG
}

// Scan calls yield with each changed path, a directory before what is in it,
// names sorted. The root is among them only if it differs from the one below.
// Sockets are left out, as everywhere in this field. An ID that the mapping
// does not know is an *idshift.UnmappedError with its path; what cannot be
// read, or data that no layer holds, is an error as well. An error of yield
// ends the scan.
func Scan(ctx context.Context, l Layer, yield func(*Item) error) error {
	return scanSome(ctx, l, nil, yield)
}

// scanSome is Scan for the paths that want accepts.
func scanSome(ctx context.Context, l Layer, want func(p string) bool, yield func(*Item) error) error {
	s := &scan{ctx: ctx, layer: l, yield: yield, want: want, seen: make(map[inode]string)}
	return s.run()
}
