package worstcase_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/worstcase"
)

// folders makes folders for the layers, the uppermost first.
func folders(t *testing.T, dir string, n int) []string {
	t.Helper()
	var out []string
	for i := range n {
		out = append(out, filepath.Join(dir, fmt.Sprintf("l%d", i)))
		require.NoError(t, os.MkdirAll(out[i], 0o755))
	}
	return out
}

// write writes the image and removes it at the end.
func write(t *testing.T, dir string, o worstcase.Options) ([]string, []worstcase.LeftOut) {
	t.Helper()
	chain := folders(t, dir, worstcase.Layers)
	t.Cleanup(func() { assert.NoError(t, worstcase.Remove(dir)) })
	left, err := worstcase.Write(t.Context(), chain, o)
	require.NoError(t, err)
	return chain, left
}

// large are the features that take long.
func large() []string { return []string{"wide"} }

// TestSame checks that two runs write the same, to the last attribute.
func TestSame(t *testing.T) {
	fs := testutil.LoopFS(t, "ext4", 512<<20)
	o := referee.Options{Content: true, OverlayXattrs: true}
	var trees []*referee.Tree
	for _, name := range []string{"one", "two"} {
		dir := filepath.Join(fs, name)
		write(t, dir, worstcase.Options{Without: large()})
		tree, err := referee.Scan(t.Context(), dir, o)
		require.NoError(t, err)
		trees = append(trees, tree)
		// What was tried has left nothing.
		tried, err := filepath.Glob(filepath.Join(dir, "*", ".try-*"))
		require.NoError(t, err)
		assert.Empty(t, tried)
	}
	assert.Empty(t, referee.Compare(trees[0], trees[1], o))
	for i := range worstcase.Layers {
		var a, b unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(fs, "one", fmt.Sprintf("l%d", i)), &a))
		require.NoError(t, unix.Lstat(filepath.Join(fs, "two", fmt.Sprintf("l%d", i)), &b))
		assert.Equal(t, a.Mtim, b.Mtim, "layer %d", i)
	}
}

// TestLeftOut checks which features the file systems cannot hold: a longer
// list means that a test looks at less than it did.
func TestLeftOut(t *testing.T) {
	for fileSystem, want := range map[string][]string{
		"ext4":  {"times-1600", "times-9999", "xattr-list-limit"},
		"xfs":   {"device-numbers", "times-1600", "times-9999", "symlink-1024", "symlink-3000", "symlink-4095"},
		"btrfs": nil,
	} {
		t.Run(fileSystem, func(t *testing.T) {
			_, left := write(t, testutil.LoopFS(t, fileSystem, 512<<20)+"/image", worstcase.Options{Without: large()})
			var names []string
			for _, l := range left {
				names = append(names, l.Feature)
				assert.NotEmpty(t, l.Reason)
			}
			slices.Sort(names)
			slices.Sort(want)
			assert.Equal(t, want, names)
		})
	}
}

// TestFeatures checks that each feature has a name of its own and is there
// alone, too.
func TestFeatures(t *testing.T) {
	testutil.RequireRoot(t)
	all := worstcase.Features()
	var names []string
	for _, f := range all {
		assert.NotEmpty(t, f.What, f.Name)
		assert.NotContains(t, names, f.Name)
		names = append(names, f.Name)
	}
	assert.Subset(t, names, []string{worstcase.Immutable, worstcase.SharedInode, worstcase.RootXattrs, worstcase.LongPaths})
	dir := t.TempDir()
	for _, name := range names {
		if slices.Contains(large(), name) {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
		chain, left := write(t, filepath.Join(dir, name), worstcase.Options{Without: others})
		if len(left) > 0 {
			assert.Equal(t, name, left[0].Feature)
			continue
		}
		entries := 0
		for _, layer := range chain {
			e, err := os.ReadDir(layer)
			require.NoError(t, err)
			entries += len(e)
		}
		assert.True(t, entries > 0 || name == "roots" || name == worstcase.RootXattrs, name)
	}
}

// TestErrors checks what cannot be written.
func TestErrors(t *testing.T) {
	testutil.RequireRoot(t)
	chain := folders(t, t.TempDir(), worstcase.Layers)
	_, err := worstcase.Write(t.Context(), chain, worstcase.Options{Without: []string{"no-such"}})
	require.ErrorContains(t, err, `"no-such"`)
	require.ErrorContains(t, err, "hard-links", "the error lists what there is")
	_, err = worstcase.Write(t.Context(), chain[:2], worstcase.Options{})
	require.ErrorContains(t, err, "2 folders for 5 layers")
	_, err = worstcase.Write(t.Context(), append(slices.Clone(chain[:4]), "/no/such/folder"), worstcase.Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "/no/such/folder")
	_, err = worstcase.Write(t.Context(), chain, worstcase.Options{Program: "/no/such/program"})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, worstcase.HostileChains()[0].Write(t.Context(), chain, "/"), "5 folders for 3 layers")
}

// TestProgram checks that a program can be taken along.
func TestProgram(t *testing.T) {
	testutil.RequireRoot(t)
	file := filepath.Join(t.TempDir(), "box")
	require.NoError(t, os.WriteFile(file, []byte("#!"), 0o600))
	chain, _ := write(t, filepath.Join(t.TempDir(), "image"), worstcase.Options{Program: file, Without: large()})
	got, err := os.ReadFile(filepath.Join(chain[worstcase.Layers-1], "bin/sh"))
	require.NoError(t, err)
	assert.Equal(t, "#!", string(got))
}

// TestRemove checks that what cannot be deleted is, and nothing that a link
// leads to.
func TestRemove(t *testing.T) {
	fs := testutil.LoopFS(t, "ext4", 512<<20)
	kept := filepath.Join(fs, "kept")
	require.NoError(t, os.WriteFile(kept, []byte("x"), 0o600))
	dir := filepath.Join(fs, "image")
	chain, _ := write(t, dir, worstcase.Options{Without: large()})
	require.NoError(t, os.Symlink(fs, filepath.Join(chain[0], "out")))
	require.ErrorIs(t, os.RemoveAll(chain[worstcase.Layers-1]), unix.EPERM, "the trap works: something is immutable")
	require.NoError(t, worstcase.Remove(dir))
	assert.NoDirExists(t, dir)
	assert.FileExists(t, kept)
	require.NoError(t, worstcase.Remove(dir), "as os.RemoveAll, it does not mind that there is nothing")
}
