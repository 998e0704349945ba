package shiftoverlay

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
)

// TestTrimDue checks when the cache is trimmed: at first, after an hour, and
// after a number of builds; and that who dies meanwhile leaves it to be done.
func TestTrimDue(t *testing.T) {
	dir := t.TempDir()
	c, err := cache.Open(filepath.Join(dir, "cache"), cache.Options{})
	require.NoError(t, err)
	s := site{runHome: dir, cache: c}
	require.True(t, s.trimDue())

	// Another process is at it, and dies.
	lock, err := os.OpenFile(filepath.Join(dir, "shiftoverlay-trim.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	require.ErrorIs(t, s.trimOnce(), unix.EWOULDBLOCK)
	require.NoError(t, lock.Close())
	require.True(t, s.trimDue(), "nobody has done it")

	require.NoError(t, s.trimOnce())
	require.False(t, s.trimDue())
	for range trimBuilds {
		assert.False(t, s.trimDue())
		s.countBuild()
	}
	require.True(t, s.trimDue())
	for range trimBuilds {
		assert.False(t, s.trimOverdue())
		s.countBuild()
	}
	require.True(t, s.trimOverdue(), "others have begun and not come to their end")
	s.trimCache()
	require.False(t, s.trimOverdue())
	require.False(t, s.trimDue())
	require.NoError(t, os.WriteFile(s.trimStamp(), []byte("320"), 0o600))
	for range 20 {
		assert.False(t, s.trimDue(), "a large cache")
		s.countBuild()
	}
	require.True(t, s.trimDue())
	s.trimCache()
	old := time.Now().Add(-trimEvery)
	require.NoError(t, os.Chtimes(s.trimStamp(), old, old))
	require.True(t, s.trimDue())
}

// TestTrimProcess checks that another process trims the cache when those who start
// containers have not come to the end of it for too long: it outlives them.
func TestTrimProcess(t *testing.T) {
	testutil.RequireRoot(t)
	c := setup{engine: "metacopy", conf: `cache_max_size = "1"`}
	s := newStore(t, testutil.LoopFS(t, "ext4", 1<<30), c)
	s.image("image", "", fsop.MakeImage)
	s.container("before", "image", numbered(t, 0))
	// The first mount has the cache trimmed in the background, by this process.
	require.Eventually(t, func() bool { return !driverOf(t, s).trimDue() }, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, s.Put("before"))
	require.NoError(t, s.Remove("before"))
	require.Len(t, s.entries(), 1)
	s.open(c)
	d := driverOf(t, s)
	for range 2 * trimBuilds {
		d.countBuild()
	}
	d.trim.UserAlive = func(string) bool {
		t.Error("this process trims")
		return true
	}
	s.container("now", "image", numbered(t, 1))
	assert.Eventually(t, func() bool { return len(s.entries()) == 1 && !d.trimDue() }, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, s.Put("now"))
	merged, err := s.Get("now", mapped(numbered(t, 1)))
	require.NoError(t, err)
	assert.Equal(t, numbered(t, 1).UIDs[0].HostID, owner(t, merged)[0], "what a container needs has stayed")
	require.NoError(t, s.Put("now"))
}

// TestTrimJob checks what that process takes for a layer of an image store, and that
// it makes no store where there is none any more.
func TestTrimJob(t *testing.T) {
	dir := t.TempDir()
	store := filepath.Join(dir, "links")
	require.NoError(t, os.MkdirAll(filepath.Join(store, "overlay", "layer"), 0o700))
	j := trimJob{Home: filepath.Join(dir, "gone", "home"), RunHome: dir, Others: []string{filepath.Join(dir, "other"), filepath.Join(store, "overlay")}}
	assert.True(t, layerIn(j.Others, "layer"))
	assert.False(t, layerIn(j.Others, "nosuch"))
	require.ErrorIs(t, j.do(), os.ErrNotExist)
	assert.NoDirExists(t, filepath.Join(dir, "gone"))
}
