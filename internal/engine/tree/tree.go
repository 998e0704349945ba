// Package tree writes the merged view of a chain of layers as a directory
// tree with shifted owners. What goes into regular files is the business of
// the engine that uses it.
//
// Creating an inode and then giving it away costs two transactions of the
// file system; a thread that works as the new owner (setfsuid(2)) needs one.
// Directories belong to root and are open to everybody while they are filled,
// in a folder that nobody else can reach, and get their owner, mode,
// attributes and times when their last child exists.
//
// A tree that was written for one mapping becomes that for another for a third
// of the cost (Recycle): only owners, and what is lost with them or holds IDs,
// are written.
package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Fill gives the new regular file fd its content. It runs as the new owner; the
// file's mode, attributes and times are set afterwards.
type Fill struct {
	// File is called for each new file, which is empty then.
	File func(f File, fd int) error
	// Crowded, if set, is called after File if the file system has no room for
	// the attributes that File sets beside the file's own: it is to take those
	// away and do without them.
	Crowded func(f File, fd int) error
}

// File is a regular file of the image, for a Fill.
type File struct {
	*idshift.Entry
	d *dir
}

// Open opens the image's file for reading, as root: the layers need not be
// readable by the new owner. The caller owns the descriptor.
func (f File) Open() (int, error) {
	if err := f.d.workAs(0, 0); err != nil {
		return -1, err
	}
	return f.d.src.Open(f.Entry)
}

// Path is the file's path below the root of the image.
func (f File) Path() string {
	if f.d.path == "" {
		f.d.path = f.d.src.Path()
	}
	return path.Join(f.d.path, f.Name)
}

// Set sets an attribute of the new file fd, Unset takes it away if it is there.
func (f File) Set(fd int, name string, value []byte) error {
	if err := f.d.workOn(f.Entry); err != nil {
		return err
	}
	return linux.Fset(fd, f.Name, name, value)
}

// Unset is described with Set.
func (f File) Unset(fd int, name string) error {
	if err := f.d.workOn(f.Entry); err != nil {
		return err
	}
	if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
		return &os.PathError{Op: "removexattr " + name, Path: f.Name, Err: err}
	}
	return nil
}

// Build writes the tree to root, a folder that does not exist yet. links is
// the name of a temporary folder on the same file system, which Build makes
// and removes. Both must be in a folder that only root can enter.
func Build(ctx context.Context, root, links string, job engine.Job, fill Fill) error {
	return build(ctx, root, links, job, fill, false)
}

// Resume is Build where a process died that was at the same Build, in this boot:
// what is complete stays. The layers of the chain must be the same inodes,
// unchanged. Nobody else may be at work there.
func Resume(ctx context.Context, root, links string, job engine.Job, fill Fill) error {
	return build(ctx, root, links, job, fill, true)
}

func build(ctx context.Context, root, links string, job engine.Job, fill Fill, again bool) (err error) {
	ended := false
	for _, p := range []string{links, root} {
		err := os.Mkdir(p, 0o700)
		if again && errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("make folder of the shifted tree: %w", err)
		}
		if _, err := os.Lstat(root); again && p == links && err == nil {
			ended = true // the folder of links goes when all is there
		}
	}
	failpoint.Hit("tree-folders")
	defer func() {
		failpoint.Hit("tree-written")
		if err == nil { // else it goes with all the rest; until then, names need it
			err = os.RemoveAll(links)
		}
	}()
	// By descriptor: the walk's threads have current directories of their own.
	rfd, err := linux.OpenDir(unix.AT_FDCWD, root)
	if err != nil {
		return err
	}
	defer linux.Close(rfd)
	lfd, err := linux.OpenDir(unix.AT_FDCWD, links)
	if err != nil {
		return err
	}
	defer linux.Close(lfd)
	w := &writer{rootFD: rfd, shift: job.Shift, fill: fill, rootless: job.Rootless, again: again, ended: ended, linksFD: lfd, links: make(map[idshift.LinkKey]*link)}
	return job.Walk(ctx, w)
}

// tempMode lets a thread that works as somebody else fill a directory.
const tempMode = 0o777

// writer is the sink of the walk.
type writer struct {
	rootFD   int
	shift    *idshift.Shift
	fill     Fill
	rootless bool
	again    bool // there may be something already
	ended    bool // there must be everything
	linksFD  int

	mu    sync.Mutex
	links map[idshift.LinkKey]*link
}

// link is an inode that may have several names. Each is kept under its number
// in the folder of links until the tree is complete, so that making another
// name needs neither an open file nor a path of any length.
type link struct {
	name string // in the folder of links
	mu   sync.Mutex
	made bool
}

// link returns what is kept of an inode with several links. Its name is given
// when the inode is seen for the first time: whichever thread makes the inode
// then, no other inode has that name.
func (w *writer) link(key idshift.LinkKey) *link {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[key]
	if l == nil {
		l = &link{name: linkName(key)}
		w.links[key] = l
	}
	return l
}

// dir is the state of one directory that is being filled.
type dir struct {
	*writer
	src  *idshift.Dir
	path string // of src; "" until it is asked for
	fd   int
	as   [2]uint32 // whom the thread works as
}

// Directory implements idshift.Sink.
func (w *writer) Directory(ctx context.Context, src *idshift.Dir) (err error) {
	d := &dir{writer: w, src: src}
	if parent := src.Parent(); parent == nil {
		d.fd, err = linux.OpenDir(w.rootFD, ".")
	} else {
		d.fd, err = linux.OpenDir(parent.State.(int), src.Self.Name)
	}
	if err != nil {
		return fmt.Errorf("shift %s: %w", src.Path(), err)
	}
	src.State = d.fd
	var keep map[string]bool
	if w.again {
		var done bool
		if done, keep, err = d.resume(); done || err != nil {
			return at(src, nil, err)
		}
		if w.ended {
			return at(src, nil, fmt.Errorf("%w: hard links cannot be told any more", ErrChanged))
		}
	}
	if src.Parent() == nil || w.again { // it may have got its own mode before
		if err := linux.Fchmod(d.fd, src.Self.Name, tempMode); err != nil {
			return at(src, nil, err)
		}
	}
	for i := range src.Entries {
		if i%512 == 0 && ctx.Err() != nil {
			return errors.Join(ctx.Err(), d.workAs(0, 0))
		}
		e := &src.Entries[i]
		if leftOut(w.rootless, e) || keep[e.Name] {
			continue
		}
		if err := d.entry(e); err != nil {
			return errors.Join(at(src, e, err), d.workAs(0, 0))
		}
	}
	if err := d.workAs(0, 0); err != nil {
		return err
	}
	failpoint.Hit("tree-folder-filled")
	if err := d.finish(); err != nil {
		return at(src, nil, err)
	}
	return nil
}

// leftOut tells whether the tree does without an entry: a device, which nobody
// can make who is root of a user namespace only. The storage library leaves
// them out there, too, when it unpacks a layer.
func leftOut(rootless bool, e *idshift.Entry) bool {
	t := e.Stat.Mode & unix.S_IFMT
	return rootless && (t == unix.S_IFCHR || t == unix.S_IFBLK)
}

// Release implements idshift.Sink.
func (w *writer) Release(src *idshift.Dir) { closeState(src) }

// closeState closes the descriptor that a sink keeps with a directory.
func closeState(src *idshift.Dir) {
	if fd, ok := src.State.(int); ok {
		_ = linux.Close(fd)
	}
}

// at says for which path an error is; e is nil for the directory itself.
func at(src *idshift.Dir, e *idshift.Entry, err error) error {
	if err == nil {
		return nil
	}
	p := src.Path()
	if e != nil {
		p = path.Join(p, e.Name)
	}
	return fmt.Errorf("shift image: %w", idshift.AtPath(err, p))
}

// workAs changes whom the thread creates files as.
func (d *dir) workAs(uid, gid uint32) error {
	want := [2]uint32{uid, gid}
	if d.as == want {
		return nil
	}
	if err := linux.SetFSOwner(uid, gid); err != nil {
		return err
	}
	d.as = want
	return nil
}

// workOn makes the thread one that may set attributes of a regular file that
// it has made as the file's owner.
func (d *dir) workOn(e *idshift.Entry) error {
	if e.Stat.Mode&unix.S_IWUSR == 0 {
		return d.workAs(0, 0) // attributes user.* want the right to write (xattr(7))
	}
	return nil
}

// entry makes one child.
func (d *dir) entry(e *idshift.Entry) error {
	if e.IsDir() {
		return linux.Mkdirat(d.fd, e.Name, tempMode)
	}
	key, shared := e.Link()
	if !shared {
		return d.create(e)
	}
	l := d.link(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.again && !l.made {
		var err error
		if l.made, err = d.made(e, l); err != nil {
			return err
		}
	}
	if l.made {
		// As root: others may not link to setuid files they do not own
		// (proc_sys_fs(5), protected_hardlinks).
		if err := d.workAs(0, 0); err != nil {
			return err
		}
		return linux.Linkat(d.linksFD, l.name, d.fd, e.Name)
	}
	if err := d.create(e); err != nil {
		return err
	}
	if err := d.workAs(0, 0); err != nil {
		return err
	}
	if err := linux.Linkat(d.fd, e.Name, d.linksFD, l.name); err != nil {
		return err
	}
	l.made = true
	return nil
}

// create makes a child that is not a directory.
func (d *dir) create(e *idshift.Entry) error {
	uid, gid, err := d.shift.Owner(e.Stat.Uid, e.Stat.Gid)
	if err != nil {
		return err
	}
	switch e.Stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return d.regular(e, uid, gid)
	case unix.S_IFLNK:
		if err := d.workAs(uid, gid); err != nil {
			return err
		}
		if err := linux.Symlinkat(e.Target, d.fd, e.Name); err != nil {
			return err
		}
		return d.special(e)
	default:
		return d.node(e, uid, gid)
	}
}

// setID are the mode bits that writing, giving away and setting attributes
// may clear.
const setID = unix.S_ISUID | unix.S_ISGID

// regular makes a regular file.
func (d *dir) regular(e *idshift.Entry, uid, gid uint32) (err error) {
	if err := d.workAs(uid, gid); err != nil {
		return err
	}
	mode := e.Stat.Mode & 0o7777
	fd, err := linux.Openat(d.fd, e.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, linux.Close(fd)) }()
	f := File{Entry: e, d: d}
	if err = d.fill.File(f, fd); err == nil {
		err = d.attributes(e, fd, uid, gid)
	}
	if errors.Is(err, unix.ENOSPC) && d.fill.Crowded != nil {
		err = d.crowded(f, fd, uid, gid)
	}
	if err != nil {
		return err
	}
	if mode&setID != 0 {
		if err := linux.Fchmod(fd, e.Name, mode); err != nil {
			return err
		}
	}
	return linux.Futimes(fd, e.Name, e.Stat.Atim, e.Stat.Mtim)
}

// attributes sets the attributes of a regular file of the owner uid:gid.
func (d *dir) attributes(e *idshift.Entry, fd int, uid, gid uint32) error {
	if err := d.workAs(uid, gid); err != nil {
		return err
	}
	if len(e.Xattrs) > 0 {
		if err := d.workOn(e); err != nil {
			return err
		}
	}
	return d.xattrs(e, func(name string, value []byte) error {
		return linux.Fset(fd, e.Name, name, value)
	})
}

// crowded does what is left to do when attributes has found no room for all of
// them: once more, without those that Fill has set.
func (d *dir) crowded(f File, fd int, uid, gid uint32) error {
	// Where each of them has its place depends on the order in which they come.
	for _, x := range f.Xattrs {
		if err := f.Unset(fd, x.Name); err != nil {
			return err
		}
	}
	if err := d.workAs(uid, gid); err != nil {
		return err
	}
	if err := d.fill.Crowded(f, fd); err != nil {
		return err
	}
	return d.attributes(f.Entry, fd, uid, gid)
}

// node makes a device, fifo or socket. Devices need CAP_MKNOD, so it is done
// as root.
func (d *dir) node(e *idshift.Entry, uid, gid uint32) error {
	if err := d.workAs(0, 0); err != nil {
		return err
	}
	if err := linux.Mknodat(d.fd, e.Name, e.Stat.Mode, e.Stat.Rdev); err != nil {
		return err
	}
	if err := linux.Lchownat(d.fd, e.Name, uid, gid); err != nil {
		return err
	}
	if e.Stat.Mode&setID != 0 {
		if err := linux.Fchmodat(d.fd, e.Name, e.Stat.Mode&0o7777); err != nil {
			return err
		}
	}
	return d.special(e)
}

// pathBelow is a path of a name in an open directory, for what is only done by
// path: there is no setxattrat(2) before Linux 6.13.
func pathBelow(dir int, name string) string { return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name }

// special sets attributes and times of what cannot be opened.
func (d *dir) special(e *idshift.Entry) error {
	err := d.xattrs(e, func(name string, value []byte) error {
		return linux.Lset(pathBelow(d.fd, e.Name), name, value)
	})
	if err != nil {
		return err
	}
	return linux.Lutimesat(d.fd, e.Name, e.Stat.Atim, e.Stat.Mtim)
}

// xattrs sets the shifted attributes of an entry.
func (d *dir) xattrs(e *idshift.Entry, set func(name string, value []byte) error) error {
	for _, x := range e.Xattrs {
		value, keep, err := d.shift.Xattr(x.Name, x.Value)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		if err := set(x.Name, value); err != nil {
			return err
		}
	}
	return nil
}

// finish gives a filled directory its owner, attributes, mode and times.
func (d *dir) finish() error {
	e, name := &d.src.Self, d.src.Self.Name
	uid, gid, err := d.shift.Owner(e.Stat.Uid, e.Stat.Gid)
	if err != nil {
		return err
	}
	if err := linux.Fchown(d.fd, name, uid, gid); err != nil {
		return err
	}
	if err := d.xattrs(e, func(x string, value []byte) error {
		return linux.Fset(d.fd, name, x, value)
	}); err != nil {
		return err
	}
	if err := linux.Fchmod(d.fd, name, e.Stat.Mode&0o7777); err != nil {
		return err
	}
	return linux.Futimes(d.fd, name, e.Stat.Atim, e.Stat.Mtim)
}
