package writeback

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// inUpper is the number of the upper where layers below have theirs.
const inUpper = -1

// inode identifies an inode for finding hard links.
type inode struct {
	layer    int
	dev, ino uint64
}

// scan is the state of one Scan.
type scan struct {
	ctx   context.Context
	layer Layer
	yield func(*Item) error
	root  below               // the roots of the layers below
	seen  map[inode]string    // first path of inodes with several names
	want  func(p string) bool // which paths to yield; nil for all
	xb    linux.XattrBuffer
	db    linux.DirBuffer
}

// place is where a name is to be read.
type place struct {
	layer int // inUpper or the number of a layer below
	dirfd int
	name  string
}

// level is a directory of the result.
type level struct {
	path  string
	upper int   // descriptor of the upper's directory, -1 if there is none
	below below // what the upper's directory is merged with
	// old is what the layers below show at this path, the same as below
	// unless fresh; empty if all is wanted.
	old below
	// fresh says that what is below does not show at this path in the layers
	// below, because a directory was renamed or replaced or all is wanted: it
	// is part of the change.
	fresh bool
	// defaultACL says that the directory has one.
	defaultACL bool
}

// procPath names something in an open directory for system calls that have no
// *at form.
func procPath(dirfd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

func (s *scan) run() (err error) {
	if s.root, err = openBelow(s.layer.Lowers, s.layer.Overlay); err != nil {
		return err
	}
	defer func() { s.root.close() }()
	up, err := linux.Openat(unix.AT_FDCWD, s.layer.Upper, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open upper: %w", err)
	}
	defer linux.Close(up)
	mine, err := s.read(".", place{layer: inUpper, dirfd: up, name: "."})
	if err != nil {
		return err
	}
	if err := s.rootItem(mine); err != nil {
		return err
	}
	l := level{path: ".", upper: up, below: s.root, fresh: s.layer.Whole, defaultACL: mine.hasDefaultACL()}
	if !l.fresh {
		l.old = l.below
	}
	return s.directory(l)
}

// rootItem yields the root if its mode or owner are not those of the root
// below, or if it has attributes: overlay shows those of the uppermost root
// only, and the storage library makes it without any.
func (s *scan) rootItem(mine *item) error {
	if len(s.root) == 0 {
		return nil
	}
	theirs, err := s.read(".", place{layer: s.root[0].layer, dirfd: s.root[0].fd, name: "."})
	if err != nil {
		return err
	}
	a, b := &mine.Entry, &theirs.Entry
	if !s.layer.Whole && a.Stat.Mode == b.Stat.Mode && a.Stat.Uid == b.Stat.Uid && a.Stat.Gid == b.Stat.Gid && len(xattrRecords(&mine.Item)) == 0 {
		return nil
	}
	mine.Kind = Modified
	return s.give(mine)
}

// directory yields what is in one directory, and below it.
func (s *scan) directory(l level) error {
	var names []string
	if l.upper >= 0 {
		err := s.db.Read(l.upper, l.path, func(name string, _ uint8) error {
			names = append(names, name)
			return nil
		})
		if err != nil {
			return fmt.Errorf("read upper: %w", err)
		}
	}
	own := len(names)
	if l.fresh {
		more, err := l.below.names(&s.db)
		if err != nil {
			return fmt.Errorf("%s: %w", l.path, err)
		}
		names = append(names, more...)
	}
	inUpperDir := make(map[string]bool, own)
	for _, n := range names[:own] {
		inUpperDir[n] = true
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		var err error
		if inUpperDir[name] {
			err = s.changed(l, name)
		} else {
			err = s.moved(l, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changed handles a name that the upper holds.
func (s *scan) changed(l level, name string) error {
	p := path.Join(l.path, name)
	at := place{layer: inUpper, dirfd: l.upper, name: name}
	var st unix.Stat_t
	if err := linux.Lstatat(l.upper, name, &st); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	old, err := l.old.lookup(name)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if isWhiteout(s.layer.Overlay, l.upper, name, &st) {
		if old == nil || l.fresh { // what a fresh directory lost is an Emptied item's
			return nil
		}
		return s.yield(&Item{Kind: Deleted, Path: p})
	}
	it, err := s.read(p, at)
	if err != nil {
		return err
	}
	it.Kind, it.InheritsACL = since(old), l.defaultACL
	if it.Entry.IsDir() {
		return s.changedDir(l, it, old)
	}
	if it.metacopy {
		it.MetadataOnly = true
		it.open = func() (int, error) { return l.below.openData(s.root, name, it.redirect) }
	}
	return s.emit(it, st, at)
}

// changedDir handles a directory that the upper holds.
func (s *scan) changedDir(l level, it *item, old *found) error {
	fd, err := linux.OpenDir(l.upper, it.Entry.Name)
	if err != nil {
		return fmt.Errorf("%s: %w", it.Path, err)
	}
	defer linux.Close(fd)
	if err := s.give(it); err != nil {
		return err
	}
	next := level{path: it.Path, upper: fd, fresh: true, defaultACL: it.hasDefaultACL()}
	if !it.opaque {
		if next.below, err = l.below.child(s.root, it.Entry.Name, it.redirect); err != nil {
			return fmt.Errorf("%s: %w", it.Path, err)
		}
		next.fresh = l.fresh || it.redirect != ""
	}
	defer next.below.close()
	if !next.fresh {
		next.old = next.below
		return s.directory(next)
	}
	return s.freshDir(l, next, old)
}

// freshDir handles a directory that is not merged with what the layers below
// show at its path, which is old. l is the directory above.
func (s *scan) freshDir(l, next level, old *found) (err error) {
	if !old.isDir() {
		return s.directory(next)
	}
	if next.old, err = l.old.child(s.root, path.Base(next.path), ""); err != nil {
		return fmt.Errorf("%s: %w", next.path, err)
	}
	defer next.old.close()
	gone, err := s.gone(next)
	if err != nil {
		return fmt.Errorf("%s: %w", next.path, err)
	}
	if err := s.yield(&Item{Kind: Emptied, Path: next.path, Gone: gone, Implied: l.fresh}); err != nil {
		return err
	}
	return s.directory(next)
}

// since returns the kind of change of something that is there, depending on
// what was there.
func since(old *found) Kind {
	if old == nil {
		return Added
	}
	return Modified
}

// gone lists what the layers below have at the path of a fresh directory and
// it shows no more.
func (s *scan) gone(now level) ([]string, error) {
	names, err := now.old.names(&s.db)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		var st unix.Stat_t
		err := error(unix.ENOENT)
		if now.upper >= 0 {
			err = linux.Lstatat(now.upper, name, &st)
		}
		shown := err == nil && !isWhiteout(s.layer.Overlay, now.upper, name, &st)
		if errors.Is(err, unix.ENOENT) {
			f, err := now.below.lookup(name)
			if err != nil {
				return nil, err
			}
			shown = f != nil
		} else if err != nil {
			return nil, err
		}
		if !shown {
			out = append(out, name)
		}
	}
	return out, nil
}

// moved handles a name that only the layers below hold, in a directory that
// was renamed, or when all is wanted.
func (s *scan) moved(l level, name string) error {
	p := path.Join(l.path, name)
	f, err := l.below.lookup(name)
	if err != nil || f == nil {
		return errors.Join(err, s.ctx.Err())
	}
	at := place{layer: f.part.layer, dirfd: f.part.fd, name: name}
	it, err := s.read(p, at)
	if err != nil {
		return err
	}
	old, err := l.old.lookup(name)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	it.Kind, it.InheritsACL = since(old), l.defaultACL
	if it.metacopy {
		it.open = func() (int, error) { return l.below.openData(s.root, name, "") }
	}
	if !it.Entry.IsDir() {
		return s.emit(it, f.st, at)
	}
	if err := s.give(it); err != nil {
		return err
	}
	b, err := l.below.child(s.root, name, "")
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer b.close()
	return s.freshDir(l, level{path: p, upper: -1, below: b, fresh: true, defaultACL: it.hasDefaultACL()}, old)
}

// give yields an inode if it is wanted.
func (s *scan) give(it *item) error {
	if s.want != nil && !s.want(it.Path) {
		return nil
	}
	return s.yield(&it.Item)
}

// emit yields something that is not a directory, as a hard link if its inode
// was seen before.
func (s *scan) emit(it *item, st unix.Stat_t, at place) error {
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK || s.want != nil && !s.want(it.Path) {
		return nil
	}
	if st.Nlink > 1 {
		k := inode{layer: at.layer, dev: st.Dev, ino: st.Ino}
		if first, ok := s.seen[k]; ok {
			it.LinkTo = first
		} else {
			s.seen[k] = it.Path
		}
	}
	return s.yield(&it.Item)
}

// item is an Item with what overlay says of the inode.
type item struct {
	Item
	opaque   bool
	metacopy bool
	redirect string
}

// hasDefaultACL tells whether what is made in the directory inherits an ACL.
func (i *item) hasDefaultACL() bool {
	return slices.ContainsFunc(i.Entry.Xattrs, func(x idshift.Xattr) bool { return x.Name == idshift.ACLDefault })
}

// read reads one inode and translates its IDs if it is in the upper.
func (s *scan) read(p string, at place) (*item, error) {
	it := &item{Item: Item{Path: p, InUpper: at.layer == inUpper}}
	e := &it.Entry
	e.Name, e.Layer = at.name, at.layer
	if err := linux.Lstatat(at.dirfd, at.name, &e.Stat); err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if err := s.readXattrs(it, procPath(at.dirfd, at.name)); err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if e.Stat.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if e.Target, err = linux.Readlinkat(at.dirfd, at.name, e.Stat.Size); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	it.open = func() (int, error) { return openFile(at.dirfd, at.name) }
	if !it.InUpper || s.layer.Shift == nil {
		return it, nil
	}
	return it, s.back(it)
}

// back translates host IDs to container IDs.
func (s *scan) back(it *item) error {
	e := &it.Entry
	uid, gid, err := s.layer.Shift.Owner(e.Stat.Uid, e.Stat.Gid)
	if err != nil && s.isMountPoint(e) {
		uid, gid, err = 0, 0, nil
	}
	if err != nil {
		return idshift.AtPath(err, it.Path)
	}
	e.Stat.Uid, e.Stat.Gid = uid, gid
	kept := e.Xattrs[:0]
	for _, x := range e.Xattrs {
		v, keep, err := s.layer.Shift.Xattr(x.Name, x.Value)
		if err != nil {
			return idshift.AtPath(err, it.Path)
		}
		if keep {
			kept = append(kept, idshift.Xattr{Name: x.Name, Value: v})
		}
	}
	e.Xattrs = kept
	return nil
}

// isMountPoint tells whether this is a mount point as buildah makes them for a
// run: a folder or an empty file of the container's root, whose group has the
// number of that user (copier.Ensure of buildah 1.41 takes the UID for both).
// What else has such a group, and no ID inside, was hardly anybody's intention.
func (s *scan) isMountPoint(e *idshift.Entry) bool {
	root, ok := s.layer.Shift.Mapping().UIDs.ToHost(0)
	if !ok || e.Stat.Uid != root || e.Stat.Gid != root {
		return false
	}
	return e.IsDir() || e.Stat.Mode&unix.S_IFMT == unix.S_IFREG && e.Stat.Size == 0
}

// readXattrs reads the attributes of an inode, overlay's own into the item.
func (s *scan) readXattrs(it *item, p string) error {
	return s.xb.Llist(p, func(name string) error {
		private, own := strings.CutPrefix(name, s.layer.Overlay.Attribute(""))
		if own && private != "opaque" && private != "redirect" && private != "metacopy" {
			return nil
		}
		v, err := s.xb.Lget(p, name)
		if name == idshift.Capability && idshift.IsVoidCapability(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !own {
			it.Entry.Xattrs = append(it.Entry.Xattrs, idshift.Xattr{Name: name, Value: v})
			return nil
		}
		switch private {
		case "opaque":
			it.opaque = it.Entry.IsDir() && string(v) == "y"
		case "redirect":
			it.redirect = string(v)
		case "metacopy":
			it.metacopy = true
		}
		return nil
	})
}

// openFile opens a regular file for reading without following a symbolic
// link.
func openFile(dirfd int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := linux.Openat(dirfd, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return linux.Openat(dirfd, name, flags, 0)
	}
	return fd, err
}
