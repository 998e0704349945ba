package shiftoverlay

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// A mount that is put aside comes back when the library has taken the second one
// away, whichever of its versions does that, and not for a caller that has died.
func TestKeep(t *testing.T) {
	testutil.RequireRoot(t)
	for name, tt := range map[string]struct {
		take func(t *testing.T, target string, caller *os.Process) // the second mount away
		back bool
	}{
		"since 1.54": {func(t *testing.T, target string, _ *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Mkdir(target+".1", 0o700))
			require.NoError(t, unix.Rename(target+".1", target))
		}, true},
		"before": {func(t *testing.T, target string, _ *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Remove(target))
		}, true},
		"and the caller ends": {func(t *testing.T, target string, caller *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Remove(target))
			require.NoError(t, caller.Kill())
		}, true},
		"the layer is gone": {func(t *testing.T, target string, _ *os.Process) {
			require.NoError(t, unix.Unmount(target, unix.MNT_DETACH))
			require.NoError(t, os.Rename(filepath.Dir(target), filepath.Dir(target)+".removed"))
		}, false},
		"the caller has died": {func(t *testing.T, _ string, caller *os.Process) {
			require.NoError(t, caller.Kill())
		}, false},
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
			first, err := mounts.Clone(target)
			require.NoError(t, err)
			defer first.Close()
			tree, err := first.File()
			require.NoError(t, err)
			defer tree.Close()
			require.NoError(t, mounts.Detach(target))
			mount("second")

			caller := exec.Command("sleep", "1000")
			require.NoError(t, caller.Start())
			t.Cleanup(func() {
				_ = caller.Process.Kill()
				_ = caller.Wait()
			})
			fd, err := unix.PidfdOpen(caller.Process.Pid, 0)
			require.NoError(t, err)
			who := os.NewFile(uintptr(fd), "caller")
			defer who.Close()
			done := make(chan error)
			go func() { done <- Keep(t.Context(), tree, who, MountPoint{target, inode}) }()
			tt.take(t, target, caller.Process)
			require.NoError(t, <-done)
			_, err = os.Stat(filepath.Join(target, "first"))
			assert.Equal(t, tt.back, err == nil, "the first mount is back: %v", err)
		})
	}
}
