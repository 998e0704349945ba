package tree_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/tree"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// errDied is why a build ends in the middle of a file.
var errDied = errors.New("died here")

// resumeJob is an image that has one of everything, hard links in several folders
// and a folder of many files.
func resumeJob(t *testing.T) engine.Job {
	t.Helper()
	testutil.RequireRoot(t)
	layer := filepath.Join(testutil.LoopFS(t, "ext4", 64<<20), "layer")
	require.NoError(t, os.Mkdir(layer, 0o755))
	o := fsop.Ops{Root: layer}
	require.NoError(t, fsop.MakeImage(o))
	for i := range 40 {
		require.NoError(t, o.Write(fmt.Sprintf("void/%02d", i), "many"))
	}
	require.NoError(t, o.Link("links/one", "usr/share/linked"))
	require.NoError(t, o.Link("links/one", "void/linked"))
	require.NoError(t, o.Link("void/07", "etc/conf.d/linked"))
	m, err := idshift.ParseMapping("0:200000:65536", "0:200000:65536")
	require.NoError(t, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	return engine.Job{Chain: []string{layer}, Shift: s, Workers: 1}
}

// fill copies, counts, and dies at a file; 0 for none.
func fill(ctx context.Context, count *atomic.Int64, die int64) tree.Fill {
	return tree.Fill{File: func(f tree.File, fd int) error {
		if count.Add(1) == die {
			return errDied
		}
		return f.Copy(ctx, fd)
	}}
}

// show reads a tree that was built.
func show(t *testing.T, root string) *referee.Tree {
	t.Helper()
	out, err := referee.Scan(t.Context(), root, referee.Options{Content: true, OverlayXattrs: true})
	require.NoError(t, err)
	return out
}

// TestResume dies at each file of a build, goes on, and compares the result with
// that of a build that nothing happened to.
func TestResume(t *testing.T) {
	job := resumeJob(t)
	dir := filepath.Dir(job.Chain[0])
	whole, links := filepath.Join(dir, "whole"), filepath.Join(dir, "links")
	var files atomic.Int64
	require.NoError(t, tree.Build(t.Context(), whole, links, job, fill(t.Context(), &files, 0)))
	require.NoDirExists(t, links)
	want := show(t, whole)
	require.Greater(t, files.Load(), int64(50))
	again := int64(0)
	for n := int64(1); n <= files.Load(); n++ {
		root := filepath.Join(dir, "root")
		var first, second atomic.Int64
		require.ErrorIs(t, tree.Build(t.Context(), root, links, job, fill(t.Context(), &first, n)), errDied)
		require.NoError(t, tree.Resume(t.Context(), root, links, job, fill(t.Context(), &second, 0)))
		require.Empty(t, referee.Compare(want, show(t, root), referee.Options{Content: true, OverlayXattrs: true}), "died at file %d", n)
		require.NoDirExists(t, links)
		again += first.Load() + second.Load() - files.Load()
		require.NoError(t, os.RemoveAll(root))
	}
	// One file each time, and hard links that were not kept in time.
	assert.LessOrEqual(t, again, 3*files.Load(), "files that were made twice")
}

// TestResumeProgress: a build that dies each time after a few files comes to its end.
func TestResumeProgress(t *testing.T) {
	job := resumeJob(t)
	dir := filepath.Dir(job.Chain[0])
	root, links := filepath.Join(dir, "root"), filepath.Join(dir, "links")
	var count atomic.Int64
	err := tree.Build(t.Context(), root, links, job, fill(t.Context(), &count, 5))
	tries := 1
	for ; err != nil && tries < 100; tries++ {
		require.ErrorIs(t, err, errDied)
		count.Store(0)
		err = tree.Resume(t.Context(), root, links, job, fill(t.Context(), &count, 5))
	}
	require.NoError(t, err)
	assert.Greater(t, tries, 5)
	whole := filepath.Join(dir, "whole")
	require.NoError(t, tree.Build(t.Context(), whole, links, job, fill(t.Context(), &count, 0)))
	assert.Empty(t, referee.Compare(show(t, whole), show(t, root), referee.Options{Content: true, OverlayXattrs: true}))
}

// TestResumeEnded: who dies when the tree is complete, and its folder of links is
// gone, leaves nothing to do.
func TestResumeEnded(t *testing.T) {
	job := resumeJob(t)
	dir := filepath.Dir(job.Chain[0])
	root, links := filepath.Join(dir, "root"), filepath.Join(dir, "links")
	var count atomic.Int64
	require.NoError(t, tree.Build(t.Context(), root, links, job, fill(t.Context(), &count, 0)))
	want := show(t, root)
	count.Store(0)
	require.NoError(t, tree.Resume(t.Context(), root, links, job, fill(t.Context(), &count, 0)))
	assert.Zero(t, count.Load())
	assert.Empty(t, referee.Compare(want, show(t, root), referee.Options{Content: true, OverlayXattrs: true}))
	assert.NoDirExists(t, links)
}

// TestResumeChanged: without the folder of links nobody can tell which names belong
// together, and files that are not as they were made are made anew.
func TestResumeChanged(t *testing.T) {
	job := resumeJob(t)
	dir := filepath.Dir(job.Chain[0])
	root, links := filepath.Join(dir, "root"), filepath.Join(dir, "links")
	var count atomic.Int64
	require.ErrorIs(t, tree.Build(t.Context(), root, links, job, fill(t.Context(), &count, 60)), errDied)
	require.NoError(t, os.RemoveAll(links))
	require.ErrorIs(t, tree.Resume(t.Context(), root, links, job, fill(t.Context(), &count, 0)), tree.ErrChanged)
}
