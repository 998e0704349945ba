package testutil_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// TestLoopFS checks that the mount is of the asked type, can hold what tests
// put there, and is gone afterwards.
func TestLoopFS(t *testing.T) {
	testutil.RequireRoot(t)
	for fstype, magic := range map[string]int64{
		"ext4": unix.EXT4_SUPER_MAGIC, "xfs": unix.XFS_SUPER_MAGIC, "btrfs": unix.BTRFS_SUPER_MAGIC,
	} {
		var point string
		t.Run(fstype, func(t *testing.T) {
			point = testutil.LoopFS(t, fstype, 320<<20)
			var st unix.Statfs_t
			require.NoError(t, unix.Statfs(point, &st))
			assert.Equal(t, magic, int64(st.Type))
			require.NoError(t, os.Mkdir(filepath.Join(point, "d"), 0o700))
			require.NoError(t, unix.Lsetxattr(filepath.Join(point, "d"), "trusted.test", []byte("x"), 0))
		})
		if point == "" {
			continue // skipped, or failed and said so
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, err)
		assert.False(t, strings.Contains(string(mounts), point), "%s is still mounted", point)
		assert.NoFileExists(t, filepath.Join(filepath.Dir(point), "image"))
	}
}
