package shifter

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
)

func TestFits(t *testing.T) {
	testutil.RequireRoot(t)
	upper, lower := t.TempDir(), t.TempDir()
	fstree.Apply(t, lower, fstree.Dir("d"), fstree.File("d/a", "x"), fstree.File("d/b", ""), fstree.File("c", ""))
	fstree.Apply(t, upper, fstree.Dir("d"), fstree.Whiteout("d/a"), fstree.File("d/b", "again"))
	// The root, d, d/b and c; the sum of both layers is 7.
	chain := []string{upper, lower}
	const much = 1 << 30
	for name, tt := range map[string]struct {
		files, ffree, bavail uint64
		fits                 bool
	}{
		"plenty":            {much, much, much, true},
		"as the sum":        {much, 7, much, true},
		"just enough":       {much, 4, much, true},
		"too few inodes":    {much, 3, much, false},
		"no inodes":         {much, 0, much, false},
		"dynamic inodes":    {0, 0, much, true},
		"just enough bytes": {much, much, 1, true},
		"no bytes":          {much, much, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := fits(t.Context(), &unix.Statfs_t{Bsize: 4096, Files: tt.files, Ffree: tt.ffree, Bavail: tt.bavail}, engine.Job{Chain: chain})
			if tt.fits {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, unix.ENOSPC)
			require.ErrorContains(t, err, "the image has 4 files and folders, for which 4 inodes and about 0 MiB are needed")
		})
	}
	err := fits(t.Context(), &unix.Statfs_t{Files: 1}, engine.Job{Chain: []string{"/nonexistent"}})
	require.ErrorIs(t, err, unix.ENOENT)
}

func TestSlow(t *testing.T) {
	calls := make(chan int64, 10)
	s := &Shifter{o: Options{Slow: func(_ Plan, since time.Duration, files int64) {
		assert.GreaterOrEqual(t, since, slowAfter)
		calls <- files
	}}}
	var count atomic.Int64
	count.Store(7)
	done := s.watch(Plan{}, &count)
	assert.EqualValues(t, 7, <-calls)
	done()
	assert.Empty(t, calls)
	s.watch(Plan{}, &count)() // at once
	assert.Empty(t, calls)
}
