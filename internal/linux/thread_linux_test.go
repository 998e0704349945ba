package linux_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// threadsIn returns the threads of this process whose current directory is
// dir.
func threadsIn(t *testing.T, dir string) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/cwd")
	require.NoError(t, err)
	var in []string
	for _, link := range tasks {
		if at, err := os.Readlink(link); err == nil && at == dir {
			in = append(in, link)
		}
	}
	return in
}

// TestOnThreads checks that each call has a thread of its own, with umask 0
// and a current directory that nobody else sees, and that nothing of it is
// left, least of all on the main thread, which Go never ends: its directory
// would keep a file system from being unmounted as long as the process lives.
func TestOnThreads(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	fd, err := linux.OpenDir(unix.AT_FDCWD, dir)
	require.NoError(t, err)
	defer linux.Close(fd)
	home, err := os.Getwd()
	require.NoError(t, err)
	for range 200 {
		var mu sync.Mutex
		ids := map[int]bool{}
		var met sync.WaitGroup
		met.Add(4)
		require.NoError(t, linux.OnThreads(4, func() error {
			mu.Lock()
			ids[unix.Gettid()] = true
			mu.Unlock()
			met.Done()
			met.Wait() // all at once, so that no thread can be two
			if err := linux.Fchdir(fd, dir); err != nil {
				return err
			}
			if mask := unix.Umask(0); mask != 0 {
				return fmt.Errorf("umask is %#o", mask)
			}
			at, err := os.Readlink("/proc/thread-self/cwd")
			if err == nil && at != dir {
				err = fmt.Errorf("current directory is %s", at)
			}
			return err
		}))
		require.Len(t, ids, 4)
		require.NotContains(t, ids, unix.Getpid(), "the main thread cannot be thrown away")
	}
	now, err := os.Getwd()
	require.NoError(t, err)
	assert.Equal(t, home, now)
	assert.Empty(t, threadsIn(t, dir), "threads that are still in the folder")
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	assert.NotContains(t, string(status), "Umask:\t0000\n", "umask of the process")
}

// TestOnThreadsErrors checks that all threads have ended when the first error
// comes back.
func TestOnThreadsErrors(t *testing.T) {
	boom := errors.New("boom")
	var n, ended atomic.Int32
	err := linux.OnThreads(5, func() error {
		defer ended.Add(1)
		if n.Add(1) == 3 {
			return boom
		}
		time.Sleep(20 * time.Millisecond)
		return nil
	})
	require.ErrorIs(t, err, boom)
	assert.Equal(t, int32(5), ended.Load())
}

// TestSetFSOwner checks that a thread makes files as somebody else, and that
// this ends with the thread.
func TestSetFSOwner(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	// By descriptor: others cannot enter the folder above.
	dirfd, err := linux.OpenDir(unix.AT_FDCWD, dir)
	require.NoError(t, err)
	defer linux.Close(dirfd)
	ids := [][2]uint32{{1000, 1001}, {0, 5}, {4294967294, 2147483648}, {65534, 0}, {0, 0}}
	require.NoError(t, linux.OnThreads(1, func() error {
		for i, id := range ids {
			if err := linux.SetFSOwner(id[0], id[1]); err != nil {
				return err
			}
			fd, err := linux.Openat(dirfd, fmt.Sprint(i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o666)
			if err != nil {
				return err
			}
			if err := linux.Close(fd); err != nil {
				return err
			}
		}
		return linux.SetFSOwner(9, 9) // left like this
	}))
	for i, id := range ids {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(fmt.Sprintf("%s/%d", dir, i), &st))
		assert.Equal(t, id, [2]uint32{st.Uid, st.Gid})
		assert.Equal(t, uint32(0o666), st.Mode&0o777, "umask is 0")
	}
	f := filepath.Join(dir, "after")
	require.NoError(t, os.WriteFile(f, nil, 0o600))
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(f, &st))
	assert.Zero(t, st.Uid)
	err = linux.OnThreads(1, func() error { return linux.SetFSOwner(^uint32(0), 0) })
	require.Error(t, err, "-1 is no user")
	assert.True(t, strings.Contains(err.Error(), "setfsuid") || strings.Contains(err.Error(), "setfsgid"), err)
}
