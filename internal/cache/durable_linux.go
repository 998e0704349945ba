package cache

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// MarkDurable makes an entry one that is trusted after a crash: it has the
// file system write everything out (syncfs(2), which may take long and is not
// cancelled), and then sets the mark. It does nothing if the mark is there.
// The error is a *MissError if there is no entry, or one that cannot be
// trusted now.
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
	if err := linux.Syncfs(fd, e.path); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	mark, err := c.createMark(ctx, fd, ref)
	if err != nil {
		return err
	}
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
