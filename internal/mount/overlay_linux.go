package mount

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// Overlay is an overlay to be mounted (overlayfs.rst), with the lowers Above,
// Tree, Parts and Below, from the uppermost down, and Data behind them.
type Overlay struct {
	// Tree is a lower that is in no mount table; nil for none.
	Tree *Tree
	// Parts are more such lowers, uppermost first, for kernels that take them.
	Parts []Part
	// Above and Below are folders, uppermost first.
	Above, Below []string
	// Data are folders, uppermost first, in which only the data of files above
	// is looked up: data-only lowers.
	Data []string
	// DataTrees are more of them, behind Data.
	DataTrees []*Tree
	// Upper and Work make the overlay writable; both or neither.
	Upper, Work string
	// Options are further options of overlay; Label is the SELinux context of
	// all its files, "" for none.
	Options []string
	Label   string
	// Flags are those of mount(2).
	Flags uintptr
	// Attach is an empty folder where Tree may be shown for the time of the
	// call, for kernels that take no lower that is in no mount table (before
	// Linux 6.15 or so).
	Attach string
}

// Part is a folder in a tree, by its path below the tree's root.
type Part struct {
	Tree *Tree
	Path string
}

// open opens the folder. The path leads through neither links nor mounts.
func (p Part) open() (int, error) {
	return linux.OpenBeneath(p.Tree.fd, p.Path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// Mount mounts the overlay. When it returns, o.Tree can be closed, and is not
// attached. The caller closes the result.
func (o Overlay) Mount() (*Tree, error) {
	attrs, options, err := split(o.Flags)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	options = append(options, o.Options...)
	if o.Label != "" {
		options = append(options, "context="+o.Label)
	}
	// A mount with "volatile" that fails, for whatever reason, makes the kernel
	// refuse the next one (overlayfs.rst, "Volatile mount"): one try only.
	var t *Tree
	attach := o.Attach != "" && o.Tree != nil
	if !attach || !slices.Contains(options, "volatile") {
		t, err = o.try(attrs, options)
		if !errors.Is(err, unix.EINVAL) || !attach {
			return t, err
		}
	}
	if attachErr := o.Tree.Attach(o.Attach); attachErr != nil {
		return nil, errors.Join(err, attachErr)
	}
	t, err = o.try(attrs, options)
	if err = errors.Join(err, o.Tree.Detach()); err != nil {
		if t != nil {
			err = errors.Join(err, t.Close())
		}
		return nil, err
	}
	return t, nil
}

// try makes the mount from the tree as it is.
func (o Overlay) try(attrs int, options []string) (*Tree, error) {
	c, err := open("overlay")
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.set("source=overlay"); err != nil {
		return nil, err
	}
	if err := c.folders("lowerdir+", o.Above); err != nil {
		return nil, err
	}
	if o.Tree != nil {
		if err := c.part("lowerdir+", Part{o.Tree, "."}); err != nil {
			return nil, err
		}
	}
	for _, p := range o.Parts {
		if err := c.part("lowerdir+", p); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(c.folders("lowerdir+", o.Below), c.folders("datadir+", o.Data)); err != nil {
		return nil, err
	}
	for _, t := range o.DataTrees {
		if err := c.part("datadir+", Part{t, "."}); err != nil {
			return nil, err
		}
	}
	if o.Upper != "" {
		if err := errors.Join(c.folders("upperdir", []string{o.Upper}), c.folders("workdir", []string{o.Work})); err != nil {
			return nil, err
		}
	}
	for _, option := range options {
		if err := c.set(option); err != nil {
			return nil, err
		}
	}
	return c.create(attrs)
}

// part passes a folder of a tree as an option.
func (c *config) part(key string, p Part) error {
	fd, err := p.open()
	if err != nil {
		return fmt.Errorf("mount overlay: open lower: %w", err)
	}
	defer linux.Close(fd)
	return c.file(key, fd)
}

// folders passes folders of any path as options.
func (c *config) folders(key string, dirs []string) error {
	for _, dir := range dirs {
		// By its name, which the mount table then shows, where overlay reads a
		// name as it is (ovl_unescape in fs/overlayfs/params.c).
		if len(dir) < maxValue && !strings.ContainsAny(dir, `\:,`) {
			if err := c.set(key + "=" + dir); err != nil {
				return err
			}
			continue
		}
		fd, err := linux.OpenDir(unix.AT_FDCWD, dir)
		if err != nil {
			return fmt.Errorf("mount %s: option %s: %w", c.fs, key, err)
		}
		err = c.file(key, fd)
		_ = linux.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// split turns flags of mount(2) into attributes of fsmount(2) and options of
// the file system (mount(2), mount_setattr(2), fs/fs_context.c).
func split(flags uintptr) (attrs int, options []string, err error) {
	for _, f := range []struct {
		flag   uintptr
		attr   int
		option string
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY, "ro"},
		{unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID, ""},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV, ""},
		{unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC, ""},
		{unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME, ""},
		{unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME, ""},
		{unix.MS_RELATIME, unix.MOUNT_ATTR_RELATIME, ""},
		{unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME, ""},
		{unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW, ""},
		{unix.MS_SYNCHRONOUS, 0, "sync"},
		{unix.MS_DIRSYNC, 0, "dirsync"},
		{unix.MS_LAZYTIME, 0, "lazytime"},
	} {
		if flags&f.flag == 0 {
			continue
		}
		flags &^= f.flag
		attrs |= f.attr
		if f.option != "" {
			options = append(options, f.option)
		}
	}
	if flags != 0 {
		return 0, nil, fmt.Errorf("flags %#x of mount(2): %w", flags, os.ErrInvalid)
	}
	return attrs, options, nil
}
