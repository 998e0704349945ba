package probe_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/probe"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// userNS makes user namespaces as the driver's does, and counts them.
func userNS(calls *int) func() (int, error) {
	return func() (int, error) {
		*calls++
		return probe.UserNS()
	}
}

// names lists a folder, hidden names too.
func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range list {
		if e.Name() != "lost+found" {
			out = append(out, e.Name())
		}
	}
	return out
}

// mounts counts the mounts below a folder; other tests make their own meanwhile.
func mounts(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	return strings.Count(string(b), dir)
}

// TestRun probes file systems of known abilities.
func TestRun(t *testing.T) {
	testutil.RequireRoot(t)
	for fstype, reflink := range map[string]bool{"ext4": false, "xfs": true, "btrfs": true} {
		t.Run(fstype, func(t *testing.T) {
			dir := testutil.LoopFS(t, fstype, 320<<20)
			calls := 0
			o := probe.Options{Dir: dir, UserNS: userNS(&calls)}
			before, files := mounts(t, dir), testutil.OpenFiles(t)
			r, err := probe.Run(o)
			require.NoError(t, err)
			assert.Equal(t, fstype, r.FileSystem)
			assert.Empty(t, r.TrustedXattr)
			assert.Empty(t, r.Metacopy)
			assert.Empty(t, r.Erofs)
			if testutil.KernelSince(t, 5, 19) {
				assert.Empty(t, r.IdmapMount)
			}
			if testutil.KernelSince(t, 6, 2) {
				assert.Empty(t, r.IdmapACL)
				assert.Empty(t, r.ErofsIdmap)
			}
			if testutil.KernelSince(t, 6, 8) {
				assert.Empty(t, r.ErofsData)
			}
			if testutil.KernelSince(t, 6, 15) {
				assert.Empty(t, r.IdmapDetached)
			} else {
				assert.NotEmpty(t, r.IdmapDetached)
			}
			if testutil.KernelSince(t, 6, 16) {
				assert.Empty(t, r.UserMetacopy)
			} else {
				assert.Contains(t, r.UserMetacopy, "userxattr")
			}
			if !r.ErofsFile.OK() { // an option of the kernel's build
				assert.Contains(t, string(r.ErofsFile), "block device required")
			}
			assert.Equal(t, reflink, r.Reflink.OK(), "reflink: %s", r.Reflink)
			var st unix.Stat_t
			require.NoError(t, unix.Stat(dir, &st))
			assert.Equal(t, st.Dev, r.Dev)
			boot, err := probe.BootID()
			require.NoError(t, err)
			assert.Equal(t, boot, r.BootID)
			assert.Equal(t, 1, calls)
			assert.Empty(t, names(t, dir), "left behind")
			assert.Equal(t, before, mounts(t, dir), "mounts")
			assert.LessOrEqual(t, testutil.OpenFiles(t), files, "open files")
		})
	}
}

func TestRunFarDown(t *testing.T) {
	testutil.RequireRoot(t)
	// fsconfig(2) takes no string of 256 bytes or more, and lowerdir ends at a
	// colon.
	dir := filepath.Join(testutil.LoopFS(t, "ext4", 64<<20), strings.Repeat("long", 50), "a:b", strings.Repeat("x", 200))
	require.NoError(t, os.MkdirAll(dir, 0o700))
	r, err := probe.Run(probe.Options{Dir: dir})
	require.NoError(t, err)
	assert.Empty(t, r.Metacopy)
}

// TestRunTmpfs probes a file system that lacks something on many kernels; the
// report must say what and why, whichever it is.
func TestRunTmpfs(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	r, err := probe.Run(probe.Options{Dir: dir})
	require.NoError(t, err)
	assert.Equal(t, "tmpfs", r.FileSystem)
	assert.False(t, r.Reflink.OK(), "tmpfs shares no data")
	assert.Contains(t, string(r.Reflink), "ficlone")
	assert.Equal(t, probe.Result("not tried"), r.IdmapMount)
	assert.Empty(t, names(t, dir))
}

// TestRemember checks for which report the file is believed.
func TestRemember(t *testing.T) {
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, "ext4", 128<<20)
	file := filepath.Join(t.TempDir(), "probe.json")
	calls := 0
	o := probe.Options{Dir: dir, Remember: file, UserNS: userNS(&calls)}
	first, err := probe.Run(o)
	require.NoError(t, err)
	second, err := probe.Run(o)
	require.NoError(t, err)
	assert.Equal(t, first, second)
	assert.Equal(t, 1, calls, "the second answer comes from the file")

	rewrite := func(change func(*probe.Report)) {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		var r probe.Report
		require.NoError(t, json.Unmarshal(b, &r))
		r.Metacopy = "from memory"
		change(&r)
		b, err = json.Marshal(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, b, 0o600))
	}
	for name, c := range map[string]struct {
		change   func(*probe.Report)
		believed bool
	}{
		"the same":            {func(*probe.Report) {}, true},
		"another boot":        {func(r *probe.Report) { r.BootID = "0" }, false},
		"another kernel":      {func(r *probe.Report) { r.Kernel = "6.0" }, false},
		"another version":     {func(r *probe.Report) { r.Version++ }, false},
		"another file system": {func(r *probe.Report) { r.Dev++ }, false},
		"another user":        {func(r *probe.Report) { r.Rootless = true }, false},
	} {
		t.Run(name, func(t *testing.T) {
			rewrite(c.change)
			before := calls
			r, err := probe.Run(o)
			require.NoError(t, err)
			if c.believed {
				assert.Equal(t, probe.Result("from memory"), r.Metacopy)
				assert.Equal(t, before, calls)
				return
			}
			assert.Equal(t, first, r)
			assert.Equal(t, before+1, calls)
			again, err := probe.Run(o)
			require.NoError(t, err)
			assert.Equal(t, first, again)
			assert.Equal(t, before+1, calls, "the new answer is remembered")
		})
	}
	for _, garbage := range []string{"", "{", "[]", "null", `{"boot_id":1}`} {
		require.NoError(t, os.WriteFile(file, []byte(garbage), 0o600))
		r, err := probe.Run(o)
		require.NoError(t, err)
		assert.Equal(t, first, r, "after a file of %q", garbage)
	}
	assert.Equal(t, []string{"probe.json"}, names(t, filepath.Dir(file)), "left behind")
}

// TestRememberNowhere checks that a run root that cannot be written costs no
// answer.
func TestRememberNowhere(t *testing.T) {
	testutil.RequireRoot(t)
	r, err := probe.Run(probe.Options{Dir: t.TempDir(), Remember: filepath.Join(t.TempDir(), "gone/probe.json")})
	require.NoError(t, err)
	assert.NotEmpty(t, r.BootID)
}

// TestRunErrors checks that what cannot be tried is an error with the path.
func TestRunErrors(t *testing.T) {
	testutil.RequireRoot(t)
	gone := filepath.Join(t.TempDir(), "gone")
	_, err := probe.Run(probe.Options{Dir: gone})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, gone)

	dir := testutil.LoopFS(t, "ext4", 128<<20)
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	remember := filepath.Join(t.TempDir(), "probe.json")
	_, err = probe.Run(probe.Options{Dir: dir, Remember: remember})
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorContains(t, err, dir)
	assert.NoFileExists(t, remember, "no answer, nothing to remember")
}

// TestUserNSError checks that a user namespace that cannot be made is an
// answer, not an error.
func TestUserNSError(t *testing.T) {
	testutil.RequireRoot(t)
	r, err := probe.Run(probe.Options{Dir: t.TempDir(), UserNS: func() (int, error) {
		return -1, errors.New("max_user_namespaces is 0")
	}})
	require.NoError(t, err)
	assert.Contains(t, string(r.IdmapMount), "max_user_namespaces is 0")
}
