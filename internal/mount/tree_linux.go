package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// Tree is a mount that is in no mount table until Attach puts it there. It is
// not safe for concurrent use.
type Tree struct {
	fd int // -1 after Close
	// at is where the tree is attached, "" if nowhere.
	at string
}

// Clone returns a second mount of a folder and what is mounted below it
// (open_tree(2)).
func Clone(dir string) (*Tree, error) { return clone(dir, unix.AT_RECURSIVE) }

// CloneOne is Clone without what is mounted below the folder.
func CloneOne(dir string) (*Tree, error) { return clone(dir, 0) }

func clone(dir string, flags uint) (*Tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	return &Tree{fd: fd}, nil
}

// New mounts a file system of a type with options of its own, as a flag those
// without "=", and attributes of the mount (unix.MOUNT_ATTR_*). The caller
// closes the tree.
func New(fs string, attrs int, options ...string) (*Tree, error) {
	c, err := open(fs)
	if err != nil {
		return nil, err
	}
	defer c.close()
	for _, option := range options {
		if err := c.set(option); err != nil {
			return nil, err
		}
	}
	return c.create(attrs)
}

// Path returns a path of the tree's root that is valid in this process until
// Close.
func (t *Tree) Path() string { return procFD(t.fd) }

// procFD is a path of an open file that is valid in this process and shorter
// than any limit (proc_pid_fd(5)).
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// File returns a file that is the tree, too, for FromFile in another process. The
// caller closes it.
func (t *Tree) File() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(t.fd), unix.F_DUPFD_CLOEXEC, 3) //nolint:gosec // a descriptor
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "mount"), nil //nolint:gosec // a descriptor
}

// FromFile returns the tree of a file, which stays open as long as it is used.
func FromFile(f *os.File) *Tree { return &Tree{fd: int(f.Fd())} } //nolint:gosec // a descriptor

// Idmap maps the IDs of the tree as the user namespace behind the descriptor
// does (mount_setattr(2), MOUNT_ATTR_IDMAP). The tree must not be attached.
func (t *Tree) Idmap(userns int) error {
	err := unix.MountSetattr(t.fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP,
		Userns_fd: uint64(userns), //nolint:gosec // a descriptor
	})
	if err != nil {
		return fmt.Errorf("map the IDs of a mount: %w", os.NewSyscallError("mount_setattr", err))
	}
	return nil
}

// Attach shows the tree at a folder. The tree stays usable.
func (t *Tree) Attach(dir string) error {
	err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "move_mount", Path: dir, Err: err}
	}
	t.at = dir
	return nil
}

// Detach takes an attached tree out of the mount table; what uses it goes on.
// It does nothing for a tree that is not attached.
func (t *Tree) Detach() error {
	if t.at == "" {
		return nil
	}
	at := t.at
	t.at = ""
	return Detach(at)
}

// Detach takes the uppermost mount at a folder out of the mount table; what
// uses it goes on. A folder that is no mount point is an error that is
// unix.EINVAL.
func Detach(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "umount", Path: dir, Err: err}
	}
	return nil
}

// Close gives the tree up: unless it is attached, it is unmounted when nothing
// uses it any more. It may be called twice.
func (t *Tree) Close() error {
	if t.fd < 0 {
		return nil
	}
	fd := t.fd
	t.fd = -1
	return linux.Close(fd)
}

// CloseAll closes trees, some of which may be nil.
func CloseAll(trees ...*Tree) error {
	var errs []error
	for _, t := range trees {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(errs...)
}

// config is a file system that is being configured (fsopen(2)).
type config struct {
	fs string
	fd int
}

func open(fs string) (*config, error) {
	fd, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", fs, os.NewSyscallError("fsopen", err))
	}
	return &config{fs: fs, fd: fd}, nil
}

func (c *config) close() { _ = linux.Close(c.fd) }

// set passes an option, as a flag if it has no "=". The kernel takes no value
// of 256 bytes or more.
func (c *config) set(option string) error {
	key, value, isString := strings.Cut(option, "=")
	var err error
	if isString {
		err = unix.FsconfigSetString(c.fd, key, value)
	} else {
		err = unix.FsconfigSetFlag(c.fd, key)
	}
	return c.failed("option "+option, err)
}

// file passes an open file or folder as an option: as a descriptor where the
// kernel takes that (overlay since 6.13), else by a path of the descriptor.
func (c *config) file(key string, fd int) error {
	err := unix.FsconfigSetFd(c.fd, key, fd)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		c.messages() // what the kernel said of the first form
		err = unix.FsconfigSetString(c.fd, key, procFD(fd))
	}
	return c.failed("option "+key, err)
}

// create makes the file system and a mount of it with attributes
// (unix.MOUNT_ATTR_*).
func (c *config) create(attrs int) (*Tree, error) {
	if err := c.failed("create", unix.FsconfigCreate(c.fd)); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err := c.failed("fsmount", err); err != nil {
		return nil, err
	}
	return &Tree{fd: fd}, nil
}

// failed wraps an error with what the kernel says of it.
func (c *config) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if m := c.messages(); m != "" {
		what += " (" + m + ")"
	}
	return fmt.Errorf("mount %s: %s: %w", c.fs, what, err)
}

// messages reads the kernel's messages about the file system: lines that
// begin with their level, "e ", "w " or "i " (fs/fsopen.c, fscontext_read).
func (c *config) messages() string {
	var out []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(c.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return strings.Join(out, "; ")
		}
		m := strings.TrimSpace(string(buf[:n]))
		if len(m) > 2 && m[1] == ' ' {
			m = m[2:]
		}
		out = append(out, m)
	}
}
