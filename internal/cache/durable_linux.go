package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// MarkDurable makes an entry one that is trusted after a crash: it has the
// file system write everything out (syncfs(2), which may take long and is not
// cancelled), and then sets the mark. It does nothing if the mark is there.
// The error is a *MissError if there is no entry, or one that cannot be
// trusted now, and ErrDoubtful if the disk has failed since the entry was built:
// it then stays as it is until the machine starts again.
func (c *Cache) MarkDurable(ctx context.Context, ref Ref) error {
	if err := checkLayer(ref.Layer); err != nil {
		return fmt.Errorf("mark cache entry %s durable: %w", ref, err)
	}
	if err := c.markDurable(ctx, ref); err != nil {
		return fmt.Errorf("mark cache entry %s durable: %w", ref, err)
	}
	return nil
}

func (c *Cache) markDurable(ctx context.Context, ref Ref) error {
	fd, err := c.openEntry(ctx, ref, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// Registering and trimming shall not wait for the disk.
	_ = unix.Flock(fd, unix.LOCK_UN)
	e, err := c.inspect(fd, ref)
	if err != nil || e.durable {
		return err
	}
	if c.doubtful(e) {
		return ErrDoubtful
	}
	err = linux.Syncfs(fd, e.path)
	if err == nil {
		err = c.written(ctx, filepath.Join(e.path, dataName))
	}
	if err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, c.doubt())
		}
		return err
	}
	failpoint.Hit("cache-synced")
	if err := ctx.Err(); err != nil {
		return err
	}
	mark, err := c.createMark(ctx, fd, ref)
	if err != nil {
		return err
	}
	failpoint.Hit("cache-marked")
	err = fsync(mark, durableName)
	_ = unix.Close(mark)
	if err != nil {
		return err
	}
	return fsync(fd, e.path)
}

// createMark makes the mark in the entry's folder fd and opens it, if the
// entry is still the one of ref: one that is being recycled must not get it.
func (c *Cache) createMark(ctx context.Context, fd int, ref Ref) (int, error) {
	path := c.path(ref)
	if err := poll(ctx, func() error { return flock(fd, path, unix.LOCK_SH) }); err != nil {
		return -1, err
	}
	defer func() { _ = unix.Flock(fd, unix.LOCK_UN) }()
	same, err := sameFile(unix.AT_FDCWD, fd, path)
	if err != nil {
		return -1, err
	}
	if !same {
		return -1, &MissError{Ref: ref, Reason: Absent}
	}
	return linux.Openat(fd, durableName, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
}

// fsync is fsync(2).
func fsync(fd int, name string) error {
	for {
		err := unix.Fsync(fd)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fsync", Path: name, Err: err}
		}
		return nil
	}
}

// written is an error if data of a file below a folder could not be written to the
// disk. The kernel tells of that once for each file and once for the file system
// (errseq, Documentation/core-api/errseq.rst), and what it told somebody else of
// the file system before syncfs(2) does not say again. A file that has left the
// kernel's memory since then is not noticed.
func (c *Cache) written(ctx context.Context, root string) error {
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case absent(err):
			return nil // the entry is being removed
		case err != nil || !entry.Type().IsRegular():
			return err
		}
		fd, err := linux.Openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		if absent(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE); err != nil {
			return &os.PathError{Op: "sync_file_range", Path: path, Err: err}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write out: %w", err)
	}
	return nil
}

// doubtName is the file that says since when the disk is known to fail: its
// modification time. What was built before that, in the boot that it names,
// may never have reached the disk, and nobody will say so again.
const doubtName = "doubt"

// doubt writes it.
func (c *Cache) doubt() error {
	path, now := filepath.Join(c.dir, locksName, doubtName), c.now()
	err := os.WriteFile(path, []byte(c.bootID), 0o600)
	if err == nil {
		err = os.Chtimes(path, now, now)
	}
	if err != nil {
		return fmt.Errorf("note that the disk fails: %w", err)
	}
	return nil
}

// doubtful says whether the disk has failed since an entry was built. One that
// cannot be read is a doubt, too.
func (c *Cache) doubtful(e *Entry) bool {
	path := filepath.Join(c.dir, locksName, doubtName)
	boot, err := os.ReadFile(path)
	if absent(err) || err == nil && string(boot) != c.bootID {
		return false
	}
	var since time.Time
	if st, serr := os.Stat(path); serr == nil {
		since = st.ModTime()
	}
	return err != nil || !e.meta.Built.After(since)
}
