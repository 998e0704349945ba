package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

const lockSuffix = ".lock"

// temp is a name in tmp/ that belongs to this process.
type temp struct {
	path string
	lock int // of path + lockSuffix, or -1
}

// newTemp reserves a name in tmp/, and takes its lock before anything of that
// name can exist.
func (c *Cache) newTemp() (*temp, error) {
	for {
		path := filepath.Join(c.dir, tmpName, rand.Text())
		fd, err := tryLock(unix.AT_FDCWD, path+lockSuffix, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, unix.LOCK_EX)
		switch {
		case err == nil:
			failpoint.Hit("cache-temp-lock")
			return &temp{path: path, lock: fd}, nil
		case errors.Is(err, errBusy), errors.Is(err, unix.EEXIST):
			// A sweep came between creation and lock, and will unlink it.
		case errors.Is(err, unix.ENOENT):
			if _, err := os.Lstat(filepath.Dir(path)); err != nil {
				return nil, fmt.Errorf("reserve temporary name: %w", err)
			}
		default:
			return nil, fmt.Errorf("reserve temporary name: %w", err)
		}
	}
}

// remove deletes what is there under the name, if anything, and gives the
// name back.
func (t *temp) remove() error {
	// First what says that it can be gone on with.
	if err := unlink(filepath.Join(t.path, begunName)); err != nil {
		t.abandon()
		return fmt.Errorf("remove %q: %w", t.path, err)
	}
	failpoint.Hit("cache-temp-remove")
	if err := removeTree(t.path); err != nil {
		t.abandon()
		return fmt.Errorf("remove %q: %w", t.path, err)
	}
	failpoint.Hit("cache-temp-removed")
	if t.lock >= 0 {
		_ = unix.Unlink(t.path + lockSuffix)
		failpoint.Hit("cache-temp-unlocked")
	}
	t.abandon()
	return nil
}

// abandon leaves everything to the next sweep.
func (t *temp) abandon() {
	if t != nil && t.lock >= 0 {
		unlock(t.lock)
		t.lock = -1
	}
}

// trash moves path, relative to the folder dirfd, out of the way, for the
// caller to remove. The error is ENOENT if it is not there.
func (c *Cache) trash(dirfd int, path string) (*temp, error) {
	tmp, err := c.newTemp()
	if noSpace(err) {
		// No inode for the lock. Without one it is everybody's to delete, and
		// that is what it is here for.
		tmp, err = &temp{path: filepath.Join(c.dir, tmpName, rand.Text()), lock: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := tmp.take(dirfd, path); err != nil {
		return nil, err
	}
	return tmp, nil
}

// take moves path, relative to the folder dirfd, to the reserved name, or
// gives the name back.
func (t *temp) take(dirfd int, path string) error {
	err := unix.Renameat(dirfd, path, unix.AT_FDCWD, t.path)
	if err == nil {
		failpoint.Hit("cache-taken")
		return nil
	}
	if t.lock >= 0 {
		_ = unix.Unlink(t.path + lockSuffix)
	}
	t.abandon()
	return &os.LinkError{Op: "rename", Old: path, New: t.path, Err: err}
}

// sweep deletes what the dead left in tmp/, but for builds that were begun less
// than keep ago, which the next builder may go on with.
func (c *Cache) sweep(ctx context.Context, keep time.Duration) error {
	dir := filepath.Join(c.dir, tmpName)
	names, err := readNames(dir)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	var errs []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		tmp := temp{path: filepath.Join(dir, strings.TrimSuffix(name, lockSuffix)), lock: -1}
		if c.begunWithin(tmp.path, keep) {
			continue
		}
		tmp.lock, err = tryLock(unix.AT_FDCWD, tmp.path+lockSuffix, unix.O_RDWR, unix.LOCK_EX)
		switch {
		case errors.Is(err, errBusy):
			continue // its owner lives
		case errors.Is(err, unix.ENOENT):
			// The lock is made before what it protects and unlinked after it,
			// and names are not used again: nobody owns this.
			tmp.lock = -1
			if _, err := os.Lstat(tmp.path); err != nil {
				continue
			}
		case err != nil:
			errs = append(errs, fmt.Errorf("clean up: %w", err))
			continue
		}
		c.logf("cache: clean up %s", tmp.path)
		if err := tmp.remove(); err != nil {
			errs = append(errs, fmt.Errorf("clean up: %w", err))
		}
	}
	return errors.Join(errs...)
}

// sweepLocks unlinks the key locks that dead builders left, and doubts of another
// boot.
func (c *Cache) sweepLocks() error {
	dir := filepath.Join(c.dir, locksName)
	names, err := readNames(dir)
	if err != nil {
		return fmt.Errorf("clean up locks: %w", err)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if name == doubtName {
			if boot, err := os.ReadFile(path); err == nil && string(boot) != c.bootID {
				_ = unix.Unlink(path)
			}
			continue
		}
		if !strings.HasSuffix(name, lockSuffix) {
			continue
		}
		if fd, err := tryLock(unix.AT_FDCWD, path, unix.O_RDWR, unix.LOCK_EX); err == nil {
			_ = unix.Unlink(path)
			unlock(fd)
		}
	}
	return nil
}

// readNames lists a folder; one that is not there, or is none, is empty.
func readNames(dir string) ([]string, error) { return readNamesAt(unix.AT_FDCWD, dir) }

// readNamesAt is readNames relative to the folder dirfd.
func readNamesAt(dirfd int, dir string) (names []string, err error) {
	fd, err := linux.OpenDir(dirfd, dir)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var b linux.DirBuffer
	err = b.Read(fd, dir, func(name string, _ uint8) error {
		names = append(names, name)
		return nil
	})
	if absent(err) {
		return nil, nil // removed while it was open (getdents64(2))
	}
	return names, err
}
