package metacopy_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/enginetest"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// TestConformance runs the suite of all engines.
func TestConformance(t *testing.T) {
	enginetest.Suite(t, metacopy.Engine{}, enginetest.Options{})
}

// TestConformanceXFS runs it where readdir, attributes and links are
// another file system's.
func TestConformanceXFS(t *testing.T) {
	enginetest.Suite(t, metacopy.Engine{}, enginetest.Options{FileSystem: "xfs"})
}

// TestConformanceRootless runs the suite for the root of a user namespace.
func TestConformanceRootless(t *testing.T) {
	enginetest.Suite(t, enginetest.Rootless(metacopy.Engine{}), enginetest.Options{})
}

// TestConformanceRootlessXFS is both.
func TestConformanceRootlessXFS(t *testing.T) {
	enginetest.Suite(t, enginetest.Rootless(metacopy.Engine{}), enginetest.Options{FileSystem: "xfs"})
}

// TestNoData checks that not one block of file data is stored, that sizes are
// those of the originals, and that Build leaves nothing but the tree.
func TestNoData(t *testing.T) {
	dir := testutil.LoopFS(t, "ext4", 64<<20)
	layer, built := filepath.Join(dir, "layer"), filepath.Join(dir, "built")
	require.NoError(t, os.Mkdir(layer, 0o755))
	require.NoError(t, os.Mkdir(built, 0o700))
	fstree.Apply(t, layer,
		fstree.File("big", strings.Repeat("data", 1<<20), fstree.Owner(1000, 1000)), fstree.Link("d/link", "big"),
		fstree.Sparse("sparse", 1<<40, []fstree.Data{{Offset: 1 << 30, Content: "x"}}),
		fstree.File("one", "1"), fstree.File("empty", ""))
	m, err := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
	require.NoError(t, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	e := metacopy.Engine{}
	require.NoError(t, e.Build(t.Context(), built, engine.Job{Chain: []string{layer}, Shift: s}))
	names, err := os.ReadDir(built)
	require.NoError(t, err)
	require.Len(t, names, 1)
	assert.Equal(t, e.Lower(built), filepath.Join(built, names[0].Name()))
	files := 0
	require.NoError(t, filepath.WalkDir(e.Lower(built), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		rel, err := filepath.Rel(e.Lower(built), p)
		require.NoError(t, err)
		var st, orig unix.Stat_t
		require.NoError(t, unix.Lstat(p, &st))
		require.NoError(t, unix.Lstat(filepath.Join(layer, rel), &orig))
		assert.Zero(t, st.Blocks, "blocks of %s", rel)
		assert.Equal(t, orig.Size, st.Size, "size of %s", rel)
		_, err = unix.Lgetxattr(p, "trusted.overlay.metacopy", nil)
		if st.Size > 0 {
			assert.NoError(t, err, "mark of %s", rel)
		} else {
			assert.ErrorIs(t, err, unix.ENODATA, "an empty file needs no data: %s", rel)
		}
		return nil
	}))
	assert.Equal(t, 5, files)
}

// TestCrowded has files whose own attributes leave no room for the mark on
// ext4: they are made whole, and read and recycled as all others.
func TestCrowded(t *testing.T) {
	dir := testutil.LoopFS(t, "ext4", 64<<20)
	layer, built := filepath.Join(dir, "layer"), filepath.Join(dir, "built")
	require.NoError(t, os.Mkdir(layer, 0o755))
	require.NoError(t, os.Mkdir(built, 0o700))
	full := []fstree.Attr{
		fstree.Owner(1000, 1000), fstree.Xattr("user.big", strings.Repeat("v", 4000)), fstree.Xattr("user.rest", strings.Repeat("v", 60)),
	}
	content := strings.Repeat("data", 1<<20)
	fstree.Apply(t, layer,
		fstree.File("full", content, append(full, fstree.Mode(0o6444))...), fstree.Link("d/link", "full"),
		fstree.Sparse("sparse", 1<<40, []fstree.Data{{Offset: 1 << 39, Content: "x"}}, full...),
		fstree.File("empty", "", full...), fstree.Dir("dir", full...), fstree.File("other", "x"))
	e := metacopy.Engine{}
	for _, mapping := range []string{"0:100000:65536", "0:300000:65536"} {
		m, err := idshift.ParseMapping(mapping, mapping)
		require.NoError(t, err)
		s, err := idshift.NewShift(m, idshift.Overflow)
		require.NoError(t, err)
		job := engine.Job{Chain: []string{layer}, Shift: s}
		if mapping == "0:100000:65536" {
			require.NoError(t, e.Build(t.Context(), built, job))
		} else {
			require.NoError(t, e.Recycle(t.Context(), built, job))
		}
		o := referee.Options{Content: true}
		want, err := referee.Scan(t.Context(), layer, o)
		require.NoError(t, err)
		want, err = want.Shift(s)
		require.NoError(t, err)
		got, err := referee.Scan(t.Context(), e.Lower(built), o)
		require.NoError(t, err)
		for _, d := range referee.Compare(want, got, o) {
			assert.Equal(t, "other", d.Path, "%v: only what has the mark has no data", d)
		}
		for _, name := range []string{"full", "sparse"} {
			_, err = unix.Lgetxattr(filepath.Join(e.Lower(built), name), "trusted.overlay.metacopy", nil)
			require.ErrorIs(t, err, unix.ENODATA, name)
		}
	}
}

// TestCheck checks that the reason is handed on.
func TestCheck(t *testing.T) {
	assert.NoError(t, metacopy.Engine{}.Check(engine.Env{Idmap: "no"}))
	assert.EqualError(t, metacopy.Engine{}.Check(engine.Env{Metacopy: "no overlay here"}), "no overlay here")
}
