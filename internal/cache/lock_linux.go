package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// Waiting for a lock polls, because flock(2) cannot be cancelled: at first
// often, as most locks are held for microseconds, then seldom enough that
// dozens of waiters do not show up in a profile.
const (
	pollMin = time.Millisecond
	pollMax = 25 * time.Millisecond
)

// errBusy says that somebody else holds a lock.
var errBusy = errors.New("locked by somebody else")

// flock is flock(2) without waiting.
func flock(fd int, path string, how int) error {
	for {
		err := unix.Flock(fd, how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return errBusy
		default:
			return &os.PathError{Op: "flock", Path: path, Err: err}
		}
	}
}

// unlock releases a lock and closes its file. Closing alone would not do: a
// child that is just being forked shares the lock until it calls execve(2).
func unlock(fd int) {
	_ = unix.Flock(fd, unix.LOCK_UN)
	_ = unix.Close(fd)
}

// poll calls try until it returns something other than errBusy or ctx ends.
func poll(ctx context.Context, try func() error) error {
	var timer *time.Timer
	for wait := pollMin; ; wait = min(wait*2, pollMax) {
		if err := try(); !errors.Is(err, errBusy) {
			return err
		}
		if timer == nil {
			timer = time.NewTimer(wait)
			defer timer.Stop()
		} else {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// sameFile reports whether path, relative to the folder dirfd, still names the
// open file fd. A lock counts only then: the file may have been renamed or
// unlinked before it was locked.
func sameFile(dirfd, fd int, path string) (bool, error) {
	var open, named unix.Stat_t
	if err := linux.Fstat(fd, path, &open); err != nil {
		return false, err
	}
	if err := linux.Lstatat(dirfd, path, &named); err != nil {
		if absent(err) {
			return false, nil
		}
		return false, err
	}
	return open.Dev == named.Dev && open.Ino == named.Ino, nil
}

// tryLock opens path, relative to the folder dirfd, creating it with O_CREAT in flags, and takes the lock.
// It returns errBusy when it is held, and an error that is ENOENT when the
// file is not there, or no longer.
func tryLock(dirfd int, path string, flags, how int) (int, error) {
	fd, err := linux.Openat(dirfd, path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, err
	}
	err = flock(fd, path, how)
	if err == nil {
		var same bool
		if same, err = sameFile(dirfd, fd, path); err == nil && same {
			return fd, nil
		}
		unlock(fd)
		if err == nil {
			err = &os.PathError{Op: "lock", Path: path, Err: unix.ENOENT}
		}
		return -1, err
	}
	_ = unix.Close(fd)
	return -1, err
}

// lockFile waits for the lock in path. With remove, unlock also unlinks the
// file; whoever opened it before looks again (see sameFile).
func lockFile(ctx context.Context, path string, remove bool) (release func(), err error) {
	fd := -1
	err = poll(ctx, func() error {
		for {
			fd, err = tryLock(unix.AT_FDCWD, path, unix.O_RDWR|unix.O_CREAT, unix.LOCK_EX)
			if err == nil || !errors.Is(err, unix.ENOENT) {
				return err
			}
			// Unlinked by the former owner, or the folder is gone.
			if _, err := os.Lstat(filepath.Dir(path)); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("wait for lock %q: %w", path, err)
	}
	failpoint.Hit("cache-locked")
	return func() {
		if remove {
			_ = unix.Unlink(path)
			failpoint.Hit("cache-unlocked")
		}
		unlock(fd)
	}, nil
}

// slotKey marks the context of a running build.
type slotKey struct{}

// buildSlot waits for one of the places that bound the number of builds. A
// build that needs another entry keeps its place for that, otherwise a single
// place would wait for itself.
func (c *Cache) buildSlot(ctx context.Context) (_ context.Context, release func(), err error) {
	if ctx.Value(slotKey{}) == c.dir {
		return ctx, func() {}, nil
	}
	fd := -1
	err = poll(ctx, func() error {
		for i := range c.maxBuilds {
			path := filepath.Join(c.dir, locksName, fmt.Sprintf("slot-%d", i))
			if fd, err = tryLock(unix.AT_FDCWD, path, unix.O_RDWR|unix.O_CREAT, unix.LOCK_EX); !errors.Is(err, errBusy) {
				return err
			}
		}
		return errBusy
	})
	if err != nil {
		return nil, nil, fmt.Errorf("wait for one of %d build slots in %q: %w", c.maxBuilds, filepath.Join(c.dir, locksName), err)
	}
	failpoint.Hit("cache-slot")
	return context.WithValue(ctx, slotKey{}, c.dir), func() { unlock(fd) }, nil
}
