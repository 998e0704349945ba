package worstcase

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// below is a path of a name in an open directory, of a few bytes.
func below(dir int, name string) string { return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name }

// settle sets owner, mode, attributes and times, in this order: giving away
// clears setuid bits and capabilities, an ACL holds a part of the mode, and
// both change no modification time, but to be sure that comes last. Then it
// reads all of that back.
func settle(n *node, dir int, name string) error {
	if err := linux.Lchownat(dir, name, n.owner[0], n.owner[1]); err != nil {
		return err
	}
	if n.typ != unix.S_IFLNK {
		if err := linux.Fchmodat(dir, name, n.mode); err != nil {
			return err
		}
	}
	for _, x := range n.xattrs {
		if err := linux.Lset(below(dir, name), x.name, []byte(x.value)); err != nil {
			return err
		}
	}
	if err := linux.Lutimesat(dir, name, n.mtime, n.mtime); err != nil {
		return err
	}
	return n.check(dir, name)
}

// check compares a path with what it is to be like.
func (n *node) check(dir int, name string) error {
	var st unix.Stat_t
	if err := linux.Lstatat(dir, name, &st); err != nil {
		return err
	}
	hasACL := slices.ContainsFunc(n.xattrs, func(x xattr) bool { return x.name == aclAccess })
	for _, c := range []struct {
		what      string
		have, got any
		skip      bool
	}{
		{"type", n.typ, st.Mode & unix.S_IFMT, false},
		{"mode", n.mode, st.Mode &^ unix.S_IFMT, hasACL},
		{"owner", n.owner, [2]uint32{st.Uid, st.Gid}, false},
		{"size", n.size, st.Size, n.typ != unix.S_IFREG},
		{"device", n.rdev, uint64(st.Rdev), false}, //nolint:unconvert // 32 bits wide on some architectures
		{"time", n.mtime, st.Mtim, false},
	} {
		if !c.skip && c.have != c.got {
			return &notKeptError{c.what, fmt.Sprint(c.have), fmt.Sprint(c.got)}
		}
	}
	var buf linux.XattrBuffer
	for _, x := range n.xattrs {
		v, err := buf.Lget(below(dir, name), x.name)
		if err != nil {
			return err
		}
		// A capability of root user 0 is shown as one without a root user.
		if string(v) != x.value && x.name != capability {
			return &notKeptError{x.name, fmt.Sprintf("%d bytes", len(x.value)), fmt.Sprintf("%d others", len(v))}
		}
	}
	return nil
}

// notKeptError says that something is not what it was made to be.
type notKeptError struct{ what, have, got string }

// Error implements error.
func (e *notKeptError) Error() string {
	return fmt.Sprintf("%s was set to %s and is %s", e.what, e.have, e.got)
}

// changeFlags sets those of the lasting inode flags of a file or directory that
// are in set, and clears the others.
func changeFlags(dir int, name string, set int) error {
	fd, err := linux.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	f, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(f)&^lastingFlags|set)
	}
	if err != nil {
		err = fmt.Errorf("change inode flags of %.100q: %w", name, err)
	}
	return errors.Join(err, linux.Close(fd))
}

// Inode flags that keep a file from being deleted (include/uapi/linux/fs.h).
const (
	immutable    = 0x10
	appendOnly   = 0x20
	lastingFlags = immutable | appendOnly
)
