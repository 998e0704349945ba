package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
)

// A layer that is mounted is mounted again when the library compares it with its
// image, for a commit of a running container or in a build: it counts the users
// of mounts of fuse-overlayfs only. It then takes the mount away that it sees, and
// puts another folder in the place of the mount point, which fails if a mount is
// still there. So the second mount takes the place of the first, and a process
// of its own, the keeper, puts the first one back afterwards.

// Keeper starts a process that calls Keep, with the same arguments.
type Keeper func(tree, caller *os.File, point MountPoint) error

// MountPoint is a folder where something is mounted, with its own inode number.
type MountPoint struct {
	Path  string
	Inode uint64
}

// setAside takes what is mounted at the target away, for as long as another
// mount is there. replace makes that; with nil, the first mount stays and serves
// as the second.
func (m *programMount) setAside(keeper Keeper, replace func() error) error {
	target := m.call.Target
	inode, err := entryInode(target)
	if err != nil {
		return err
	}
	old, err := mounts.Clone(target)
	if err != nil {
		return err
	}
	defer old.Close()
	if replace != nil {
		if err := mounts.Detach(target); err != nil {
			return err
		}
		if err := replace(); err != nil {
			return errors.Join(err, old.Attach(target))
		}
	}
	f, err := old.File()
	if err != nil {
		return err
	}
	defer f.Close()
	caller, err := unix.PidfdOpen(os.Getppid(), 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	who := os.NewFile(uintptr(caller), "caller") //nolint:gosec // a descriptor
	defer who.Close()
	return keeper(f, who, MountPoint{target, inode})
}

// Keep waits until the mount at a folder is gone and the library has changed the
// mount point, and attaches the tree there, unless the layer is gone or
// something else has been mounted. caller is a process, as pidfd_open(2) has it: if
// that ends while the mount is there, nobody will take it away but for good, and
// the tree is given up.
func Keep(ctx context.Context, tree, caller *os.File, point MountPoint) error {
	target, before := point.Path, point.Inode
	changes, err := linux.Openat(unix.AT_FDCWD, "/proc/self/mountinfo", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = linux.Close(changes) }()
	wait := []unix.PollFd{
		// A change of the mount table is an exceptional condition (proc(5)).
		{Fd: int32(changes), Events: unix.POLLPRI},    //nolint:gosec // a descriptor
		{Fd: int32(caller.Fd()), Events: unix.POLLIN}, //nolint:gosec // likewise
	}
	for mounted(target) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if wait[1].Revents != 0 {
			return nil // it had ended before we looked for the mount
		}
		if _, err := unix.Poll(wait, 500); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
	}
	// Versions before 1.54 of the library remove the mount point, newer ones
	// replace it.
	const patience = 2 * time.Second
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		now, err := entryInode(target)
		if errors.Is(err, os.ErrNotExist) || err == nil && now != before {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		if errors.Is(err, os.ErrNotExist) {
			return nil // the layer is gone
		}
		return err
	}
	if mounted(target) {
		return nil
	}
	return mounts.FromFile(tree).Attach(target)
}

// entryInode is the inode number that a path's folder has for it, whatever is
// mounted there.
func entryInode(path string) (uint64, error) {
	dir, err := linux.OpenDir(unix.AT_FDCWD, filepath.Dir(path))
	if err != nil {
		return 0, err
	}
	defer func() { _ = linux.Close(dir) }()
	var buf linux.DirBuffer
	var ino uint64
	err = buf.ReadInodes(dir, filepath.Dir(path), func(name string, n uint64) {
		if name == filepath.Base(path) {
			ino = n
		}
	})
	if err == nil && ino == 0 {
		err = fmt.Errorf("%s: %w", path, os.ErrNotExist)
	}
	return ino, err
}
