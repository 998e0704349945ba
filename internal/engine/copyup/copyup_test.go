package copyup_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/copyup"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/enginetest"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// TestConformance runs the suite of all engines where data is copied.
func TestConformance(t *testing.T) {
	enginetest.Suite(t, copyup.Engine{}, enginetest.Options{})
}

// TestConformanceReflink runs it where data is shared.
func TestConformanceReflink(t *testing.T) {
	enginetest.Suite(t, copyup.Engine{}, enginetest.Options{FileSystem: "btrfs"})
}

// newShift makes the rules of a mapping.
func newShift(t *testing.T) *idshift.Shift {
	t.Helper()
	m, err := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
	require.NoError(t, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	return s
}

// dataTree has files whose data is in one piece, in several, and none.
func dataTree() []fstree.Node {
	return []fstree.Node{
		fstree.File("big", strings.Repeat("0123456789abcdef", 1<<18), fstree.Owner(1000, 1000), fstree.Mode(0o400)),
		fstree.File("odd", strings.Repeat("x", 4097), fstree.Mode(0o4755)),
		fstree.File("empty", ""),
		fstree.Sparse("sparse", 1<<34, []fstree.Data{{Offset: 0, Content: "first"}, {Offset: 1 << 33, Content: "middle"}, {Offset: 1<<34 - 4, Content: "last"}}),
		fstree.Sparse("hole", 1<<30, nil),
		fstree.Link("d/link", "big"),
	}
}

// TestData checks the ways to get data: shared, copied within a file system
// and copied from one to another of another type, as with an additional image
// store.
func TestData(t *testing.T) {
	for name, c := range map[string]struct{ from, to string }{
		"reflink":      {"", "xfs"},
		"copy":         {"", "ext4"},
		"from-another": {"btrfs", "ext4"},
		"from-same":    {"ext4", "ext4"},
	} {
		t.Run(name, func(t *testing.T) {
			to := testutil.LoopFS(t, c.to, 320<<20)
			from := to
			if c.from != "" {
				from = testutil.LoopFS(t, c.from, 320<<20)
			}
			layer, built := filepath.Join(from, "layer"), filepath.Join(to, "built")
			require.NoError(t, os.Mkdir(layer, 0o755))
			require.NoError(t, os.Mkdir(built, 0o700))
			fstree.Apply(t, layer, dataTree()...)
			sh := newShift(t)
			require.NoError(t, copyup.Engine{}.Build(t.Context(), built, engine.Job{Chain: []string{layer}, Shift: sh}))
			lower := copyup.Engine{}.Lower(built)
			o := referee.Options{Content: true, OverlayXattrs: true}
			orig, err := referee.Scan(t.Context(), layer, o)
			require.NoError(t, err)
			want, err := orig.Shift(sh)
			require.NoError(t, err)
			got, err := referee.Scan(t.Context(), lower, o)
			require.NoError(t, err)
			assert.Empty(t, referee.Compare(want, got, o))
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(filepath.Join(lower, "sparse"), &st))
			assert.Less(t, st.Blocks*512, int64(1<<20), "holes stay holes")
		})
	}
}

// TestUnreadableData checks the error for a file that can be looked at but not
// read: overlay looks for data in data-only lowers when a file is opened
// (overlayfs.rst, section "Data-only lower layers").
func TestUnreadableData(t *testing.T) {
	dir := testutil.LoopFS(t, "ext4", 64<<20)
	for _, d := range []string{"meta", "data", "layer", "built"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	fstree.Apply(t, filepath.Join(dir, "meta"), fstree.Sparse("d/lost", 100, nil,
		fstree.Xattr("trusted.overlay.metacopy", ""), fstree.Xattr("trusted.overlay.redirect", "/gone")))
	layer := filepath.Join(dir, "layer")
	lowers := "lowerdir=" + filepath.Join(dir, "meta") + "::" + filepath.Join(dir, "data")
	if err := unix.Mount("overlay", layer, "overlay", 0, lowers+",metacopy=on"); err != nil {
		testutil.Skip(t, "no data-only lowers (Linux 6.5): "+err.Error())
	}
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(layer, 0)) })
	before := testutil.OpenFiles(t)
	err := copyup.Engine{}.Build(t.Context(), filepath.Join(dir, "built"), engine.Job{Chain: []string{layer}, Shift: newShift(t)})
	require.ErrorIs(t, err, unix.ENOENT)
	assert.ErrorContains(t, err, "d/lost")
	assert.Equal(t, before, testutil.OpenFiles(t))
}

// untilData is a context that is cancelled as soon as somebody asks for its
// error and a file has data.
type untilData struct {
	context.Context

	cancel context.CancelFunc
	file   string
}

func (c untilData) Err() error {
	var st unix.Stat_t
	if unix.Lstat(c.file, &st) == nil && st.Blocks > 0 {
		c.cancel()
	}
	return c.Context.Err()
}

// TestCancelWithinFile checks that the copy of one large file ends soon, too:
// between two of the pieces that hold its data.
func TestCancelWithinFile(t *testing.T) {
	const pieces = 64
	to, from := testutil.LoopFS(t, "ext4", 64<<20), testutil.LoopFS(t, "ext4", 64<<20)
	var data []fstree.Data
	for i := range int64(pieces) {
		data = append(data, fstree.Data{Offset: i << 20, Content: "x"})
	}
	fstree.Apply(t, from, fstree.Sparse("large", pieces<<20, data))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	file := filepath.Join(to, "tree/large")
	err := copyup.Engine{}.Build(untilData{ctx, cancel, file}, to, engine.Job{Chain: []string{from}, Shift: newShift(t)})
	require.ErrorIs(t, err, context.Canceled)
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(file, &st))
	assert.Less(t, st.Blocks, int64(pieces*4096/512), "the file is not copied to its end")
	assert.Positive(t, st.Blocks)
}

// TestCheck checks that the engine of last resort works everywhere.
func TestCheck(t *testing.T) {
	assert.NoError(t, copyup.Engine{}.Check(engine.Env{Idmap: "no", Metacopy: "no"}))
}
