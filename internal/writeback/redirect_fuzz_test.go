package writeback

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// FuzzRedirect checks that no redirect of a container's file leads out of the
// layers, whatever links these hold.
func FuzzRedirect(f *testing.F) {
	testutil.RequireRoot(f)
	dir := f.TempDir()
	const secret = "SECRET"
	require.NoError(f, os.WriteFile(filepath.Join(dir, "secret"), []byte(secret), 0o600))
	var layers []string
	for _, name := range []string{"l1", "l0"} {
		l := filepath.Join(dir, name)
		layers = append(layers, l)
		require.NoError(f, os.MkdirAll(filepath.Join(l, "d", "e"), 0o755))
		for _, file := range []string{"a", "d/b", "d/e/c"} {
			require.NoError(f, os.WriteFile(filepath.Join(l, file), []byte("own"), 0o600))
		}
		require.NoError(f, os.Symlink(dir, filepath.Join(l, "out")))
		require.NoError(f, os.Symlink("../../secret", filepath.Join(l, "d", "secret")))
		require.NoError(f, os.Symlink("..", filepath.Join(l, "up")))
	}
	for _, seed := range []string{
		"", "a", "/a", "/d/b", "b", "/d/../a", "/../../secret", "/out/secret", "../secret", "/d/secret", "/up/secret", "/", "//", "/.", "/d/", "\x00", "/a\x00b", "/d//e/c", "..", ".",
	} {
		f.Add(seed, "a")
		f.Add(seed, "out")
	}
	f.Fuzz(func(t *testing.T, redirect, name string) {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return // no directory lists it
		}
		root, err := openBelow(layers, idshift.TrustedOverlay)
		require.NoError(t, err)
		defer root.close()
		if fd, err := root.openData(root, name, redirect); err == nil {
			defer linux.Close(fd)
			buf := make([]byte, 16)
			n, err := unix.Read(fd, buf)
			require.NoError(t, err)
			require.Equal(t, "own", string(buf[:n]))
		}
		b, err := root.child(root, name, redirect)
		defer b.close()
		if err != nil {
			return
		}
		for _, p := range b {
			got, err := os.Readlink(filepath.Join("/proc/self/fd", strconv.Itoa(p.fd)))
			require.NoError(t, err)
			require.Contains(t, got+"/", dir+"/l")
		}
	})
}
