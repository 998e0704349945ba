// Package metacopy is the engine that makes a directory tree of metadata-only
// files: inodes with the shifted owners and the size of the original, which
// overlay completes with the data of the file at the same path in the layers
// below (overlayfs.rst, section "Metadata only copy up"). It is written
// directly, never through an overlay mount.
//
// The tree is the merged view of the chain, so a name in it has neither a
// whiteout nor an opaque directory between itself and its data: the data is
// always the topmost file of that name in the layers below, without any
// redirect.
package metacopy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/tree"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
)

// Engine is the metacopy engine.
type Engine struct{}

var _ engine.Recycler = Engine{}

// Name implements engine.Engine.
func (Engine) Name() string { return "metacopy" }

// Format implements engine.Builder.
func (Engine) Format() int { return 1 }

// Check implements engine.Engine.
func (Engine) Check(env engine.Env) error {
	if env.Metacopy != "" {
		return errors.New(env.Metacopy)
	}
	return nil
}

// Lower implements engine.Builder.
func (Engine) Lower(dir string) string { return filepath.Join(dir, "tree") }

// Build implements engine.Builder.
func (e Engine) Build(ctx context.Context, dir string, job engine.Job) error {
	return tree.Build(ctx, e.Lower(dir), filepath.Join(dir, "links"), job, tree.Fill{
		File:    withoutData,
		Crowded: func(f tree.File, fd int) error { return withData(ctx, f, fd) },
	})
}

// Recycle implements engine.Recycler.
func (e Engine) Recycle(ctx context.Context, dir string, job engine.Job) error {
	return tree.Recycle(ctx, e.Lower(dir), job)
}

// withoutData gives a new file its size and the mark that the data is below.
// An empty file needs neither.
func withoutData(e tree.File, fd int) error {
	if e.Stat.Size == 0 {
		return nil
	}
	if err := linux.Ftruncate(fd, e.Name, e.Stat.Size); err != nil {
		return err
	}
	return linux.Fset(fd, e.Name, ovl.Metacopy, nil)
}

// withData makes a file whole whose own attributes leave no room for the mark:
// ext4 has little more than a block for all of them.
func withData(ctx context.Context, e tree.File, fd int) error {
	if err := unix.Fremovexattr(fd, ovl.Metacopy); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("remove mark of %s: %w", e.Name, err)
	}
	return e.Copy(ctx, fd)
}
