package shiftoverlay

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// cloneOf is a second mount of what is mounted at a folder.
func cloneOf(t *testing.T, target string) *os.File {
	t.Helper()
	clone, err := mounts.Clone(target)
	require.NoError(t, err)
	defer clone.Close()
	tree, err := clone.File()
	require.NoError(t, err)
	t.Cleanup(func() { _ = tree.Close() })
	return tree
}

// pidfdOf is a descriptor of a process.
func pidfdOf(t *testing.T, cmd *exec.Cmd) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), "process")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A mount that is put aside comes back when the library has taken the second one
// away, whichever of its versions does that, and when those have died who would.
func TestKeep(t *testing.T) {
	testutil.RequireRoot(t)
	for name, tt := range map[string]struct {
		take func(t *testing.T, target string, caller *os.Process) // the second mount away
		back bool
		died bool // the mount program did, or failed
	}{
		"since 1.54": {func(t *testing.T, target string, _ *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Mkdir(target+".1", 0o700))
			require.NoError(t, unix.Rename(target+".1", target))
		}, true, false},
		"before": {func(t *testing.T, target string, _ *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Remove(target))
		}, true, false},
		"and the caller ends": {func(t *testing.T, target string, caller *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Remove(target))
			require.NoError(t, caller.Kill())
		}, true, false},
		"the layer is gone": {func(t *testing.T, target string, _ *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Rename(filepath.Dir(target), filepath.Dir(target)+".removed"))
		}, false, false},
		"the second mount has failed": {func(t *testing.T, target string, _ *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
		}, true, true},
		"the caller has died": {func(t *testing.T, _ string, caller *os.Process) {
			require.NoError(t, caller.Kill())
		}, true, false},
		"both have died between the mounts": {func(t *testing.T, target string, caller *os.Process) {
			require.NoError(t, caller.Kill())
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
		}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "layer", "merged")
			require.NoError(t, os.MkdirAll(target, 0o700))
			t.Cleanup(func() {
				for mounted(target) {
					require.NoError(t, mounts.Detach(target))
				}
			})
			mount := func(file string) {
				require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", 0, "size=64k"))
				require.NoError(t, os.WriteFile(filepath.Join(target, file), nil, 0o600))
			}
			inode, err := entryInode(target)
			require.NoError(t, err)
			mount("first")
			tree := cloneOf(t, target)
			require.NoError(t, mounts.Detach(target))
			mount("second")

			caller := exec.Command("sleep", "1000")
			require.NoError(t, caller.Start())
			t.Cleanup(func() {
				_ = caller.Process.Kill()
				_ = caller.Wait()
			})
			who := pidfdOf(t, caller)
			alive, program, err := os.Pipe()
			require.NoError(t, err)
			defer alive.Close()
			done := make(chan error)
			go func() { done <- Keep(t.Context(), tree, who, alive, MountPoint{target, inode}) }()
			tt.take(t, target, caller.Process)
			select {
			case err := <-done:
				require.Fail(t, "does not wait for the mount program", "%v", err)
			case <-time.After(20 * time.Millisecond):
			}
			if !tt.died {
				_, err = program.Write([]byte{1})
				require.NoError(t, err)
			}
			require.NoError(t, program.Close())
			require.NoError(t, <-done)
			_, err = os.Stat(filepath.Join(target, "first"))
			assert.Equal(t, tt.back, err == nil, "the first mount is back: %v", err)
		})
	}
}

// TestKeepFirst: a first mount that was not taken away stays the same.
func TestKeepFirst(t *testing.T) {
	testutil.RequireRoot(t)
	target := filepath.Join(t.TempDir(), "layer", "merged")
	require.NoError(t, os.MkdirAll(target, 0o700))
	inode, err := entryInode(target)
	require.NoError(t, err)
	require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", 0, "size=64k"))
	defer func() { require.NoError(t, mounts.Detach(target)) }()
	tree := cloneOf(t, target)
	// The clone is not; that is how to tell them apart.
	require.NoError(t, unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	caller := exec.Command("true")
	require.NoError(t, caller.Start())
	who := pidfdOf(t, caller)
	require.NoError(t, caller.Wait())
	program, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer program.Close()
	require.NoError(t, Keep(t.Context(), tree, who, program, MountPoint{target, inode}))
	assert.ErrorIs(t, os.WriteFile(filepath.Join(target, "file"), nil, 0o600), unix.EROFS)
}

// TestAwaitKeeper: a mount waits for a keeper that is about to put another one back.
func TestAwaitKeeper(t *testing.T) {
	testutil.RequireRoot(t)
	p := &Program{site: site{home: filepath.Join(t.TempDir(), "overlay"), runHome: t.TempDir()}}
	m := &programMount{p: p, id: "layer", call: &ProgramCall{Target: filepath.Join(p.home, "layer", "merged")}}
	require.NoError(t, os.MkdirAll(m.call.Target, 0o700))
	start := time.Now()
	require.NoError(t, m.awaitKeeper())
	require.NoError(t, os.Mkdir(filepath.Join(p.runHome, keepFolder), 0o700))
	lock, err := p.keeping(m.id, os.O_CREATE, unix.LOCK_SH)
	require.NoError(t, err)
	other, err := p.keeping(m.id, os.O_CREATE, unix.LOCK_SH)
	require.NoError(t, err)
	require.NoError(t, other.Close())
	assert.Less(t, time.Since(start), time.Second, "without a keeper")

	done := make(chan error)
	go func() { done <- m.awaitKeeper() }()
	select {
	case err := <-done:
		require.Fail(t, "does not wait", "%v", err)
	case <-time.After(20 * time.Millisecond):
	}
	require.NoError(t, unix.Mount("tmpfs", m.call.Target, "tmpfs", 0, "size=64k"))
	require.NoError(t, <-done)
	require.NoError(t, mounts.Detach(m.call.Target))

	go func() { done <- m.awaitKeeper() }()
	require.NoError(t, lock.Close()) // it has ended
	require.NoError(t, <-done)
	assert.Empty(t, p.lostInRun())
	require.NoError(t, os.RemoveAll(filepath.Join(p.home, m.id)))
	assert.Equal(t, []string{filepath.Join(p.runHome, keepFolder, m.id)}, p.lostInRun())
}
