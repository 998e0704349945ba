package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
)

// A layer that is mounted is mounted again when the library compares it with its
// image, for a commit of a running container or in a build: it counts the users
// of mounts of fuse-overlayfs only. It then takes the mount away that it sees, and
// puts another folder in the place of the mount point, which fails if a mount is
// still there. So the second mount takes the place of the first, and a process
// of its own, the keeper, puts the first one back afterwards.
//
// The keeper is there before anything is changed, and knows when the mount program
// and the engine that has called it end, so that the first mount comes back
// whoever of them dies.

// Keeper starts a process that calls Keep, with the same arguments, and has lock open
// until it ends.
type Keeper func(tree, caller, program, lock *os.File, point MountPoint) error

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
	f, err := old.File()
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := unix.PidfdOpen(m.p.caller, 0)
	if err == nil && os.Getppid() != m.p.caller {
		err = errors.Join(unix.ESRCH, unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("find the process that asked for the mount: %w", err)
	}
	who := os.NewFile(uintptr(fd), "caller") //nolint:gosec // a descriptor
	defer who.Close()
	// The keeper is told that the second mount is there, and sees that we are dead.
	alive, done, err := os.Pipe()
	if err != nil {
		return err
	}
	defer done.Close()
	defer alive.Close()
	if err := os.MkdirAll(filepath.Join(m.p.runHome, keepFolder), 0o700); err != nil {
		return fmt.Errorf("note the keeper of a mount: %w", err)
	}
	lock, err := m.p.keeping(m.id, os.O_CREATE, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := keeper(f, who, alive, lock, MountPoint{target, inode}); err != nil {
		return err
	}
	failpoint.Hit("program-keeper")
	if replace != nil {
		if err := mounts.Detach(target); err != nil {
			return err
		}
		failpoint.Hit("program-set-aside")
		if err := replace(); err != nil {
			return err
		}
		failpoint.Hit("program-replaced")
	}
	_, err = done.Write([]byte{1})
	return err
}

// keepFolder, in the run folder, has a file for each layer with a keeper: keepers hold a
// shared lock on it.
const keepFolder = "keep"

// keeping opens and locks the file of a layer.
func (p *Program) keeping(id string, flags, lock int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(p.runHome, keepFolder, id), os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("note the keeper of a mount: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), lock); err != nil { //nolint:gosec // a descriptor
		return nil, errors.Join(fmt.Errorf("note the keeper of a mount: %w", err), f.Close())
	}
	return f, nil
}

// awaitKeeper waits while a keeper is about to put a mount back: the library mounts a
// layer again as soon as it has taken the second mount away.
func (m *programMount) awaitKeeper() error {
	const patience = keeperPatience + time.Second
	for end := time.Now().Add(patience); !mounted(m.call.Target) && time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		lock, err := m.p.keeping(m.id, 0, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return lock.Close()
		case errors.Is(err, os.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		}
	}
	return nil
}

// Keep waits until the mount at a folder is gone and the library has changed the
// mount point, and attaches the tree there, unless the layer is gone or
// something else has been mounted.
//
// caller is a process, as pidfd_open(2) has it: if that ends while the mount is
// there, nobody will take it away, so it goes and the tree takes its place, if it
// is not the first one. program is a pipe that brings a byte when the other mount has
// been made, and ends when none will be.
func Keep(ctx context.Context, tree, caller, program *os.File, point MountPoint) error {
	failpoint.Hit("keep-begun")
	patience := keeperPatience
	switch _, err := program.Read(make([]byte, 1)); {
	case errors.Is(err, io.EOF):
		patience = failedPatience
	case err != nil:
		return fmt.Errorf("wait for the mount program: %w", err)
	}
	ended, err := waitUnmounted(ctx, point.Path, caller)
	if err != nil {
		return err
	}
	if ended {
		same, err := shows(point.Path, tree)
		if err != nil || same {
			return err
		}
		if err := mounts.Detach(point.Path); err != nil {
			return err
		}
	} else if err := waitReplaced(point, caller, patience); err != nil {
		return err
	}
	failpoint.Hit("keep-unmounted")
	if err := os.Mkdir(point.Path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		if errors.Is(err, os.ErrNotExist) {
			return nil // the layer is gone
		}
		return err
	}
	if mounted(point.Path) {
		return nil
	}
	failpoint.Hit("keep-folder")
	err = mounts.FromFile(tree).Attach(point.Path)
	failpoint.Hit("keep-attached")
	return err
}

// shows tells whether what is mounted at a folder is the file system of a tree.
func shows(target string, tree *os.File) (bool, error) {
	var here, its unix.Stat_t
	if err := unix.Lstat(target, &here); err != nil {
		return false, &os.PathError{Op: "lstat", Path: target, Err: err}
	}
	err := unix.Fstat(int(tree.Fd()), &its) //nolint:gosec // a descriptor
	return here.Dev == its.Dev, os.NewSyscallError("fstat", err)
}

// waitUnmounted waits until nothing is mounted at a folder, or a process has
// ended, of which it returns the latter.
func waitUnmounted(ctx context.Context, target string, caller *os.File) (ended bool, err error) {
	changes, err := linux.Openat(unix.AT_FDCWD, "/proc/self/mountinfo", unix.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = linux.Close(changes) }()
	wait := []unix.PollFd{
		// A change of the mount table is an exceptional condition (proc(5)).
		{Fd: int32(changes), Events: unix.POLLPRI},    //nolint:gosec // a descriptor
		{Fd: int32(caller.Fd()), Events: unix.POLLIN}, //nolint:gosec // likewise
	}
	for mounted(target) {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if wait[1].Revents != 0 {
			return true, nil // it had ended before we looked for the mount
		}
		if _, err := unix.Poll(wait, 500); err != nil && !errors.Is(err, unix.EINTR) {
			return false, os.NewSyscallError("poll", err)
		}
	}
	return false, nil
}

// keeperPatience is how long a keeper waits for a new mount point: making a folder
// can take seconds on a busy disk. failedPatience is the same after a second mount
// that has failed: the library takes away what is there, and makes no new one.
const (
	keeperPatience = time.Minute
	failedPatience = 2 * time.Second
)

// waitReplaced waits until the library has changed the mount point after it took
// the mount away: versions before 1.54 of it remove the folder, newer ones
// replace it.
func waitReplaced(point MountPoint, caller *os.File, patience time.Duration) error {
	ended := []unix.PollFd{{Fd: int32(caller.Fd()), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		now, err := entryInode(point.Path)
		if errors.Is(err, os.ErrNotExist) || err == nil && now != point.Inode {
			break
		}
		if err != nil {
			return err
		}
		if _, err := unix.Poll(ended, 0); err == nil && ended[0].Revents != 0 {
			break
		}
	}
	return nil
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
