package tree

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// ErrChanged is the error of Recycle and Resume for a tree that is not as Build
// leaves one of the same chain.
var ErrChanged = errors.New("not as it was built")

// Recycle turns the tree in root, which Build or Recycle made of the same chain
// for any mapping, into what Build makes for job. IDs are taken from the chain,
// as Build takes them, never from the tree. Names, types, sizes, modes and the
// groups of hard links are compared with the chain on the way; a difference is
// an ErrChanged. File contents and attributes that hold no IDs are taken for
// granted. After an error the tree is worth nothing. Nobody may have it mounted
// or open.
func Recycle(ctx context.Context, root string, job engine.Job) error {
	fd, err := linux.OpenDir(unix.AT_FDCWD, root)
	if err != nil {
		return err
	}
	defer linux.Close(fd)
	r := &recycler{rootFD: fd, shift: job.Shift, rootless: job.Rootless, inodes: make(map[idshift.LinkKey]*inode)}
	if err := job.Walk(ctx, r); err != nil {
		return err
	}
	return r.complete()
}

// recycler is the sink of the walk.
type recycler struct {
	rootFD   int
	shift    *idshift.Shift
	rootless bool

	mu     sync.Mutex
	inodes map[idshift.LinkKey]*inode
}

// inode is what was seen in the tree of an inode that may have several names.
type inode struct {
	ino          uint64
	names, links int
}

// seen notes a name of an inode and tells whether it is the first, whose
// finder changes the inode.
func (r *recycler) seen(key idshift.LinkKey, st *unix.Stat_t) (first bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.inodes[key]
	if i == nil {
		i = &inode{ino: st.Ino, links: int(st.Nlink)} //nolint:gosec // a small number
		r.inodes[key] = i
	}
	if i.ino != st.Ino {
		return false, fmt.Errorf("%w: it is no hard link any more", ErrChanged)
	}
	i.names++
	return i.names == 1, nil
}

// complete looks, when the walk has ended, whether each inode has no names but
// those that it should have.
func (r *recycler) complete() error {
	for _, i := range r.inodes {
		if i.names != i.links {
			return fmt.Errorf("recycle shifted tree: inode %d: %w: %d links, not %d", i.ino, ErrChanged, i.links, i.names)
		}
	}
	return nil
}

// Directory implements idshift.Sink.
func (r *recycler) Directory(ctx context.Context, src *idshift.Dir) (err error) {
	d := &oldDir{recycler: r, src: src}
	if parent := src.Parent(); parent == nil {
		d.fd, err = linux.OpenDir(r.rootFD, ".")
	} else {
		d.fd, err = linux.OpenDir(parent.State.(int), src.Self.Name)
	}
	if err != nil {
		return fmt.Errorf("recycle %s: %w", src.Path(), err)
	}
	src.State = d.fd
	if err := d.self(); err != nil {
		return at(src, nil, err)
	}
	failpoint.Hit("recycle-folder")
	for i := range src.Entries {
		if i%512 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		e := &src.Entries[i]
		if e.IsDir() || leftOut(r.rootless, e) {
			continue // directories are looked at when they are opened
		}
		if err := d.entry(e); err != nil {
			return at(src, e, err)
		}
	}
	return nil
}

// Release implements idshift.Sink.
func (r *recycler) Release(src *idshift.Dir) { closeState(src) }

// oldDir is one directory of the tree.
type oldDir struct {
	*recycler
	src *idshift.Dir
	fd  int
}

// self changes the directory itself. Giving a directory away clears none of
// its mode bits.
func (d *oldDir) self() error {
	e := &d.src.Self
	var st unix.Stat_t
	if err := linux.Fstat(d.fd, e.Name, &st); err != nil {
		return err
	}
	if err := unchanged(e, &st); err != nil {
		return err
	}
	if st.Mtim != e.Stat.Mtim { // it is not that of Build: names came or went
		if err := d.count(); err != nil {
			return err
		}
	}
	uid, gid, err := d.shift.Owner(e.Stat.Uid, e.Stat.Gid)
	if err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid {
		if err := linux.Fchown(d.fd, e.Name, uid, gid); err != nil {
			return err
		}
	}
	if err := d.xattrs(e, "."); err != nil {
		return err
	}
	if sameTimes(e, &st) {
		return nil
	}
	return linux.Futimes(d.fd, e.Name, e.Stat.Atim, e.Stat.Mtim)
}

// count looks whether the directory has as many names as it should have. That
// each of those is there shows when they are changed. File systems that keep
// times less exactly than that of the chain get here, too.
func (d *oldDir) count() error {
	var b linux.DirBuffer
	n := 0
	err := b.Read(d.fd, d.src.Self.Name, func(string, uint8) error {
		n++
		return nil
	})
	want := 0
	for i := range d.src.Entries {
		if !leftOut(d.rootless, &d.src.Entries[i]) {
			want++
		}
	}
	if err == nil && n != want {
		err = fmt.Errorf("%w: %d names in it, not %d", ErrChanged, n, want)
	}
	return err
}

// entry changes a child that is not a directory.
func (d *oldDir) entry(e *idshift.Entry) error {
	var st unix.Stat_t
	if err := linux.Lstatat(d.fd, e.Name, &st); err != nil {
		return err
	}
	if err := unchanged(e, &st); err != nil {
		return err
	}
	if key, shared := e.Link(); shared {
		if first, err := d.seen(key, &st); !first {
			return err
		}
	} else if st.Nlink != 1 {
		return fmt.Errorf("%w: %d links, not 1", ErrChanged, st.Nlink)
	}
	uid, gid, err := d.shift.Owner(e.Stat.Uid, e.Stat.Gid)
	if err != nil {
		return err
	}
	given := st.Uid != uid || st.Gid != gid
	if given {
		if err := linux.Lchownat(d.fd, e.Name, uid, gid); err != nil {
			return err
		}
	}
	if err := d.xattrs(e, e.Name); err != nil {
		return err
	}
	if given && e.Stat.Mode&setID != 0 && !isSymlink(e) {
		if err := linux.Fchmodat(d.fd, e.Name, e.Stat.Mode&0o7777); err != nil {
			return err
		}
	}
	if sameTimes(e, &st) {
		return nil
	}
	return linux.Lutimesat(d.fd, e.Name, e.Stat.Atim, e.Stat.Mtim)
}

// xattrs writes those attributes of an inode that hold IDs; name is below the
// directory. The others are the same for every mapping.
func (d *oldDir) xattrs(e *idshift.Entry, name string) error {
	for _, x := range e.Xattrs {
		if x.Name != idshift.ACLAccess && x.Name != idshift.ACLDefault && x.Name != idshift.Capability {
			continue
		}
		value, keep, err := d.shift.Xattr(x.Name, x.Value)
		if err != nil {
			return err
		}
		p := pathBelow(d.fd, name)
		if keep {
			err = linux.Lset(p, x.Name, value)
		} else if err = unix.Lremovexattr(p, x.Name); errors.Is(err, unix.ENODATA) {
			err = nil // went with the owner
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unchanged compares what Build made of an entry with the entry.
func unchanged(e *idshift.Entry, st *unix.Stat_t) error {
	mode, want := st.Mode, e.Stat.Mode
	if isSymlink(e) { // the other bits mean nothing
		mode, want = mode&unix.S_IFMT, want&unix.S_IFMT
	}
	switch {
	case mode != want:
		return fmt.Errorf("%w: mode %#o, not %#o", ErrChanged, mode, want)
	case !e.IsDir() && st.Size != e.Stat.Size:
		return fmt.Errorf("%w: %d bytes, not %d", ErrChanged, st.Size, e.Stat.Size)
	case st.Rdev != e.Stat.Rdev:
		return fmt.Errorf("%w: device %#x, not %#x", ErrChanged, st.Rdev, e.Stat.Rdev)
	}
	return nil
}

func isSymlink(e *idshift.Entry) bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFLNK }

// sameTimes compares the times that Build sets. They stay when an inode is
// given away; reading the tree may have changed the time of the last access.
func sameTimes(e *idshift.Entry, st *unix.Stat_t) bool {
	return st.Mtim == e.Stat.Mtim && st.Atim == e.Stat.Atim
}
