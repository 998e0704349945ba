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
//
// In a user namespace the kernel follows a metadata-only file only into
// data-only lowers, and only by a redirect (since Linux 6.16 or so; roots.go
// says which). Whiteouts mean nothing there: of all regular files at the path
// the uppermost is taken, which is the right one for the reason above.
package metacopy

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/tree"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Engine is the metacopy engine.
type Engine struct{}

var (
	_ engine.Recycler   = Engine{}
	_ engine.Redirector = Engine{}
	_ engine.Resumer    = Engine{}
)

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
	m := marker{ctx: ctx}
	if job.Rootless {
		r, err := findRoots(ctx, job.Chain)
		if err != nil {
			return err
		}
		defer r.close()
		if err := r.write(dir); err != nil {
			return err
		}
		m.roots = r
	}
	return tree.Build(ctx, e.Lower(dir), filepath.Join(dir, "links"), job, m.fill())
}

// errRoots says why the rootless form is always made from its beginning.
var errRoots = errors.New("another choice of data-only lowers may have been made for what is there")

// Resume implements engine.Resumer.
func (e Engine) Resume(ctx context.Context, dir string, job engine.Job) error {
	if job.Rootless {
		return errRoots
	}
	return tree.Resume(ctx, e.Lower(dir), filepath.Join(dir, "links"), job, marker{ctx: ctx}.fill())
}

func (m marker) fill() tree.Fill { return tree.Fill{File: m.withoutData, Crowded: m.withData} }

// Recycle implements engine.Recycler.
func (e Engine) Recycle(ctx context.Context, dir string, job engine.Job) error {
	return tree.Recycle(ctx, e.Lower(dir), job)
}

// Data implements engine.Redirector.
func (e Engine) Data(dir string, chain []string) ([]string, []*mount.Tree, error) {
	paths, err := readRoots(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil // it was not made for an ordinary user
	}
	if err != nil {
		return nil, nil, err
	}
	trees, err := mountRoots(paths, filepath.Join(dir, emptyName), chain)
	return chain, trees, err
}

// marker marks files as those without data.
type marker struct {
	ctx   context.Context
	roots *roots // nil if files need no redirect
}

// Attributes of the rootless form.
var (
	userMetacopy = idshift.UserOverlay.Attribute("metacopy")
	userRedirect = idshift.UserOverlay.Attribute("redirect")
)

// withoutData gives a new file its size and the mark that the data is below.
// An empty file needs neither.
func (m marker) withoutData(f tree.File, fd int) error {
	if f.Stat.Size == 0 {
		return nil
	}
	if err := linux.Ftruncate(fd, f.Name, f.Stat.Size); err != nil {
		return err
	}
	if m.roots == nil {
		return linux.Fset(fd, f.Name, ovl.Metacopy, nil) // trusted.* ask for no right to write
	}
	to := m.roots.redirect(f.Path())
	if len(to) >= unix.PathMax {
		return unix.ENOSPC // not to be looked up by one path: it is made whole
	}
	// In this order: see shortRedirect.
	if err := f.Set(fd, userRedirect, []byte(to)); err != nil {
		return err
	}
	return f.Set(fd, userMetacopy, nil)
}

// withData makes a file whole whose own attributes leave no room for the mark:
// ext4 has little more than a block for all of them.
func (m marker) withData(f tree.File, fd int) error {
	marks := []string{ovl.Metacopy}
	if m.roots != nil {
		marks = []string{userMetacopy, userRedirect}
	}
	for _, name := range marks {
		if err := f.Unset(fd, name); err != nil {
			return err
		}
	}
	return f.Copy(m.ctx, fd)
}
