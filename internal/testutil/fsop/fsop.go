// Package fsop changes directory trees for tests, as programs in a container
// do: single operations (Ops), a tree that has one of everything (MakeImage)
// and random sequences of operations that a seed makes repeatable (Player). It
// knows nothing of overlay. It is for tests only; it works by path and trusts
// the tree.
package fsop

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Ops changes the tree below Root. All paths are relative to Root and owners
// are container IDs. It has no state of its own.
type Ops struct {
	Root string
	// Mapping translates owners to those on disk, for a process outside of
	// the container; zero if container IDs are to be used as they are.
	Mapping idshift.Mapping
	// NoLowerACL says that Root is an overlay whose lower can have no ACL set:
	// SetACL then copies up first, as who meets that error would.
	NoLowerACL bool
}

// At returns the path of something below Root.
func (o Ops) At(p string) string { return filepath.Join(o.Root, p) }

// host translates container IDs; an ID outside of the mapping stays.
func (o Ops) host(uid, gid uint32) (hostUID, hostGID int) {
	if o.Mapping.IsZero() {
		return int(uid), int(gid)
	}
	u, g, ok := o.Mapping.ToHost(uid, gid)
	if !ok {
		return int(uid), int(gid)
	}
	return int(u), int(g)
}

// made gives something new to the container's root user.
func (o Ops) made(p string, err error) error {
	if err != nil || o.Mapping.IsZero() {
		return err
	}
	return o.keepMode(p, func() error {
		u, g := o.host(0, 0)
		return os.Lchown(o.At(p), u, g)
	})
}

// keepMode restores the mode bits that do takes away.
func (o Ops) keepMode(p string, do func() error) error {
	st, err := o.Stat(p)
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Chmod(o.At(p), st.Mode&0o7777)
}

// Stat is lstat(2).
func (o Ops) Stat(p string) (st unix.Stat_t, err error) {
	if err = unix.Lstat(o.At(p), &st); err != nil {
		err = &os.PathError{Op: "lstat", Path: p, Err: err}
	}
	return st, err
}

// Exists tells whether there is anything under a name.
func (o Ops) Exists(p string) bool {
	_, err := o.Stat(p)
	return err == nil
}

// Write makes a file, or replaces the content of one.
func (o Ops) Write(p, content string) error {
	if o.Exists(p) {
		return os.WriteFile(o.At(p), []byte(content), 0o644)
	}
	return o.made(p, os.WriteFile(o.At(p), []byte(content), 0o644))
}

// Append writes at the end of a file.
func (o Ops) Append(p, content string) error {
	f, err := os.OpenFile(o.At(p), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// Truncate cuts a file, or makes it longer with a hole.
func (o Ops) Truncate(p string, size int64) error { return os.Truncate(o.At(p), size) }

// Mkdir makes a directory.
func (o Ops) Mkdir(p string) error { return o.made(p, os.Mkdir(o.At(p), 0o755)) }

// Symlink makes a symbolic link.
func (o Ops) Symlink(target, p string) error { return o.made(p, os.Symlink(target, o.At(p))) }

// Link makes another name for something.
func (o Ops) Link(old, p string) error { return os.Link(o.At(old), o.At(p)) }

// Rename is rename(2), which unlike os.Rename replaces an empty directory.
func (o Ops) Rename(old, p string) error {
	if err := unix.Rename(o.At(old), o.At(p)); err != nil {
		return &os.LinkError{Op: "rename", Old: old, New: p, Err: err}
	}
	return nil
}

// Remove deletes something, with all that is in it.
func (o Ops) Remove(p string) error { return os.RemoveAll(o.At(p)) }

// Mknod makes a device, fifo or socket; mode holds the type.
func (o Ops) Mknod(p string, mode, major, minor uint32) error {
	err := unix.Mknod(o.At(p), mode, int(unix.Mkdev(major, minor))) //nolint:gosec // a small number
	if err != nil {
		return &os.PathError{Op: "mknod", Path: p, Err: err}
	}
	return o.made(p, nil)
}

// Chmod changes the mode; unlike os.Chmod it takes the bits of stat(2).
func (o Ops) Chmod(p string, mode uint32) error {
	if err := unix.Chmod(o.At(p), mode); err != nil {
		return &os.PathError{Op: "chmod", Path: p, Err: err}
	}
	return nil
}

// Chown changes the owner, of a symbolic link itself.
func (o Ops) Chown(p string, uid, gid uint32) error {
	u, g := o.host(uid, gid)
	return os.Lchown(o.At(p), u, g)
}

// Times sets access and modification time.
func (o Ops) Times(p string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	err := unix.UtimesNanoAt(unix.AT_FDCWD, o.At(p), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "utimensat", Path: p, Err: err}
	}
	return nil
}

// SetXattr sets an extended attribute.
func (o Ops) SetXattr(p, name, value string) error {
	if err := unix.Lsetxattr(o.At(p), name, []byte(value), 0); err != nil {
		return &os.PathError{Op: "setxattr " + name, Path: p, Err: err}
	}
	return nil
}

// RemoveXattr removes an extended attribute.
func (o Ops) RemoveXattr(p, name string) error {
	if err := unix.Lremovexattr(o.At(p), name); err != nil {
		return &os.PathError{Op: "removexattr " + name, Path: p, Err: err}
	}
	return nil
}

// SetCap sets a file capability of the container's root user: what setcap(8)
// does inside.
func (o Ops) SetCap(p string, caps uint32) error {
	v := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, n := range []uint32{caps, 0, 0, 0} {
		v = binary.LittleEndian.AppendUint32(v, n)
	}
	if root, _ := o.host(0, 0); root != 0 {
		v[3] = 3
		v = binary.LittleEndian.AppendUint32(v, uint32(root))
	}
	return o.SetXattr(p, idshift.Capability, string(v))
}

// SetACL gives a user and a group rights of their own, in the ACL called name
// (idshift.ACLAccess or idshift.ACLDefault): what setfacl(1) does inside.
func (o Ops) SetACL(p, name string, uid, gid uint32) error {
	u, g := o.host(uid, gid)
	v := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{0x01, 7, 0xffffffff},
		{0x02, 6, uint32(u)},
		{0x04, 5, 0xffffffff},
		{0x08, 4, uint32(g)},
		{0x10, 7, 0xffffffff},
		{0x20, 1, 0xffffffff},
	} {
		v = binary.LittleEndian.AppendUint16(v, e.tag)
		v = binary.LittleEndian.AppendUint16(v, e.perm)
		v = binary.LittleEndian.AppendUint32(v, e.id)
	}
	err := o.SetXattr(p, name, string(v))
	if o.NoLowerACL && errors.Is(err, unix.ENOTSUP) {
		if err := o.touchAtime(p); err != nil {
			return err
		}
		err = o.SetXattr(p, name, string(v))
	}
	return err
}

// touchAtime changes nothing but the access time, which makes overlay copy the
// inode up.
func (o Ops) touchAtime(p string) error {
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, o.At(p), now, unix.AT_SYMLINK_NOFOLLOW)
}

// All runs one operation after the other until one fails.
func All(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}
