package enginetest

import (
	"context"
	"errors"
	"io/fs"
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

// before is a mapping that no case has: the one that a lower is recycled from.
const before = "0:500000:65536"

// recycle is everything for an engine that recycles.
func (s *suite) recycle(t *testing.T, r engine.Recycler) {
	t.Run("Cases", func(t *testing.T) {
		for _, c := range append(allCases(), issues()...) {
			if c.Only != "" && c.Only != s.o.FileSystem {
				continue
			}
			t.Run(c.Name, func(t *testing.T) { s.recycleCase(t, r, c) })
		}
	})
	t.Run("Mounted", func(t *testing.T) { s.recycleMounted(t, r) })
	t.Run("Workers", func(t *testing.T) { s.recycleWorkers(t, r) })
	t.Run("Changed", func(t *testing.T) { s.recycleChanged(t, r) })
	t.Run("Refuse", func(t *testing.T) { s.recycleRefuse(t, r) })
	t.Run("Cancel", func(t *testing.T) { s.recycleCancel(t, r) })
}

// built makes a shifted lower and returns the folder that Build was given.
func (s *suite) built(t *testing.T, job engine.Job) string {
	t.Helper()
	dir := filepath.Join(s.place(t), "built")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, s.b.Build(t.Context(), dir, job))
	return dir
}

// recycleCase recycles a lower for the case's mapping, then for one that maps
// hardly anything, and back again. Each time it must be what a new one is.
func (s *suite) recycleCase(t *testing.T, r engine.Recycler, c Case) {
	chain := s.layers(t, s.place(t), c.Layers)
	if c.Prepare != nil {
		c.Prepare(t, chain)
	}
	job := func(uids, gids string) engine.Job {
		return engine.Job{Chain: chain, Shift: shift(t, mapping(t, uids, gids), idshift.Overflow)}
	}
	dir := s.built(t, job(before, before))
	for _, m := range [][2]string{{c.UIDs, c.GIDs}, {Short, Short}, {c.UIDs, Short}, {before, before}, {before, before}} {
		j := job(m[0], m[1])
		require.NoError(t, r.Recycle(t.Context(), dir, j), "to %v", m)
		fresh := s.built(t, j)
		s.sameLower(t, r, fresh, dir)
		require.NoError(t, os.RemoveAll(fresh))
	}
}

// sameLower compares two lowers of the same chain and mapping, overlay's own
// attributes included.
func (s *suite) sameLower(t *testing.T, r engine.Recycler, fresh, recycled string) {
	t.Helper()
	// Times first: reading the trees changes them.
	assert.Equal(t, times(t, r.Lower(fresh)), times(t, r.Lower(recycled)), "times of the root and of access")
	o := referee.Options{OverlayXattrs: !s.rootless} // a hard link's redirect may lead to any of its names
	Case{}.same(t, scan(t, r.Lower(fresh), o), scan(t, r.Lower(recycled), o), o)
	names := func(dir string) (out []string) {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	assert.Equal(t, names(fresh), names(recycled), "beside the lower")
}

// times are those that the referee does not compare: the modification time of
// the root, and the access times of what is not changed by looking at it, as
// folders and symbolic links of the layers are when a lower is made of them.
func times(t *testing.T, root string) map[string][2]unix.Timespec {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(root, &st))
	out := map[string][2]unix.Timespec{".": {st.Mtim}}
	require.NoError(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, unix.ENAMETOOLONG) {
			return fs.SkipDir
		}
		if err != nil || d.IsDir() || d.Type() == fs.ModeSymlink {
			return err
		}
		if err := unix.Lstat(p, &st); !errors.Is(err, unix.ENAMETOOLONG) {
			out[strings.TrimPrefix(p, root)] = [2]unix.Timespec{st.Mtim, st.Atim}
			return err
		}
		return nil
	}))
	return out
}

// recycleMounted looks at a recycled lower as a container does.
func (s *suite) recycleMounted(t *testing.T, r engine.Recycler) {
	dir := s.place(t)
	chain := s.layers(t, dir, append(fiveLayers(), everyType()))
	dest := mapping(t, Three, Auto)
	built := s.built(t, engine.Job{Chain: chain, Shift: shift(t, mapping(t, before, Short), idshift.Overflow)})
	require.NoError(t, r.Recycle(t.Context(), built, engine.Job{Chain: chain, Shift: shift(t, dest, idshift.Overflow)}))
	point := s.merged(t, append([]string{s.o.Mount(t, built)}, chain...), "metacopy=on")
	o := referee.Options{Content: true, OverlayXattrs: true}
	Case{}.same(t, s.truth(t, dir, chain, dest, o), scan(t, point, o), o)
}

// recycleWorkers recycles inodes with many names with many threads.
func (s *suite) recycleWorkers(t *testing.T, r engine.Recycler) {
	chain := s.layers(t, s.place(t), append(fiveLayers(), append(busy(), busybox(400)...)))
	dir := s.built(t, engine.Job{Chain: chain, Shift: shift(t, mapping(t, before, before), idshift.Overflow)})
	for i, n := range []int{16, 1, 2, 16} {
		m := []string{Three, before}[i%2]
		job := engine.Job{Chain: chain, Shift: shift(t, mapping(t, m, m), idshift.Overflow), Workers: n}
		require.NoError(t, r.Recycle(t.Context(), dir, job))
		fresh := s.built(t, job)
		s.sameLower(t, r, fresh, dir)
	}
}

// recycleChanged recycles lowers that somebody has changed.
func (s *suite) recycleChanged(t *testing.T, r engine.Recycler) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{{
		fstree.File("d/f", "content", fstree.Owner(1, 1)), fstree.Link("d/link", "d/f"), fstree.File("d/suid", "x", fstree.Mode(0o4755)),
		fstree.File("d/g", "changed", fstree.Owner(1, 1)), fstree.Link("d/glink", "d/g"),
		fstree.Dir("d/empty"), fstree.Dir("d/e"), fstree.File("d/e/f", "y"), fstree.Symlink("d/sym", "target"), fstree.Device("d/dev", unix.S_IFCHR, 1, 3),
	}})
	for _, c := range changes() {
		if c.name == "device" && s.rootless {
			continue // there are none
		}
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			dir := s.built(t, engine.Job{Chain: chain, Shift: shift(t, mapping(t, before, before), idshift.Overflow)})
			require.NoError(t, c.change(func(p string) string { return filepath.Join(r.Lower(dir), p) }))
			open := testutil.OpenFiles(t)
			require.Error(t, r.Recycle(t.Context(), dir, engine.Job{Chain: chain, Shift: shift(t, mapping(t, "", ""), idshift.Overflow)}))
			assert.Equal(t, open, testutil.OpenFiles(t), "open files after an error")
		})
	}
}

// change is something that somebody does to a lower; at gives the path of a
// name in it.
type change struct {
	name   string
	change func(at func(string) string) error
}

// changes are those that recycling must notice.
func changes() []change {
	// instead puts something else in a name's place.
	instead := func(name string, with func(p string) error) func(func(string) string) error {
		return func(at func(string) string) error { return errors.Join(os.Remove(at(name)), with(at(name))) }
	}
	file := func(p string) error { return os.WriteFile(p, nil, 0o600) }
	folder := func(p string) error { return os.Mkdir(p, 0o700) }
	mode := func(name string, mode os.FileMode) func(func(string) string) error {
		return func(at func(string) string) error { return os.Chmod(at(name), mode) }
	}
	link := func(from, to string) func(func(string) string) error {
		return func(at func(string) string) error { return os.Link(at(from), at(to)) }
	}
	remove := func(name string) func(func(string) string) error {
		return func(at func(string) string) error { return os.RemoveAll(at(name)) }
	}
	return []change{
		{"file gone", remove("d/e/f")},
		{"dir gone", remove("d/empty")},
		{"link gone", remove("d/link")},
		{"root gone", remove("")},
		{"file added", func(at func(string) string) error { return file(at("d/empty/new")) }},
		{"dir added", func(at func(string) string) error { return folder(at("new")) }},
		{"link added", link("d/f", "d/e/new")},
		{"linked elsewhere", link("d/suid", "../kept")},
		{"link linked elsewhere", link("d/link", "../kept")},
		{"renamed", func(at func(string) string) error { return os.Rename(at("d/e/f"), at("d/e/g")) }},
		{"links swapped", func(at func(string) string) error {
			return errors.Join(os.Rename(at("d/link"), at("t")), os.Rename(at("d/glink"), at("d/link")), os.Rename(at("t"), at("d/glink")))
		}},
		{"size", func(at func(string) string) error { return os.Truncate(at("d/f"), 1) }},
		{"mode", mode("d/f", 0o600)},
		{"setuid", mode("d/suid", 0o755)},
		{"mode of dir", mode("d/e", 0o700)},
		{"file is dir", instead("d/suid", folder)},
		{"dir is file", instead("d/empty", file)},
		{"dir is symlink", instead("d/empty", func(p string) error { return os.Symlink("e", p) })},
		{"file is symlink", instead("d/suid", func(p string) error { return os.Symlink("x", p) })},
		{"target", instead("d/sym", func(p string) error { return os.Symlink("longer-target", p) })},
		{"device", instead("d/dev", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, 0x105) })},
		{"link is file", instead("d/link", func(p string) error {
			return errors.Join(file(p), os.Truncate(p, int64(len("content"))), os.Chmod(p, 0o644))
		})},
	}
}

// recycleRefuse has an ID that the new mapping does not have: the image's, not
// that of the old lower.
func (s *suite) recycleRefuse(t *testing.T, r engine.Recycler) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.File("d/f", "x", fstree.Owner(0, 5000))}})
	dir := s.built(t, engine.Job{Chain: chain, Shift: shift(t, mapping(t, before, before), idshift.Overflow)})
	err := r.Recycle(t.Context(), dir, engine.Job{Chain: chain, Shift: shift(t, mapping(t, Short, Short), idshift.Refuse)})
	var u *idshift.UnmappedError
	require.ErrorAs(t, err, &u)
	assert.Equal(t, idshift.UnmappedError{Path: "d/f", Kind: "gid", ID: 5000, Err: idshift.ErrNotMapped}, *u)
}

// recycleCancel ends it before it begins and in the middle.
func (s *suite) recycleCancel(t *testing.T, r engine.Recycler) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{busy()})
	dir := s.built(t, engine.Job{Chain: chain, Shift: shift(t, mapping(t, before, before), idshift.Overflow)})
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := r.Recycle(ctx, dir, engine.Job{Chain: chain, Shift: shift(t, mapping(t, "", ""), idshift.Overflow)})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, "cancelled after %v", after)
	}
}
