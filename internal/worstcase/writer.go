package worstcase

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
)

// writer writes trees into the folders of layers.
type writer struct {
	roots []int // open folders, the lowest layer first
	// The directory that is open: most nodes are in the one of the last node.
	at struct {
		layer, fd int
		path      string
	}
	made map[string]int // directories made, by layer and path: their place in dirs
	dirs []node         // in the order in which they were made
}

// open opens folders, the lowest layer first.
func open(folders []string) (*writer, error) {
	w := &writer{made: map[string]int{}}
	w.at.fd = -1
	for _, f := range folders {
		fd, err := linux.OpenDir(unix.AT_FDCWD, f)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("open layer: %w", err)
		}
		w.roots = append(w.roots, fd)
	}
	return w, nil
}

func (w *writer) close() {
	w.leave()
	for _, fd := range w.roots {
		_ = linux.Close(fd)
	}
}

// leave closes the directory that is open.
func (w *writer) leave() {
	if w.at.fd >= 0 {
		_ = linux.Close(w.at.fd)
		w.at.fd = -1
	}
}

// write writes all nodes of a tree: first everything with its content, owner,
// mode, attributes and times; then the same of directories, those of later
// nodes first, since making a child changes its directory's time; last the
// inode flags, since nothing can be done to an immutable file.
func (w *writer) write(ctx context.Context, t *tree) error {
	for i := range t.nodes {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		n := &t.nodes[i]
		if err := w.node(n); err != nil {
			return at(n, err)
		}
	}
	w.leave()
	for _, n := range slices.Backward(w.dirs) {
		if err := w.settled(&n); err != nil {
			return at(&n, err)
		}
	}
	for _, n := range slices.Backward(t.nodes) {
		if n.flags != 0 {
			if err := w.setFlags(&n); err != nil {
				return at(&n, err)
			}
		}
	}
	w.leave()
	return nil
}

// at says of which path an error is.
func at(n *node, err error) error {
	return fmt.Errorf("write layer %d: %.300q: %w", n.layer, n.path, err)
}

// node makes one node.
func (w *writer) node(n *node) error {
	if n.typ == unix.S_IFDIR {
		_, err := w.directory(n.layer, n.path)
		if err == nil {
			w.dirs[w.made[key(n.layer, n.path)]] = *n
		}
		return err
	}
	dir, name, err := w.parent(n)
	if err != nil {
		return err
	}
	switch n.typ {
	case 0:
		return w.link(n, dir, name)
	case unix.S_IFREG:
		err = content(n, dir, name)
	case unix.S_IFLNK:
		err = linux.Symlinkat(n.target, dir, name)
	default:
		err = linux.Mknodat(dir, name, n.typ|n.mode, n.rdev)
	}
	if err != nil {
		return err
	}
	return settle(n, dir, name)
}

// content makes a regular file.
func content(n *node, dir int, name string) error {
	fd, err := linux.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if n.size > 0 {
		err = linux.Ftruncate(fd, name, n.size)
	}
	for _, e := range n.data {
		if len(e.content) > 0 && err == nil {
			_, err = unix.Pwrite(fd, []byte(e.content), e.offset)
		}
	}
	return errors.Join(err, linux.Close(fd))
}

// link makes a hard link.
func (w *writer) link(n *node, dir int, name string) error {
	from, err := walk(w.roots[n.source], path.Dir(n.target))
	if err != nil {
		return err
	}
	defer linux.Close(from)
	return linux.Linkat(from, path.Base(n.target), dir, name)
}

func key(layer int, p string) string { return strconv.Itoa(layer) + "/" + p }

// parent opens the directory of a node. The descriptor is the writer's.
func (w *writer) parent(n *node) (dir int, name string, err error) {
	dir, p := w.at.fd, path.Dir(n.path)
	if dir < 0 || w.at.layer != n.layer || w.at.path != p {
		dir, err = w.directory(n.layer, p)
	}
	return dir, path.Base(n.path), err
}

// directory makes a directory and those above it, where they are missing, and
// opens it. The descriptor is the writer's, and open until the next call.
func (w *writer) directory(layer int, p string) (int, error) {
	w.leave()
	fd, err := walk(w.roots[layer], ".")
	if err != nil {
		return -1, err
	}
	w.register(layer, ".")
	done := ""
	for part := range strings.SplitSeq(p, "/") {
		if part == "." {
			break
		}
		done = path.Join(done, part)
		if _, ok := w.made[key(layer, done)]; !ok {
			if err := linux.Mkdirat(fd, part, 0o700); err != nil {
				return -1, errors.Join(err, linux.Close(fd))
			}
			w.register(layer, done)
		}
		next, err := linux.OpenDir(fd, part)
		if err = errors.Join(err, linux.Close(fd)); err != nil {
			return -1, err
		}
		fd = next
	}
	w.at.layer, w.at.path, w.at.fd = layer, p, fd
	return fd, nil
}

// register notes that a directory is there.
func (w *writer) register(layer int, p string) {
	k := key(layer, p)
	if _, ok := w.made[k]; ok {
		return
	}
	w.made[k] = len(w.dirs)
	t := tree{}
	t.on(layer).dir(p)
	w.dirs = append(w.dirs, t.nodes[0])
}

// walk opens a directory below another without following links.
func walk(root int, p string) (int, error) {
	fd, err := linux.OpenDir(root, ".")
	if err != nil {
		return -1, err
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "." {
			break
		}
		next, err := linux.OpenDir(fd, part)
		_ = linux.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// settled gives a directory what it is to be like.
func (w *writer) settled(n *node) error {
	if n.path == "." {
		return settle(n, w.roots[n.layer], ".")
	}
	dir, name, err := w.parent(n)
	if err != nil {
		return err
	}
	return settle(n, dir, name)
}

// setFlags sets inode flags (ioctl_iflags(2)).
func (w *writer) setFlags(n *node) error {
	dir, name, err := w.parent(n)
	if err != nil {
		return err
	}
	return changeFlags(dir, name, n.flags)
}
