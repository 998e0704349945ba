package enginetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// contract checks what can be said without building.
func (s *suite) contract(t *testing.T) {
	assert.NotEmpty(t, s.b.Name())
	assert.NotEqual(t, engine.Auto, s.b.Name())
	assert.Positive(t, s.b.Format())
	assert.NoError(t, s.b.Check(engine.Env{}), "works where everything works")
	assert.Equal(t, s.b.Lower("/a/b"), s.b.Lower("/a/b"))
	assert.True(t, strings.HasPrefix(s.b.Lower("/a/b"), "/a/b/"), "the lower is below the folder")
}

// fails builds in a new folder, which must fail, and checks that no file stays
// open.
func (s *suite) fails(t *testing.T, ctx context.Context, job engine.Job) error { //nolint:revive // t first, as in every helper of a test
	t.Helper()
	dir := filepath.Join(s.place(t), "built")
	require.NoError(t, os.Mkdir(dir, 0o700))
	before := testutil.OpenFiles(t)
	err := s.b.Build(ctx, dir, job)
	require.Error(t, err)
	assert.Equal(t, before, testutil.OpenFiles(t), "open files after a build that failed")
	require.NoError(t, os.RemoveAll(dir), "the caller can remove what is left")
	return err
}

// busy is a tree that takes a moment: some 8,000 paths, wide and deep, some
// of them hard links.
func busy() []fstree.Node {
	var out []fstree.Node
	for i := range 40 {
		for j := range 20 {
			dir := fmt.Sprintf("d%02d/e%02d", i, j)
			out = append(out, fstree.Dir(dir, fstree.Owner(i, j)))
			for k := range 8 {
				out = append(out, fstree.File(fmt.Sprintf("%s/f%d", dir, k), "content of "+dir, fstree.Owner(k, 1000+i), fstree.Mode(0o640)))
			}
			out = append(out, fstree.Link(dir+"/link", "d00/e00/f0"), fstree.Symlink(dir+"/sym", "f0", fstree.Owner(5, 5)))
		}
	}
	return out
}

// workers checks that the result does not depend on the number of threads,
// nor on anything else that changes from one build to the next.
func (s *suite) workers(t *testing.T) {
	chain := s.layers(t, s.place(t), append(fiveLayers(), busy()))
	sh := shift(t, mapping(t, Three, Auto), idshift.Overflow)
	// A hard link's redirect may lead to any of its names.
	o := referee.Options{Content: true, OverlayXattrs: !s.rootless}
	first := scan(t, s.build(t, chain, sh, 1), o)
	for _, n := range []int{1, 2, 16} {
		got := scan(t, s.build(t, chain, sh, n), o)
		assert.Empty(t, referee.Compare(first, got, o), "1 thread != %d threads", n)
	}
}

// writable mounts the lower as a container's and writes: every file must be
// completed with its data.
func (s *suite) writable(t *testing.T) {
	big := strings.Repeat("0123456789", 100000)
	chain := s.layers(t, s.place(t), [][]fstree.Node{
		{fstree.File("f/top", "top", fstree.Owner(1, 1))},
		{
			fstree.File("f/append", "begin-", fstree.Owner(2, 2)), fstree.File("f/chmod", big, fstree.Owner(3, 3)), fstree.File("f/rename", "renamed"),
			fstree.File("f/truncate", big), fstree.File("dir/below", "kept", fstree.Owner(4, 4)), fstree.File("f/link", "linked"),
			fstree.File("f/suid", "x", fstree.Mode(0o4755)), fstree.File("f/deleted", "x"), fstree.File("f/acl", "y"),
		},
	})
	sh := shift(t, mapping(t, "", ""), idshift.Overflow)
	lower := s.build(t, chain, sh, 0)
	place := s.place(t)
	upper, work := sub(t, place, "upper"), sub(t, place, "work")
	m := s.merged(t, append([]string{lower}, chain...), "metacopy=on", "upperdir="+upper, "workdir="+work)
	at := func(name string) string { return filepath.Join(m, name) }
	f, err := os.OpenFile(at("f/append"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("end")
	require.NoError(t, errors.Join(err, f.Close()))
	require.NoError(t, os.Chmod(at("f/chmod"), 0o600))
	require.NoError(t, os.Rename(at("f/rename"), at("renamed")))
	require.NoError(t, os.Truncate(at("f/truncate"), 15))
	require.NoError(t, os.Lchown(at("dir"), 77, 77))
	moved := "moved"
	if err := os.Rename(at("dir"), at("moved")); s.rootless {
		require.ErrorIs(t, err, unix.EXDEV, "the kernel redirects no folders for ordinary users")
		moved = "dir"
	} else {
		require.NoError(t, err)
	}
	require.NoError(t, os.Link(at("f/link"), at("linked")))
	require.NoError(t, os.Remove(at("f/deleted")))
	require.NoError(t, os.Chtimes(at("f/suid"), time.Unix(1, 0), time.Unix(2, 0)))
	require.NoError(t, os.WriteFile(at("f/top"), []byte("over"), 0o600))
	for name, want := range map[string]string{
		"f/append": "begin-end", "f/chmod": big, "renamed": "renamed", "f/truncate": big[:15], moved + "/below": "kept",
		"linked": "linked", "f/link": "linked", "f/suid": "x", "f/top": "over", "f/acl": "y",
	} {
		got, err := os.ReadFile(at(name))
		require.NoError(t, err)
		assert.True(t, want == string(got), "content of %s: %d bytes %.40q, want %d bytes", name, len(got), got, len(want))
	}
	assert.NoFileExists(t, at("f/deleted"))
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(at("f/append"), &st))
	assert.Equal(t, [2]uint32{2147483649, 2147483649}, [2]uint32{st.Uid, st.Gid}, "owner after writing")
	require.NoError(t, unix.Lstat(at("f/suid"), &st))
	assert.Equal(t, uint32(0o4755), st.Mode&0o7777, "mode after utimes")
}

// cancel ends builds in the middle.
func (s *suite) cancel(t *testing.T) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{busy()})
	sh := shift(t, mapping(t, "", ""), idshift.Overflow)
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		for _, n := range []int{1, 4} {
			ctx, cancel := context.WithCancel(t.Context())
			timer := time.AfterFunc(after, cancel)
			start := time.Now()
			err := s.fails(t, ctx, engine.Job{Chain: chain, Shift: sh, Workers: n})
			timer.Stop()
			cancel()
			require.ErrorIs(t, err, context.Canceled, "cancelled after %v", after)
			assert.Less(t, time.Since(start), 10*time.Second, "soon after it was cancelled")
		}
	}
}

// cancelledBefore starts a build with a context that has ended.
func (s *suite) cancelledBefore(t *testing.T) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{everyType()})
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	err := s.fails(t, ctx, engine.Job{Chain: chain, Shift: shift(t, mapping(t, "", ""), idshift.Overflow)})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// refuse checks that each place of an unmapped ID is named.
func (s *suite) refuse(t *testing.T) {
	for _, c := range []struct {
		kind string
		path string
		id   uint32
		node fstree.Node
	}{
		{"uid", "d/f", 5000, fstree.File("d/f", "x", fstree.Owner(5000, 0))},
		{"gid", "d/f", 5001, fstree.File("d/f", "x", fstree.Owner(0, 5001))},
		{"uid", "d", 5002, fstree.Dir("d", fstree.Owner(5002, 0))},
		{"uid", ".", 5003, fstree.Dir(".", fstree.Owner(5003, 0))},
		{"gid", "link", 5004, fstree.Symlink("link", "x", fstree.Owner(1, 5004))},
		{"uid", "a/b/fifo", 5005, fstree.Fifo("a/b/fifo", fstree.Owner(5005, 0))},
		{"acl user", "f", 5006, fstree.File("f", "x", fstree.Xattr("system.posix_acl_access", fstree.ACL([]uint32{5006}, nil)))},
		{"acl group", "d", 5007, fstree.Dir("d", fstree.Xattr("system.posix_acl_default", fstree.ACL(nil, []uint32{5007})))},
		{"capability rootid", "cap", 5008, fstree.File("cap", "x", fstree.Xattr("security.capability", fstree.CapV3(5008)))},
	} {
		t.Run(strings.ReplaceAll(c.kind+" "+c.path, "/", "-"), func(t *testing.T) {
			chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.File("fine", "x"), c.node}})
			err := s.fails(t, t.Context(), engine.Job{Chain: chain, Shift: shift(t, mapping(t, Short, Short), idshift.Refuse)})
			var u *idshift.UnmappedError
			require.ErrorAs(t, err, &u)
			assert.Equal(t, idshift.UnmappedError{Path: c.path, Kind: c.kind, ID: c.id, Err: idshift.ErrNotMapped}, *u)
		})
	}
}

// overflowMapped checks that an unmapped file is not given to a user of the
// container.
func (s *suite) overflowMapped(t *testing.T) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.File("d/f", "x", fstree.Owner(70000, 0))}})
	err := s.fails(t, t.Context(), engine.Job{Chain: chain, Shift: shift(t, mapping(t, "0:60000:10000", ""), idshift.Overflow)})
	require.ErrorIs(t, err, idshift.ErrOverflowMapped)
	assert.ErrorContains(t, err, "d/f")
}

// redirects checks that layers whose meaning depends on more than themselves
// are refused.
func (s *suite) redirects(t *testing.T) {
	for name, c := range map[string]struct {
		path string
		node fstree.Node
	}{
		"trusted.overlay.redirect": {"a/moved", fstree.Dir("a/moved", fstree.Xattr("trusted.overlay.redirect", "/old"))},
		"trusted.overlay.metacopy": {"a/file", fstree.File("a/file", "", fstree.Xattr("trusted.overlay.metacopy", ""))},
	} {
		t.Run(name, func(t *testing.T) {
			chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.Dir("a")}, {c.node}})
			err := s.fails(t, t.Context(), engine.Job{Chain: chain, Shift: shift(t, mapping(t, "", ""), idshift.Overflow)})
			var le *idshift.LayerError
			require.ErrorAs(t, err, &le)
			want := idshift.LayerError{Layer: chain[1], Path: c.path, Xattr: name}
			if s.rootless {
				want.Xattr = strings.Replace(name, "trusted.", "user.", 1)
			}
			assert.Equal(t, want, *le)
		})
	}
}

// unreadable has a layer with a file that cannot even be looked at: an overlay
// shows the name of a metadata-only file whose data is missing and answers
// stat(2) with EIO.
func (s *suite) unreadable(t *testing.T) {
	place := s.place(t)
	meta, data := sub(t, place, "meta"), sub(t, place, "data")
	fstree.Apply(t, meta, fstree.File("d/good", "x"), fstree.File("d/broken", "", fstree.Xattr("trusted.overlay.metacopy", "")))
	layer := s.merged(t, []string{meta, data}, "metacopy=on")
	_, err := os.Lstat(filepath.Join(layer, "d/broken"))
	require.ErrorIs(t, err, unix.EIO, "the trap works")
	err = s.fails(t, t.Context(), engine.Job{Chain: []string{layer}, Shift: shift(t, mapping(t, "", ""), idshift.Overflow)})
	require.ErrorIs(t, err, unix.EIO)
	assert.ErrorContains(t, err, filepath.Join(layer, "d/broken"))
}

// missingLayer has layers that are no folders.
func (s *suite) missingLayer(t *testing.T) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.File("f", "x")}})
	sh := shift(t, mapping(t, "", ""), idshift.Overflow)
	gone := filepath.Join(chain[0], "gone")
	err := s.fails(t, t.Context(), engine.Job{Chain: append(chain, gone), Shift: sh})
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.ErrorContains(t, err, gone)
	err = s.fails(t, t.Context(), engine.Job{Chain: []string{filepath.Join(chain[0], "f")}, Shift: sh})
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.Error(t, s.fails(t, t.Context(), engine.Job{Shift: sh}), "an empty chain")
}

// chainUnchanged checks that building leaves the layers as they were.
func (s *suite) chainUnchanged(t *testing.T) {
	dir := s.place(t)
	chain := s.layers(t, dir, append(fiveLayers(), everyType()))
	o := referee.Options{Content: true, OverlayXattrs: true}
	before := scan(t, dir, o)
	s.build(t, chain, shift(t, mapping(t, Three, ""), idshift.Overflow), 0)
	assert.Empty(t, referee.Compare(before, scan(t, dir, o), o))
}
