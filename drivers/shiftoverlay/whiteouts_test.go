package shiftoverlay

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
)

// describe lists what is below a folder: types, and which folders are opaque.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	var buf linux.XattrBuffer
	require.NoError(t, filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		require.NoError(t, err)
		what := st.Mode().Type().String()[:1]
		if sys, err := linuxStat(p); err == nil && st.Mode()&os.ModeCharDevice != 0 && sys.Rdev == 0 {
			what = "whiteout"
		}
		if v, err := buf.Lget(p, ovl.Opaque); err == nil {
			what += " opaque=" + string(v)
		}
		out[strings.TrimPrefix(p, root)] = what
		return nil
	}))
	return out
}

func linuxStat(p string) (st unix.Stat_t, err error) {
	err = unix.Lstat(p, &st)
	return st, err
}

func TestConvertLayer(t *testing.T) {
	testutil.RequireRoot(t)
	layer := t.TempDir()
	diff, more := filepath.Join(layer, "diff"), filepath.Join(layer, "diff1")
	for _, dir := range []string{diff, more} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	old := fstree.Time(1000000000, 5)
	fstree.Apply(t, diff,
		fstree.Dir("a", old), fstree.File("a/.wh.gone", ""),
		fstree.Dir("a/again"), fstree.File("a/.wh.again", ""), // a folder that is given anew
		fstree.File("a/file", "text"), fstree.File("a/.wh.file", ""), // likewise a file
		fstree.Dir("deep"), fstree.Dir("deep/er", old), fstree.File("deep/er/.wh..wh..opq", ""), fstree.File("deep/er/.wh.\n", ""),
		fstree.Dir("kept"), fstree.File("kept/.wh..wh.plnk", ""), fstree.File("kept/.wh.text", "not empty"), fstree.File("kept/.wh.", ""),
		fstree.Symlink("kept/.wh.link", "target"), fstree.Symlink("outside", more),
	)
	fstree.Apply(t, more, fstree.File(".wh.beside", ""))
	require.NoError(t, convertLayer(layer, t.TempDir()))
	want := map[string]string{
		"": "d", "/a": "d", "/a/gone": "whiteout", "/a/again": "d opaque=y", "/a/file": "-",
		"/deep": "d", "/deep/er": "d opaque=y", "/deep/er/\n": "whiteout",
		"/kept": "d", "/kept/.wh..wh.plnk": "-", "/kept/.wh.text": "-", "/kept/.wh.": "-", "/kept/.wh.link": "L", "/outside": "L",
	}
	assert.Equal(t, want, describe(t, diff))
	assert.Equal(t, map[string]string{"": "d", "/beside": "whiteout"}, describe(t, more))
	for _, dir := range []string{"a", "deep/er"} {
		st, err := os.Stat(filepath.Join(diff, dir))
		require.NoError(t, err)
		assert.Equal(t, time.Unix(1000000000, 5), st.ModTime(), "time of %s", dir)
	}

	// Once only: what looks like a whiteout then is a container's file.
	fstree.Apply(t, diff, fstree.File(".wh.late", ""))
	require.NoError(t, convertLayer(layer, t.TempDir()))
	assert.FileExists(t, filepath.Join(diff, ".wh.late"))
	assert.NoFileExists(t, filepath.Join(diff, "late"))
}

// What was interrupted is done again.
func TestConvertLayerAgain(t *testing.T) {
	testutil.RequireRoot(t)
	layer := t.TempDir()
	diff := filepath.Join(layer, "diff")
	require.NoError(t, os.Mkdir(diff, 0o755))
	fstree.Apply(t, diff, fstree.Whiteout("gone"), fstree.File(".wh.gone", ""), fstree.Dir("dir", fstree.Opaque()), fstree.File("dir/.wh..wh..opq", ""))
	require.NoError(t, convertLayer(layer, t.TempDir()))
	assert.Equal(t, map[string]string{"": "d", "/gone": "whiteout", "/dir": "d opaque=y"}, describe(t, diff))
}

// A layer that can only be read is looked at once in a boot.
func TestConvertReadOnlyLayer(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	layer := filepath.Join(dir, "layer")
	require.NoError(t, os.MkdirAll(filepath.Join(layer, "diff"), 0o755))
	require.NoError(t, unix.Mount(layer, layer, "", unix.MS_BIND, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(layer, 0)) })
	readOnly := func(flag uintptr) {
		require.NoError(t, unix.Mount("", layer, "", unix.MS_BIND|unix.MS_REMOUNT|flag, ""))
	}
	notes := filepath.Join(dir, "notes")
	fstree.Apply(t, filepath.Join(layer, "diff"), fstree.File(".wh.x", ""))
	readOnly(unix.MS_RDONLY)
	require.ErrorIs(t, convertLayer(layer, notes), unix.EROFS)
	readOnly(0)
	require.NoError(t, os.Remove(filepath.Join(layer, "diff", ".wh.x")))
	readOnly(unix.MS_RDONLY)
	require.NoError(t, convertLayer(layer, notes))
	assert.FileExists(t, filepath.Join(notes, "layer"))
	require.NoError(t, convertLayer(layer, notes))
	readOnly(0)
}
