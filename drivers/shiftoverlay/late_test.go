package shiftoverlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
)

// lateStore is a store in which nothing is made under the library's locks, with
// an image that takes a moment.
func lateStore(t *testing.T, c setup, files int) *store {
	t.Helper()
	testutil.RequireRoot(t)
	if !mounts.HasTriggers() {
		testutil.Skip(t, "needs autofs")
	}
	c.conf += "\nbackground_after = \"1ns\""
	s := newStore(t, t.TempDir(), c)
	s.image("image", "", func(o fsop.Ops) error {
		for i := range files {
			if err := os.WriteFile(filepath.Join(o.Root, "f"+strconv.Itoa(i)), []byte("x"), 0o644); err != nil {
				return err
			}
		}
		return os.Chown(filepath.Join(o.Root, "f0"), 1000, 1000)
	})
	return s
}

// eachBuilder runs a test with every engine that makes something.
func eachBuilder(t *testing.T, files int, f func(t *testing.T, s *store, c setup)) {
	t.Helper()
	for _, c := range engines() {
		if c.builds() {
			t.Run(c.name, func(t *testing.T) { f(t, lateStore(t, c, files), c) })
		}
	}
}

// pending tells whether a container waits to be mounted.
func pending(t *testing.T, merged string) bool {
	t.Helper()
	_, ok, _, err := mounts.Triggered(merged)
	require.NoError(t, err)
	return ok
}

// lateProcesses are those that mount late for this process.
func lateProcesses(t *testing.T) (pids []int) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, name := range list {
		text, _ := os.ReadFile(name)
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "stat"))
		var pid, parent int
		var state string
		_, rest, _ := strings.Cut(string(stat), ") ")
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || parent != os.Getpid() || !strings.HasPrefix(string(text), lateName+"\x00") {
			continue
		}
		if pid, err = strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// requireNoLate waits until no process mounts late for this one.
func requireNoLate(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return len(lateProcesses(t)) == 0 }, 10*time.Second, 5*time.Millisecond)
}

// TestLate: a mount for which much must be made returns at once, and whoever
// opens the container waits; afterwards all is as with any other mount.
func TestLate(t *testing.T) {
	eachBuilder(t, 3000, func(t *testing.T, s *store, c setup) {
		for n, text := range []string{oneExtent, threeExtents} {
			id := fmt.Sprint("c", n)
			require.NoError(t, s.CreateReadWrite(id, "image", nil))
			start := time.Now()
			merged := s.get(id, mapped(mapping(t, text)))
			if n == 0 {
				require.True(t, pending(t, merged))
				t.Logf("Get took %s", time.Since(start))
			}
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(filepath.Join(merged, "f0"), &st))
			uid, gid, _ := mapping(t, text).ToHost(1000, 1000)
			assert.Equal(t, [2]uint32{uid, gid}, [2]uint32{st.Uid, st.Gid})
			require.False(t, pending(t, merged))
			require.NoError(t, os.WriteFile(filepath.Join(merged, "new"), nil, 0o600))
			rec, err := readRecord(s.dir(id))
			require.NoError(t, err)
			require.NotNil(t, rec)
			// One more user, while it is mounted.
			require.Equal(t, merged, s.get(id, mapped(mapping(t, text))))
			require.NoError(t, s.Put(id))
			require.FileExists(t, filepath.Join(merged, "new"))
			require.NoError(t, s.Put(id))
			assert.Empty(t, mountsBelow(t, filepath.Join(s.root, driverName)))
			// Again, when nothing must be made, nor another process holds it.
			requireNoLate(t)
			s.get(id, mapped(mapping(t, text)))
			require.False(t, pending(t, merged))
			require.NoError(t, s.Put(id))
			require.NoError(t, s.Remove(id))
		}
		assert.Len(t, s.entries(), c.entries(t, 2))
		marks, err := filepath.Glob(filepath.Join(s.run, driverName, "late", "*"))
		require.NoError(t, err)
		assert.Empty(t, marks)
	})
}

// TestLateNamed: who only names the mount point waits, too, and does not get hold of
// the trigger. podman makes /etc that way.
func TestLateNamed(t *testing.T) {
	eachBuilder(t, 3000, func(t *testing.T, s *store, _ setup) {
		m := mapping(t, oneExtent)
		merged := s.container("c", "image", m)
		require.True(t, pending(t, merged))
		fd, err := unix.Open(merged, unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.False(t, pending(t, merged))
		require.NoError(t, unix.Mkdirat(fd, "etc", 0o755))
		require.NoError(t, unix.Close(fd))
		require.DirExists(t, filepath.Join(s.dir("c"), "diff", "etc"))
		require.NoError(t, s.Put("c"))
		requireNoLate(t)
	})
}

// TestLateUnmounted: what is unmounted before it was mounted is not mounted.
func TestLateUnmounted(t *testing.T) {
	eachBuilder(t, 3000, func(t *testing.T, s *store, _ setup) {
		m := mapping(t, oneExtent)
		merged := s.container("c", "image", m)
		require.True(t, pending(t, merged))
		opened := make(chan error)
		go func() {
			_, err := os.ReadDir(merged)
			opened <- err
		}()
		time.Sleep(10 * time.Millisecond)
		require.NoError(t, s.Put("c"))
		require.ErrorIs(t, <-opened, os.ErrNotExist, "who waits is told")
		require.NoError(t, s.Remove("c"))
		requireNoLate(t)
		assert.Empty(t, mountsBelow(t, filepath.Join(s.root, driverName)))
		assert.NoDirExists(t, s.dir("c"))
	})
}

// TestLateKilled: if who mounts late is killed, who waits is told, and the next
// start works.
func TestLateKilled(t *testing.T) {
	s := lateStore(t, setup{engine: "copyup"}, 3000)
	m := mapping(t, oneExtent)
	merged := s.container("c", "image", m)
	opened := make(chan error)
	go func() {
		_, err := os.ReadDir(merged)
		opened <- err
	}()
	time.Sleep(20 * time.Millisecond)
	pids := lateProcesses(t)
	require.Len(t, pids, 1)
	require.NoError(t, syscall.Kill(pids[0], syscall.SIGKILL))
	select {
	case err := <-opened:
		require.ErrorIs(t, err, os.ErrNotExist)
	case <-time.After(10 * time.Second):
		require.Fail(t, "who waits is not told")
	}
	require.NoError(t, s.Put("c"))
	s.get("c", mapped(m))
	require.FileExists(t, filepath.Join(merged, "f0"))
	require.NoError(t, s.Put("c"))
}

// TestLateFails: if what must be made cannot be made, who waits is told.
func TestLateFails(t *testing.T) {
	s := lateStore(t, setup{engine: "metacopy", conf: `unmapped = "refuse"`}, 3000)
	small := mapping(t, "0:200000:10")
	merged := s.container("c", "image", small)
	_, err := os.ReadDir(merged)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, s.Put("c"))
	require.NoError(t, s.Remove("c"))
	requireNoLate(t)
	assert.Empty(t, mountsBelow(t, filepath.Join(s.root, driverName)))
}
