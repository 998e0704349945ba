package writeback

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// trail follows one name down the layers as overlay's lookup does: from each
// layer to the one below it, under another name or at another place where a
// redirect says so (overlayfs.rst, "redirect_dir").
type trail struct {
	root below // the roots of all layers below
	in   below // where the name is looked up
	next int   // the part of in to look at next
	name string
	temp []below // directories that were opened on the way
}

// follow starts a trail for a name in a merged directory. redirect is what the
// layer above says, "" if nothing.
func follow(root, in below, name, redirect string) (*trail, error) {
	t := &trail{root: root, in: in, name: name}
	return t, t.redirect(-1, redirect)
}

// close gives back what was opened on the way.
func (t *trail) close() {
	for _, b := range t.temp {
		b.close()
	}
}

// redirect makes the trail go on, below a layer, where a redirect says: at an
// absolute path, or under another name in the same directory.
func (t *trail) redirect(layer int, redirect string) error {
	// The root is nobody's redirect (the kernel finds no such name either); as
	// one name, "/", "." and ".." would lead out of the layer.
	clean := path.Clean(redirect)
	switch {
	case redirect == "":
	case clean == "/", clean == ".", clean == "..", strings.ContainsRune(redirect, 0):
		return fmt.Errorf("overlay's redirect %q leads to no file: %w", redirect, unix.EIO)
	case strings.HasPrefix(redirect, "/"):
		dir, err := t.walkTo(layer, path.Dir(clean))
		if err != nil {
			return err
		}
		t.in, t.next, t.name = dir, 0, path.Base(clean)
	case strings.Contains(redirect, "/"):
		return fmt.Errorf("overlay's redirect %q is neither an absolute path nor a name: %w", redirect, unix.EIO)
	default:
		t.name = redirect
	}
	return nil
}

// walkTo opens the merged directory at an absolute path of the layers below a
// layer.
func (t *trail) walkTo(layer int, dir string) (below, error) {
	var cur below
	for _, p := range t.root {
		if p.layer > layer {
			cur = append(cur, p)
		}
	}
	for name := range strings.SplitSeq(dir, "/") {
		if name == "" {
			continue
		}
		next, err := cur.child(t.root, name, "")
		if err != nil {
			return nil, err
		}
		t.temp = append(t.temp, next)
		cur = next
	}
	return cur, nil
}

// step goes to the next layer that has the name. A nil result ends the trail.
func (t *trail) step() (*found, error) {
	for t.next < len(t.in) {
		f := found{part: t.in[t.next], name: t.name}
		t.next++
		err := linux.Lstatat(f.part.fd, t.name, &f.st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up %s in the layers below: %w", t.name, err)
		}
		if isWhiteout(f.part.ns, f.part.fd, t.name, &f.st) {
			break
		}
		return &f, nil
	}
	return nil, nil //nolint:nilnil // the end is a normal answer
}

// child opens a merged directory; empty if there is none. root and redirect
// are as in follow.
func (b below) child(root below, name, redirect string) (c below, err error) {
	t, err := follow(root, b, name, redirect)
	defer t.close()
	defer func() {
		if err != nil {
			c.close()
			c = nil
		}
	}()
	for err == nil {
		f, err := t.step()
		if err != nil || !f.isDir() {
			return c, err
		}
		fd, err := linux.OpenDir(f.part.fd, f.name)
		if err != nil {
			return c, err
		}
		here := part{layer: f.part.layer, fd: fd, ns: f.part.ns}
		c = append(c, here)
		if opaque, err := here.isOpaque(); err != nil || opaque {
			return c, err
		}
		to, err := note(fd, here.ns.Attribute("redirect"))
		if err != nil {
			return c, err
		}
		if err := t.redirect(f.part.layer, to); err != nil {
			return c, err
		}
	}
	return c, err
}

// openData opens the file that holds the data of a name, through any number
// of metadata-only files. root and redirect are as in follow.
func (b below) openData(root below, name, redirect string) (int, error) {
	t, err := follow(root, b, name, redirect)
	defer t.close()
	for err == nil {
		var f *found
		if f, err = t.step(); err != nil {
			break
		}
		if f == nil || f.st.Mode&unix.S_IFMT != unix.S_IFREG {
			return -1, fmt.Errorf("the layers below hold no data for %s: %w", t.name, unix.EIO)
		}
		var fd int
		if fd, err = openFile(f.part.fd, f.name); err != nil {
			break
		}
		meta, merr := hasNote(fd, f.part.ns.Attribute("metacopy"))
		if merr == nil && !meta {
			return fd, nil
		}
		to, nerr := note(fd, f.part.ns.Attribute("redirect"))
		if err = errors.Join(merr, nerr, linux.Close(fd)); err == nil {
			err = t.redirect(f.part.layer, to)
		}
	}
	return -1, err
}

// note reads one of overlay's attributes of an open file; "" if there is none.
func note(fd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Fgetxattr(fd, name, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return string(buf[:n]), nil
}

// hasNote tells whether an open file has one of overlay's attributes, which
// may be empty.
func hasNote(fd int, name string) (bool, error) {
	_, err := unix.Fgetxattr(fd, name, nil)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	return true, nil
}
