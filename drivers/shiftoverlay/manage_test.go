package shiftoverlay

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
)

// manage returns the manager of a store's driver.
func (s *store) manage() *Manager {
	s.t.Helper()
	m, err := Manage(s.Driver)
	require.NoError(s.t, err)
	return m
}

// TestManage checks who has a manager, and that the driver then leaves the
// cache alone.
func TestManage(t *testing.T) {
	s := newStore(t, t.TempDir(), setup{engine: "copyup"})
	m := s.manage()
	name, reason := m.Engine()
	assert.Equal(t, "copyup", name)
	assert.Equal(t, "set in shiftoverlay.conf", reason)
	size, age := m.Limits()
	assert.Equal(t, int64(10<<30), size)
	assert.Equal(t, 720*time.Hour, age)
	assert.Equal(t, s.root+"/shiftoverlay-shifted", m.CacheDir())

	left := filepath.Join(m.CacheDir(), "tmp", "LEFT")
	require.NoError(t, os.MkdirAll(left, 0o700))
	require.NoError(t, s.Cleanup())
	assert.DirExists(t, left)
	s.open(setup{engine: "copyup"})
	require.NoError(t, s.Cleanup())
	assert.NoDirExists(t, left, "without a manager, what is due is done")

	_, err := Manage(plainDriver{})
	require.ErrorIs(t, err, ErrNotManaged)
	s.open(setup{engine: "copyup", options: []string{"shiftoverlay.mount_program=/bin/true"}})
	_, err = Manage(s.Driver)
	require.ErrorIs(t, err, ErrNotManaged)
	assert.ErrorContains(t, err, "mount program")
}

// TestWarmHold checks that an entry stays as long as the process that warmed
// it lives and has not released it, whatever the limits of the cache are.
func TestWarmHold(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, c setup) {
		m, mp := s.manage(), mapping(t, oneExtent)
		w, err := m.Warm(t.Context(), "image", mp, WarmUser())
		require.NoError(t, err)
		assert.Equal(t, c.engine, w.Engine)
		if !c.builds() {
			assert.Equal(t, cache.Ref{}, w.Ref)
			return
		}
		assert.True(t, w.Built)
		again, err := m.Warm(t.Context(), "image", mp, WarmUser())
		require.NoError(t, err)
		assert.Equal(t, Warmed{Engine: w.Engine, Ref: w.Ref}, again)
		_, err = m.Warm(t.Context(), "image", mp, "warm-1-1")
		require.ErrorContains(t, err, "no process that lives")
		_, err = m.Prune(t.Context(), 1, time.Nanosecond)
		require.NoError(t, err)
		held := func() bool {
			list, err := m.Entries(t.Context())
			require.NoError(t, err)
			for _, e := range list {
				if e.Ref == w.Ref {
					return true
				}
			}
			return false
		}
		require.True(t, held(), "held by this process")
		require.NoError(t, m.Settle(t.Context(), w.Ref))
		require.NoError(t, m.Release(w.Ref, WarmUser()))
		before := len(cacheEntries(t, m))
		s.container("c", "image", mp)
		require.Len(t, cacheEntries(t, m), before, "the mount is a hit")
		require.NoError(t, s.Put("c"))
		require.NoError(t, s.Remove("c"))
		_, err = m.Prune(t.Context(), 0, time.Nanosecond)
		require.NoError(t, err)
		require.False(t, held(), "nobody needs it any more")
	})
}

func cacheEntries(t *testing.T, m *Manager) []Entry {
	t.Helper()
	list, err := m.Entries(t.Context())
	require.NoError(t, err)
	return list
}

// TestWarming checks who counts as a living process.
func TestWarming(t *testing.T) {
	assert.True(t, warming(WarmUser()))
	assert.True(t, warming(passing(WarmUser(), strings.Repeat("c", 200))))
	assert.False(t, warming(passing(WarmUser()+"0", "c")))
	assert.Equal(t, "c", passing("", "c"))
	for _, user := range []string{"", "warm-", "warm-x", "warm-0-0", "warm-1-1", "warm-1", "warm--1-1", fmt.Sprint("warm-", os.Getpid()), WarmUser() + "0", "c"} {
		assert.False(t, warming(user), user)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "100")
	require.NoError(t, cmd.Start())
	user := warmName(cmd.Process.Pid)
	assert.True(t, warming(user))
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	assert.False(t, warming(user))
}

// TestCheckLabel checks that a cache that lacks the label of the layers is
// found. The attribute can be set without SELinux.
func TestCheckLabel(t *testing.T) {
	testutil.RequireKernel(t, 6, 8)
	s := newStore(t, t.TempDir(), setup{engine: "copyup"})
	s.image("image", "", fsop.MakeImage)
	s.container("c", "image", mapping(t, oneExtent))
	require.NoError(t, s.Put("c"))
	m := s.manage()
	check := func() (out []string) {
		list, err := m.Check(t.Context(), CheckOptions{Containers: map[string]Owner{"c": {Name: "c", Mapping: mapping(t, oneExtent)}}})
		require.NoError(t, err)
		for _, f := range list {
			out = append(out, f.Kind+" "+f.Subject+" "+f.Remedy)
		}
		return out
	}
	require.Empty(t, check())
	require.NoError(t, unix.Lsetxattr(s.root+"/shiftoverlay", "security.selinux", []byte("system_u:object_r:container_ro_file_t:s0\x00"), 0))
	require.Equal(t, []string{"place " + m.CacheDir() + " restorecon -RF " + m.CacheDir()}, check())
	require.NoError(t, unix.Lsetxattr(m.CacheDir(), "security.selinux", []byte("system_u:object_r:container_ro_file_t:s0\x00"), 0))
	require.Empty(t, check())
}

// plainDriver is some other driver.
type plainDriver struct{ graphdriver.Driver }

func (plainDriver) String() string { return "plain" }
