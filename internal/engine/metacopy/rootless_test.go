package metacopy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// rootless builds the tree of an ordinary user and mounts it with its data-only
// lowers.
func rootless(t *testing.T, dir string, chain []string) (tree, merged string) {
	t.Helper()
	built, merged := filepath.Join(dir, "built"), filepath.Join(dir, "merged")
	require.NoError(t, os.Mkdir(built, 0o700))
	require.NoError(t, os.Mkdir(merged, 0o700))
	m, err := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
	require.NoError(t, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	e := metacopy.Engine{}
	require.NoError(t, e.Build(t.Context(), built, engine.Job{Chain: chain, Shift: s, Rootless: true}))
	o := mount.Overlay{Above: []string{e.Lower(built)}, Options: []string{"userxattr"}}
	o.Data, o.DataTrees, err = e.Data(built, chain)
	require.NoError(t, err)
	mnt, err := o.Mount()
	for _, d := range o.DataTrees {
		require.NoError(t, d.Close())
	}
	if err != nil {
		testutil.Skip(t, err.Error())
	}
	require.NoError(t, mnt.Attach(merged))
	require.NoError(t, mnt.Close())
	t.Cleanup(func() { require.NoError(t, unix.Unmount(merged, 0)) })
	return e.Lower(built), merged
}

// manyFiles is more files in a folder than a data-only lower of its own is worth.
func manyFiles(folder, content string) (nodes []fstree.Node) {
	for i := range 150 {
		name := fmt.Sprintf("%s/file-%03d", folder, i)
		nodes = append(nodes, fstree.File(name, content+name))
	}
	return nodes
}

// TestRoots has files with paths that are too long for an inode, in several
// places that have the same names in them, and hidden ones with wrong content at
// each place where a short path could lead.
func TestRoots(t *testing.T) {
	dir := testutil.LoopFS(t, "ext4", 128<<20)
	long := strings.Repeat("long/", 8)
	chain := []string{filepath.Join(dir, "upper"), filepath.Join(dir, "lower")}
	for _, layer := range chain {
		require.NoError(t, os.Mkdir(layer, 0o755))
	}
	lower := append(manyFiles("a/"+long+"here", "A"), manyFiles("b/"+long+"here", "B")...)
	lower = append(lower, manyFiles("c/"+long+"here", "C")...)
	lower = append(lower,
		fstree.File("file-000", "WRONG"), fstree.File("here/file-001", "WRONG"), fstree.Symlink("here/file-002", "/etc/passwd"),
		fstree.File("b/"+long+"here/below/file-003", "WRONG"), fstree.Symlink("below", "c"))
	fstree.Apply(t, chain[1], lower...)
	fstree.Apply(t, chain[0], fstree.File("a/"+long+"here/file-004", "upper"), fstree.Whiteout("a/"+long+"here/file-005"),
		fstree.Dir("c/"+long+"here", fstree.Xattr("user.overlay.opaque", "y")), fstree.File("c/"+long+"here/file-006", "upper"))
	tree, merged := rootless(t, dir, chain)
	want := map[string]string{"a/" + long + "here/file-004": "upper", "c/" + long + "here/file-006": "upper"}
	for i := range 150 {
		for _, top := range []string{"a", "b"} {
			name := fmt.Sprintf("%s/%shere/file-%03d", top, long, i)
			if want[name] == "" && name != "a/"+long+"here/file-005" {
				want[name] = strings.ToUpper(top) + name
			}
		}
	}
	short := 0
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(merged, name))
		require.NoError(t, err, name)
		require.Equal(t, content, string(got), name)
		to := make([]byte, 4096)
		n, err := unix.Lgetxattr(filepath.Join(tree, name), "user.overlay.redirect", to)
		require.NoError(t, err, name)
		if n <= 56 {
			short++
		}
	}
	// All but those that would lead to something else: there is no short way to
	// the same names in three places but for the first.
	assert.Greater(t, short, 200)
	names, err := os.ReadDir(filepath.Join(merged, "c", long, "here"))
	require.NoError(t, err)
	assert.Len(t, names, 1, "an opaque folder hides what is below")
	assert.NoFileExists(t, filepath.Join(merged, "a", long, "here/file-005"))
}

// TestRootlessNoData checks that there is no data in the tree, that files without
// the right to write get their marks, too, and that devices are left out.
func TestRootlessNoData(t *testing.T) {
	dir := testutil.LoopFS(t, "ext4", 128<<20)
	layer := filepath.Join(dir, "layer")
	require.NoError(t, os.Mkdir(layer, 0o755))
	long := strings.Repeat("x", 200)
	for range 19 { // the data is found by one path, of less than 4096 bytes
		long += "/" + strings.Repeat("x", 200)
	}
	fstree.Apply(t, layer,
		fstree.File("read-only", strings.Repeat("data", 5000), fstree.Mode(0o444), fstree.Owner(7, 7)), fstree.File("none", "x", fstree.Mode(0)),
		fstree.File("suid", "x", fstree.Mode(0o6755), fstree.Owner(5, 5)), fstree.Link("d/link", "suid"), fstree.File("empty", ""),
		fstree.File(long+"/"+strings.Repeat("y", 74), "fits"), fstree.File(long+"/"+strings.Repeat("y", 75), "does not fit"),
		fstree.Device("null", unix.S_IFCHR, 1, 3), fstree.Link("d/null", "null"), fstree.Fifo("fifo"))
	tree, merged := rootless(t, dir, []string{layer})
	for name, mode := range map[string]uint32{"read-only": 0o444, "none": 0, "suid": 0o6755, "d/link": 0o6755} {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(tree, name), &st))
		assert.Zero(t, st.Blocks, name)
		assert.Equal(t, mode, st.Mode&0o7777, name)
		want, err := os.ReadFile(filepath.Join(layer, name))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(merged, name))
		require.NoError(t, err)
		assert.True(t, string(want) == string(got), "content of %s", name)
	}
	for _, name := range []string{"null", "d/null"} {
		assert.NoFileExists(t, filepath.Join(merged, name))
	}
	m, err := os.OpenRoot(merged)
	require.NoError(t, err)
	defer m.Close()
	for name, want := range map[string]string{strings.Repeat("y", 74): "fits", strings.Repeat("y", 75): "does not fit"} {
		f, err := m.Open(long + "/" + name)
		require.NoError(t, err)
		buf := make([]byte, 20)
		n, err := f.Read(buf)
		require.NoError(t, err)
		assert.Equal(t, want, string(buf[:n]))
		require.NoError(t, f.Close())
	}
}
