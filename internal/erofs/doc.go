// Package erofs writes EROFS images that hold the metadata of a chain of
// layers and no data. Overlay takes such an image as a lower and finds the
// data of its regular files in the layers, which it reads from the attributes
// trusted.overlay.metacopy and trusted.overlay.redirect (overlayfs.rst,
// sections "Metadata only copy up" and "Data-only lower layers").
//
// Build makes an image with the owners that the layers have, the template:
//
//	info, err := erofs.Build(ctx, f, chain, erofs.Options{Layout: erofs.DataOnly})
//
// A template can be mounted as it is, and Patch makes of it, in one pass over
// its bytes, the image of the same tree with the owners of a mapping. The two
// have the same inode numbers and the same UUID, so that what overlay notes
// of one is true of the other.
//
// # What an image looks like
//
// The format is that of fs/erofs/erofs_fs.h, blocks of 4 KiB, with nothing
// that Linux 5.4 does not know in the layout Opaque. Each inode has the
// extended form, which alone has 32-bit owners and times of its own. A
// directory's inode is followed by those of its files, then come its
// subdirectories in the same way, so that what is looked at together lies
// together; behind all inodes come the shared attributes, then directory
// blocks that are full, and targets of symbolic links that fit nowhere else.
// The same tree gives the same bytes, whatever the order in which it was
// read.
//
// The first 1024 bytes, which EROFS leaves free, hold a header of this
// package, and a template has a table behind its last block: where the owners
// are, the ACLs and the file capabilities. To leave room for their root user,
// file capabilities are written as version 3 with root user 0, which the
// kernel shows as version 2 (cap_inode_getsecurity in security/commoncap.c).
//
// # When not to use it
//
//   - An image is for reading metadata through overlay: the data of its files
//     is a hole, or in the layout Opaque an arbitrary part of the image.
//   - What EROFS or overlay cannot represent is an *UnfitError. There is no
//     way around it but another engine.
package erofs

import (
	"errors"
	"fmt"
)

// Layout says how overlay finds the data of the regular files of an image. In
// each of them a file with data has a redirect to its path in the layers.
type Layout int

const (
	// DataOnly is for an image above data-only lowers (Linux 6.5). Files are
	// holes in chunks (Linux 5.15), and inodes have filters of attribute names
	// (used since Linux 6.6). A redirect has at most 4095 bytes
	// (vfs_path_lookup in fs/namei.c); a longer path is an *UnfitError.
	DataOnly Layout = iota
	// Opaque is for an image above ordinary lowers, mounted with the options
	// metacopy=on and redirect_dir=on. Folders are opaque, all but the root,
	// for which overlay has no such thing: a folder is read from the image
	// alone. It works with every kernel that has EROFS and metacopy.
	Opaque
)

// String is the layout's name in messages.
func (l Layout) String() string {
	switch l {
	case DataOnly:
		return "data-only"
	case Opaque:
		return "opaque"
	default:
		return fmt.Sprintf("Layout(%d)", int(l))
	}
}

// redirectMax is the length of the longest redirect.
func (l Layout) redirectMax() int {
	if l == DataOnly {
		return redirectDataMax
	}
	return xattrValueMax
}

// Options are the settings of Build. The zero value is usable.
type Options struct {
	// Layout says how overlay is to find the data.
	Layout Layout
	// Workers is the number of threads that read the layers; 0 stands for one
	// per processor. It does not change the result.
	Workers int
	// Done, if set, is told how many more files and folders were read, by several
	// threads at the same time.
	Done func(entries int)
}

// Info is what is to be known of an image.
type Info struct {
	// Layout is how overlay finds the data.
	Layout Layout
	// ACL tells whether an inode of the image has a POSIX ACL.
	ACL bool
	// Patched tells that Patch made the image, which is no template then.
	Patched bool
	// Inodes is the number of inodes; hard links are one.
	Inodes int64
	// Size is the length of the file system in bytes, a multiple of 4096. A
	// template's file is longer by its table.
	Size int64
	// UUID is the file system's, made from its content before any patch.
	UUID [16]byte
}

// UnfitError says that a path of the image cannot be represented, either in
// EROFS or for overlay.
type UnfitError struct {
	Path   string // relative to the root of the chain
	Reason string
	// LongPath tells that the path is longer than a redirect can be, which is
	// different in each layout.
	LongPath bool
}

// Error implements error.
func (e *UnfitError) Error() string {
	return fmt.Sprintf("%q does not fit into an EROFS image: %s", e.Path, e.Reason)
}

// ErrDamaged means that a file is not, or not any more, an image that Build
// has written.
var ErrDamaged = errors.New("damaged EROFS image")

// damaged returns an error that is ErrDamaged and says what is wrong.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}
