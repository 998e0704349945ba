package linux_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// oneExtent is a mapping as containers have them.
func oneExtent(host int) []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: host, Size: 65536}}
}

// TestUserNS makes user namespaces on several threads at once, and looks at their
// mappings through idmapped mounts.
func TestUserNS(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, 5, 19)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	require.NoError(t, os.Lchown(filepath.Join(dir, "f"), 1000, 999))
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for j := range 25 {
				host := 100000 + 65536*(25*i+j)
				uids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: host, Size: 1000}, {ContainerID: 1000, HostID: 0, Size: 1}}
				ns, err := linux.UserNS(uids, oneExtent(host))
				if !assert.NoError(t, err) {
					return
				}
				assert.Equal(t, [2]int{0, host + 999}, ownerThrough(t, dir, "f", ns))
				assert.Equal(t, [2]int{host, host}, ownerThrough(t, dir, ".", ns))
				assert.NoError(t, linux.Close(ns))
			}
		})
	}
	group.Wait()
	assert.Empty(t, childrenOf(t, os.Getpid()))
}

// ownerThrough returns who owns something in a folder that is mounted idmapped.
func ownerThrough(t *testing.T, dir, name string, ns int) [2]int {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if !assert.NoError(t, err) {
		return [2]int{}
	}
	defer linux.Close(tree)
	var st unix.Stat_t
	assert.NoError(t, unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})) //nolint:gosec // a descriptor
	assert.NoError(t, unix.Fstatat(tree, name, &st, unix.AT_SYMLINK_NOFOLLOW))
	return [2]int{int(st.Uid), int(st.Gid)}
}

// TestUserNSErrors checks that a mapping that the kernel refuses is an error that
// leaves neither a process nor a descriptor.
func TestUserNSErrors(t *testing.T) {
	testutil.RequireRoot(t)
	overlapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1, Size: 10}, {ContainerID: 5, HostID: 100, Size: 10}}
	for name, maps := range map[string][2][]syscall.SysProcIDMap{"uid_map": {overlapping, oneExtent(1)}, "gid_map": {oneExtent(1), overlapping}} {
		ns, err := linux.UserNS(maps[0], maps[1])
		require.ErrorIs(t, err, unix.EINVAL)
		require.ErrorContains(t, err, name)
		assert.Equal(t, -1, ns)
	}
	assert.Empty(t, childrenOf(t, os.Getpid()))
}

// usernsChild makes a test be a process that makes user namespaces until it is
// killed.
const usernsChild = "SHIFT_TEST_USERNS_CHILD"

// TestUserNSKilled kills a process at random times while it makes user namespaces
// on several threads, with a lock held: nothing may be left of it, above all
// not the lock.
func TestUserNSKilled(t *testing.T) {
	testutil.RequireRoot(t)
	if lock := os.Getenv(usernsChild); lock != "" {
		makeUserNSs(lock)
	}
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // not negative
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	file := filepath.Join(t.TempDir(), "lock")
	for range 150 {
		lock, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		child := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestUserNSKilled$")
		child.Env = append(os.Environ(), usernsChild+"="+file)
		out, err := child.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, child.Start())
		_, err = out.Read(make([]byte, 1))
		require.NoError(t, err)
		time.Sleep(time.Duration(random.IntN(5000)) * time.Microsecond)
		require.NoError(t, child.Process.Kill())
		_ = child.Wait()
		assert.Eventually(t, func() bool { return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil }, 10*time.Second, time.Millisecond, "the lock is held")
		require.NoError(t, lock.Close())
	}
	assert.Eventually(t, func() bool { return len(withEnv(t, usernsChild+"="+file)) == 0 }, 10*time.Second, 10*time.Millisecond, "processes are left")
}

// makeUserNSs does not return.
func makeUserNSs(lock string) {
	fd, err := linux.Openat(unix.AT_FDCWD, lock, unix.O_RDWR, 0)
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_EX)
	}
	for range 2 * runtime.GOMAXPROCS(0) {
		go func() {
			for err == nil {
				ns, failed := linux.UserNS(oneExtent(100000), oneExtent(100000))
				if failed != nil {
					panic(failed)
				}
				_ = linux.Close(ns)
			}
		}()
	}
	fmt.Print("x")
	if err != nil {
		panic(err)
	}
	select {}
}

// childrenOf lists the processes that have a parent.
func childrenOf(t *testing.T, parent int) []int {
	return processes(t, func(dir string) bool {
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		return strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", parent))
	})
}

// withEnv lists the processes that have a variable in their environment.
func withEnv(t *testing.T, variable string) []int {
	return processes(t, func(dir string) bool {
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		return strings.Contains(string(environ), variable)
	})
}

func processes(t *testing.T, want func(dir string) bool) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range dirs {
		if want(dir) {
			pid, err := strconv.Atoi(filepath.Base(dir))
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// BenchmarkUserNS measures what the first thing is that a start with a mapping
// waits for, in a process of podman's size.
func BenchmarkUserNS(b *testing.B) {
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	for b.Loop() {
		ns, err := linux.UserNS(oneExtent(100000), oneExtent(100000))
		require.NoError(b, err)
		require.NoError(b, linux.Close(ns))
	}
	runtime.KeepAlive(ballast)
}
