package shifter

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// What is free in such numbers need not be counted against an image.
const (
	plentyInodes = 4 << 20
	plentyBytes  = 8 << 30
)

// entryBytes is more than an inode without data and its name take on a file
// system (docs/bench, metacopy: 340 to 500 bytes on ext4, 590 to 630 on xfs).
const entryBytes = 1 << 10

// preflight is an error that is unix.ENOSPC if the file system of dir has fewer
// free inodes than a tree of the chain needs, or too few blocks for them. File
// data is not counted, and nothing is where plenty is free. Other errors say that
// it could not be found out.
func preflight(ctx context.Context, dir string, job engine.Job) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return fits(ctx, &fs, job)
}

func fits(ctx context.Context, fs *unix.Statfs_t, job engine.Job) error {
	inodes := int64(fs.Ffree) //nolint:gosec // no file system has 2^63
	if fs.Files == 0 {
		inodes = plentyInodes // made as they are needed, as on btrfs
	}
	bytes := int64(fs.Bavail) * int64(fs.Bsize) //nolint:gosec // likewise
	if inodes >= plentyInodes && bytes >= plentyBytes {
		return nil
	}
	enough := func(entries int64) bool { return entries <= inodes && entries <= bytes/entryBytes }
	// The sum of all layers is cheap to have, and nearly always enough.
	sum := -int64(len(job.Chain)) // without the roots
	var buf linux.DirBuffer
	for _, layer := range job.Chain {
		fd, err := linux.OpenDir(unix.AT_FDCWD, layer)
		if err != nil {
			return err
		}
		err = buf.Walk(fd, layer, func(_ int, _ string, names []linux.Dirent) error {
			sum += 1 + int64(len(names))
			return ctx.Err()
		})
		_ = linux.Close(fd)
		if err != nil {
			return err
		}
	}
	if enough(sum) {
		return nil
	}
	var entries atomic.Int64
	job.Workers, job.Done = 0, func(n int) { entries.Add(int64(n)) }
	if err := job.Walk(ctx, countOnly{}); err != nil {
		return err
	}
	if n := entries.Load() + 1; !enough(n) {
		return fmt.Errorf("the image has %d files and folders, for which %d inodes and about %d MiB are needed: %w", n, n, (n*entryBytes)>>20, unix.ENOSPC)
	}
	return nil
}

// countOnly is the sink of a walk that is done for its Done.
type countOnly struct{}

func (countOnly) Directory(context.Context, *idshift.Dir) error { return nil }
func (countOnly) Release(*idshift.Dir)                          {}
