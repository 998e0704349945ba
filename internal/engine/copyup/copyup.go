// Package copyup is the engine of last resort: a real copy of the image with
// shifted owners, sharing data where the file system can (FICLONE), copying
// it otherwise. It works wherever overlay does.
package copyup

import (
	"context"
	"path/filepath"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/tree"
)

// Engine is the copyup engine.
type Engine struct{}

var _ engine.Resumer = Engine{}

// Name implements engine.Engine.
func (Engine) Name() string { return "copyup" }

// Format implements engine.Builder.
func (Engine) Format() int { return 1 }

// Check implements engine.Engine.
func (Engine) Check(engine.Env) error { return nil }

// Lower implements engine.Builder.
func (Engine) Lower(dir string) string { return filepath.Join(dir, "tree") }

// Build implements engine.Builder.
func (e Engine) Build(ctx context.Context, dir string, job engine.Job) error {
	return tree.Build(ctx, e.Lower(dir), filepath.Join(dir, "links"), job, fill(ctx))
}

// Resume implements engine.Resumer.
func (e Engine) Resume(ctx context.Context, dir string, job engine.Job) error {
	return tree.Resume(ctx, e.Lower(dir), filepath.Join(dir, "links"), job, fill(ctx))
}

func fill(ctx context.Context) tree.Fill {
	return tree.Fill{File: func(f tree.File, fd int) error { return f.Copy(ctx, fd) }}
}
