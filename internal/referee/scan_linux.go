package referee

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Scan reads the tree below the folder root, through descriptors of its
// directories, so that the length of a path does not matter; several
// directories at a time. Nothing is skipped: what cannot be read is an error
// that names its path and holds the errno. It needs /proc.
//
// One special case: where the kernel refuses to show security.capability with
// EOVERFLOW, the capability belongs to a user outside of the mapping and has
// no effect (capabilities(7), section Namespaced file capabilities); it counts
// as absent.
func Scan(ctx context.Context, root string, o Options) (*Tree, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	fd, err := openat(unix.AT_FDCWD, root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil, scanError(root, &os.PathError{Op: "open", Path: root, Err: err})
	}
	g, ctx := errgroup.WithContext(ctx)
	s := &scanner{root: root, options: o, group: g, slots: make(chan struct{}, o.Workers-1)}
	g.Go(func() error { return s.scanRoot(ctx, fd) })
	if err := g.Wait(); err != nil {
		return nil, scanError(root, err)
	}
	t := &Tree{root: root, nodes: s.nodes}
	if err := t.finish(); err != nil {
		return nil, err
	}
	return t, nil
}

func scanError(root string, err error) error {
	return fmt.Errorf("scan %s: %w", root, err)
}

type scanner struct {
	root    string
	options Options
	group   *errgroup.Group
	slots   chan struct{} // free helpers, beside the first one

	mu    sync.Mutex
	nodes []Node
}

func (s *scanner) scanRoot(ctx context.Context, fd int) error {
	var st unix.Stat_t
	r := newReader(s.options)
	err := retry(func() error { return unix.Fstat(fd, &st) })
	if err != nil {
		err = &os.PathError{Op: "stat", Path: RootPath, Err: err}
	} else {
		n := newNode(RootPath, &st)
		n.Xattrs, err = r.xattrs(procPath(fd)+"/.", RootPath)
		s.add([]Node{n})
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return s.directory(ctx, fd, "", r)
}

func (s *scanner) add(nodes []Node) {
	s.mu.Lock()
	s.nodes = append(s.nodes, nodes...)
	s.mu.Unlock()
}

// directory reads one directory and what is below it. It closes fd. Prefix is
// the directory's path with a slash behind it, empty for the root.
func (s *scanner) directory(ctx context.Context, fd int, prefix string, r *reader) error {
	dir := os.NewFile(uintptr(fd), prefix)
	defer dir.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return &os.PathError{Op: "read directory", Path: display(prefix), Err: unwrapErrno(err)}
	}
	slices.Sort(names)
	nodes := make([]Node, 0, len(names))
	var subdirs []string
	for i, name := range names {
		if i%1024 == 1023 && ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := r.node(fd, name, prefix+name)
		if err != nil {
			return err
		}
		if n.IsDir() {
			subdirs = append(subdirs, name)
		}
		nodes = append(nodes, n)
	}
	s.add(nodes)
	for _, name := range subdirs {
		if err := s.subdirectory(ctx, fd, name, prefix+name, r); err != nil {
			return err
		}
	}
	return nil
}

// subdirectory reads a directory by another goroutine where one is free, and
// by this one otherwise: at most Workers run, and none waits for another.
func (s *scanner) subdirectory(ctx context.Context, parent int, name, path string, r *reader) error {
	fd, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	select {
	case s.slots <- struct{}{}:
		s.group.Go(func() error {
			defer func() { <-s.slots }()
			return s.directory(ctx, fd, path+"/", newReader(s.options))
		})
		return nil
	default:
		return s.directory(ctx, fd, path+"/", r)
	}
}

func newNode(path string, st *unix.Stat_t) Node {
	n := Node{
		Path: path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim,
		Nlink: uint64(st.Nlink), //nolint:unconvert // 32 bits wide on some architectures
		dev:   uint64(st.Dev),   //nolint:unconvert // likewise
		ino:   st.Ino,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
		n.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = uint64(st.Rdev) //nolint:unconvert // likewise
	}
	return n
}

// reader reads single inodes; its buffers serve one goroutine.
type reader struct {
	options Options
	buf     []byte
	block   []byte
}

func newReader(o Options) *reader {
	return &reader{options: o, buf: make([]byte, 4096)}
}

func (r *reader) node(dirfd int, name, path string) (Node, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		return Node{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	n := newNode(path, &st)
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if n.Target, err = r.readlink(dirfd, name, path); err != nil {
			return Node{}, err
		}
	case unix.S_IFREG:
		n.Unknown = !r.options.Content
		if r.options.Content {
			if n.Digest, err = r.digest(dirfd, name, path, st.Size); err != nil {
				return Node{}, err
			}
		}
	}
	n.Xattrs, err = r.xattrs(procPath(dirfd)+"/"+name, path)
	return n, err
}

func (r *reader) readlink(dirfd int, name, path string) (string, error) {
	for {
		var n int
		err := retry(func() (err error) { n, err = unix.Readlinkat(dirfd, name, r.buf); return err })
		if err != nil {
			return "", &os.PathError{Op: "readlink", Path: path, Err: err}
		}
		if n < len(r.buf) {
			return string(r.buf[:n]), nil
		}
		r.buf = make([]byte, 2*len(r.buf))
	}
}

// xattrs reads all extended attributes of the inode at proc, a short path
// through /proc whose last component is not followed, sorted by name.
func (r *reader) xattrs(proc, path string) ([]Xattr, error) {
	list, err := r.sized(func(buf []byte) (int, error) { return unix.Llistxattr(proc, buf) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil // a file system without extended attributes has none
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	if len(list) == 0 {
		return nil, nil
	}
	names := strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
	slices.Sort(names)
	var out []Xattr
	for _, name := range names {
		if isOverlayXattr(name) && !r.options.OverlayXattrs || isXFSACL(name) {
			continue
		}
		value, err := r.sized(func(buf []byte) (int, error) { return unix.Lgetxattr(proc, name, buf) })
		if name == "security.capability" && errors.Is(err, unix.EOVERFLOW) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		out = append(out, Xattr{Name: name, Value: bytes.Clone(value)})
	}
	return out, nil
}

// sized calls get with the reader's buffer, larger ones where it must. The
// result is valid until the next call.
func (r *reader) sized(get func([]byte) (int, error)) ([]byte, error) {
	for {
		var n int
		err := retry(func() (err error) { n, err = get(r.buf); return err })
		switch {
		case err == nil:
			return r.buf[:n], nil
		case errors.Is(err, unix.ERANGE) && len(r.buf) < 1<<20:
			r.buf = make([]byte, 4*len(r.buf))
		default:
			return nil, err
		}
	}
}

// isOverlayXattr reports whether the attribute is one of overlay's own
// (overlayfs.rst, section Permission model and others).
func isOverlayXattr(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// isXFSACL reports whether the attribute is XFS's own form of an ACL, which it
// lists beside the portable one. Containers cannot see it (it is trusted), and
// the kernel does not map the ids in it.
func isXFSACL(name string) bool {
	return name == "trusted.SGI_ACL_FILE" || name == "trusted.SGI_ACL_DEFAULT"
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func display(prefix string) string {
	if prefix == "" {
		return RootPath
	}
	return strings.TrimSuffix(prefix, "/")
}

func openat(dirfd int, name string, flags int) (fd int, err error) {
	err = retry(func() (err error) { fd, err = unix.Openat(dirfd, name, flags, 0); return err })
	return fd, err
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// unwrapErrno takes the errno out of an error of package os, whose path says
// nothing here.
func unwrapErrno(err error) error {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}
