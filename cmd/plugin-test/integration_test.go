package main

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// busybox is a statically linked program; without it, nothing can be run.
const busybox = "/bin/busybox"

const (
	oneExtent = "0:200000:65536"
	// The file system of the machine may refuse idmapped mounts.
	cannot = "does not work here"
)

func threeExtents() []string {
	return []string{"0:300000:1000", "1000:500000:1", "1001:600000:64535"}
}

// TestPullMountVerify is the way of an image through the host: pull, list,
// mount, verify, run, remove. The host checks that no mount is left.
func TestPullMountVerify(t *testing.T) {
	testutil.RequireRoot(t)
	if _, err := os.Stat(busybox); err != nil {
		testutil.Skip(t, "needs "+busybox+": "+err.Error())
	}
	h := newHost(t)
	archive := writeTar(t, smallLayer(t, busybox))
	id := strings.TrimSpace(h.ok("pull", "tar:"+archive, "small"))
	assert.Len(t, id, 64)
	assert.Equal(t, id, strings.TrimSpace(h.ok("pull", "tar:"+archive, "small")), "the same archive is the same image")

	var images []imageRow
	h.json(&images, "images")
	require.Len(t, images, 1)
	assert.Equal(t, []string{"localhost/small:latest"}, images[0].Names)
	assert.Equal(t, 1, images[0].Layers)

	var m mountResult
	h.json(&m, append([]string{"mount"}, append(flag(oneExtent), "small")...)...)
	assert.Equal(t, "200000:200000", owner(t, filepath.Join(m.MountPoint, "etc/passwd")))
	assert.Equal(t, "200000:200042", owner(t, filepath.Join(m.MountPoint, "etc/shadow")))
	assert.Equal(t, "201000:201000", owner(t, filepath.Join(m.MountPoint, "bin/for-users")))
	require.NoError(t, os.WriteFile(filepath.Join(m.MountPoint, "tmp/written"), []byte("x"), 0o600))
	h.ok("umount", m.ID)
	again := h.try("umount", m.ID)
	assert.Equal(t, exitOwnError, again.code)
	assert.Contains(t, again.errors, "it is not mounted")
	h.ok("rm", m.ID)

	out := h.ok(append([]string{"verify", "--content", "small"}, flag(oneExtent)...)...)
	assert.True(t, strings.HasSuffix(out, "\ndifferences: 0\n"), out)

	t.Run("run", func(t *testing.T) { runCommands(t, h) })

	h.ok("rmi", "small")
	h.json(&images, "images")
	assert.Empty(t, images)
	gone := h.try("mount", "small")
	assert.Equal(t, exitOwnError, gone.code)
	assert.Contains(t, gone.errors, `find image "small"`)
}

func runCommands(t *testing.T, h *host) {
	t.Helper()
	assert.Equal(t, []string{"0", "700000", "65536"}, strings.Fields(h.ok("run", "--uidmap", "0:700000:65536", "small", "--", "cat", "/proc/self/uid_map")))
	assert.Equal(t, "0:42\n", h.ok("run", "--userns", "auto", "small", "--", "stat", "-c", "%u:%g", "/etc/shadow"))
	assert.Equal(t, "1 / 0\n", h.ok("run", "small", "--", "sh", "-c", `touch /new && echo $$ $(pwd) $(stat -c %u /new)`))
	assert.Contains(t, h.ok("run", "small", "--", "sh", "-c", "id -u; cat /dev/null; ls /proc/1/exe"), "0\n")
	assert.Equal(t, []string{"0", "0", "4294967295"}, strings.Fields(h.ok("run", "--userns", "host", "small", "--", "cat", "/proc/self/uid_map")))
	assert.Equal(t, "ro\n", h.ok("run", "--read-only", "small", "--", "sh", "-c", "touch /new 2>/dev/null || echo ro"))

	assert.Equal(t, 7, h.try("run", "small", "--", "sh", "-c", "exit 7").code)
	assert.Equal(t, exitNotFound, h.try("run", "small", "--", "no-such-program").code)
	assert.Equal(t, exitNotExecutable, h.try("run", "small", "--", "/etc/passwd").code)

	// Two at once have ranges of their own.
	var wg sync.WaitGroup
	starts := make([]string, 2)
	for i := range starts {
		wg.Go(func() {
			r := h.try("run", "small", "--", "sh", "-c", "cat /proc/self/uid_map; sleep 1")
			if assert.Zero(t, r.code, r.errors) {
				starts[i] = strings.Fields(r.out)[1]
			}
		})
	}
	wg.Wait()
	assert.NotEqual(t, starts[0], starts[1])
	assert.Contains(t, starts, strings.Fields(h.ok("run", "small", "--", "cat", "/proc/self/uid_map"))[1], "ranges come back")
	interrupt(t, h)
}

// interrupt ends plugin-test while a command runs: the container must go.
func interrupt(t *testing.T, h *host) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "--root", h.root, "run", "small", "--", "sh", "-c", "echo started; exec sleep 60")
	cmd.Env = append(os.Environ(), h.env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "started\n", line)
	require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	assert.Equal(t, exitOwnError, exit.ExitCode(), errs.String())
	containers, err := os.ReadFile(h.root + "/shiftoverlay-containers/volatile-containers.json")
	require.NoError(t, err)
	assert.Equal(t, "[]", strings.TrimSpace(string(containers)))
	assert.Empty(t, h.mounts())
}

// TestVerifyLayers verifies an image of three layers with every engine.
func TestVerifyLayers(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	h.ok("pull", "oci:"+writeOCI(t, nastyLayers()...), "nasty")
	for _, engine := range []string{"auto", "idmap", "erofs", "metacopy", "copyup"} {
		t.Run(engine, func(t *testing.T) {
			for _, mapping := range [][]string{{oneExtent}, threeExtents(), {"0:100000:80000"}} {
				args := append([]string{"--engine", engine, "verify", "--content", "nasty"}, flag(mapping...)...)
				r := h.try(args...)
				if strings.Contains(r.errors, cannot) {
					testutil.Skip(t, r.errors)
				}
				assert.Zero(t, r.code, "%v:\n%s%s", mapping, r.out, r.errors)
				assert.Contains(t, r.out, "truth: ")
				assert.True(t, strings.HasSuffix(r.out, "\ndifferences: 0\n"), "%v:\n%s", mapping, r.out)
			}
		})
	}
}

// TestGroundTruth checks that both kinds of truth are one, and that they show
// what the mapping says.
func TestGroundTruth(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	h.ok("pull", "oci:"+writeOCI(t, nastyLayers()...), "nasty")
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)

	a := &app{stdout: t.Output(), stderr: t.Output(), root: h.root, driver: driverName, format: formatText, logLevel: "warn"}
	require.NoError(t, a.prepare())
	t.Cleanup(func() { assert.NoError(t, a.close()) })
	store, err := a.open()
	require.NoError(t, err)
	image, err := findImage(store, "nasty")
	require.NoError(t, err)
	m, err := idshift.ParseMapping(strings.Join(threeExtents(), ","), oneExtent)
	require.NoError(t, err)
	options := referee.Options{Content: true, MergedNlink: true, OverlayXattrs: true}
	arithmetic, err := arithmeticTruth(t.Context(), store, image, m, options)
	require.NoError(t, err)

	for path, want := range map[string][2]uint32{
		"d/plain": {300000, 200000}, "d/acl": {500000, 201000}, "outside": {idshift.OverflowID, idshift.OverflowID}, "d/soft": {300007, 200007},
	} {
		n, ok := arithmetic.Lookup(path)
		require.True(t, ok, path)
		assert.Equal(t, want, [2]uint32{n.UID, n.GID}, path)
	}
	for _, path := range []string{"gone", "opaque/hidden", "to-file/x", "d/.wh.removed"} {
		_, ok := arithmetic.Lookup(path)
		assert.False(t, ok, path)
	}
	n, ok := arithmetic.Lookup("d/link1")
	require.True(t, ok)
	assert.Equal(t, []string{"d/link1", "meta/link3"}, n.Links())

	kernel, err := kernelTruth(t.Context(), store, image, m, options)
	if no, ok := errors.AsType[*kernelCannotError](err); ok {
		testutil.Skip(t, no.Error())
	}
	require.NoError(t, err)
	assert.Empty(t, referee.Compare(kernel, arithmetic, options))
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	assert.Empty(t, left, "mount points left behind")
}

// TestVerifyFindsTampering changes what a mount shows behind the driver's
// back, and verify must see it.
func TestVerifyFindsTampering(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	h.ok("pull", "oci:"+writeOCI(t, nastyLayers()...), "nasty")
	args := append([]string{"--engine", "copyup", "verify", "nasty"}, flag(oneExtent)...)
	h.ok(args...)

	var changed int
	require.NoError(t, filepath.WalkDir(h.root+"/shiftoverlay-shifted", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Base(path) != "setuid" {
			return err
		}
		changed++
		return os.Lchown(path, 4711, 200006) // also drops setuid
	}))
	require.Equal(t, 1, changed, "copies of the file in the cache")
	r := h.try(args...)
	assert.Equal(t, exitDifferent, r.code)
	assert.Contains(t, r.out, "d/setuid: uid: 200005 != 4711\n")
	assert.Contains(t, r.out, "d/setuid: mode: 6755 != ")
	assert.True(t, strings.HasSuffix(r.out, "\ndifferences: 2\n"), r.out)
}

// TestBench measures a small image once, and leaves nothing of the second
// store.
func TestBench(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	h.ok("pull", "oci:"+writeOCI(t, nastyLayers()[1:]...), "image")
	var rows []benchRow
	h.json(&rows, "--engine", "metacopy", "bench", "--rounds", "1", "--size", "100000", "image")
	var steps []string
	for _, r := range rows {
		steps = append(steps, r.Step)
		assert.Positive(t, r.WallSeconds, r.Step)
		assert.Positive(t, r.PeakRSSKiB, r.Step)
		assert.Len(t, r.Samples, 1, r.Step)
	}
	assert.Equal(t, []string{"no mapping", "fresh mapping", "cached mapping", "upstream's chown"}, steps)
	assert.NoDirExists(t, h.root+"-upstream")
}

func TestInfo(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	var info infoResult
	h.json(&info, "info")
	assert.Equal(t, driverName, info.GraphDriver)
	assert.Equal(t, h.root, info.GraphRoot)
	for _, key := range []string{"Backing Filesystem", "Shift engine", "Shift engine reason", "Shift cache path"} {
		assert.NotEmpty(t, info.GraphStatus[key], key)
	}
	assert.NotEmpty(t, info.Probe["Probe file system"])
	assert.Contains(t, h.ok("info"), "\nShift engine: ")
}

// TestStoreErrors checks that what is wrong with a store is named.
func TestStoreErrors(t *testing.T) {
	testutil.RequireRoot(t)
	t.Run("read-only", func(t *testing.T) {
		h := newHost(t)
		h.root = "/proc/store" // no folder can be made in /proc
		r := h.try("images")
		assert.Equal(t, exitOwnError, r.code)
		assert.Contains(t, r.errors, "/proc/store")
	})
	t.Run("missing layer", func(t *testing.T) {
		h := newHost(t)
		h.ok("pull", "oci:"+writeOCI(t, nastyLayers()...), "nasty")
		layers, err := filepath.Glob(h.root + "/shiftoverlay/*/lower")
		require.NoError(t, err)
		require.Len(t, layers, 2, "the upper two of three layers")
		require.NoError(t, os.RemoveAll(filepath.Dir(layers[0])))
		r := h.try(append([]string{"mount", "nasty"}, flag(oneExtent)...)...)
		assert.Equal(t, exitOwnError, r.code, r.out)
		assert.Contains(t, r.errors, filepath.Base(filepath.Dir(layers[0])), "names the layer")
		assert.Contains(t, r.errors, "pull it again")
		var images []imageRow
		h.json(&images, "images")
	})
	t.Run("archive", func(t *testing.T) {
		h := newHost(t)
		bad := filepath.Join(t.TempDir(), "bad.tar")
		require.NoError(t, os.WriteFile(bad, []byte(strings.Repeat("no archive", 100)), 0o600))
		r := h.try("pull", "tar:"+bad, "bad")
		assert.Equal(t, exitOwnError, r.code)
		assert.Contains(t, r.errors, bad)
		var images []imageRow
		h.json(&images, "images")
		assert.Empty(t, images)
	})
}
