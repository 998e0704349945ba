package shiftoverlay

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// TestUpdateLayerIDMap re-owns a layer and keeps everything else.
func TestUpdateLayerIDMap(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		m := mapping(t, threeExtents)
		s.image("copy", "image", func(o fsop.Ops) error { return o.Write("more", "x") })
		want := seen(t, s.get("copy", graphdriver.MountOpts{}), nil)
		require.NoError(t, s.Put("copy"))
		small := mapping(t, "0:100:1")
		var u *idshift.UnmappedError
		require.ErrorAs(t, s.UpdateLayerIDMap("copy", nil, toMaps(&small), ""), &u)
		equal(t, want, seen(t, s.get("copy", graphdriver.MountOpts{}), nil), "before != after an error")
		require.NoError(t, s.Put("copy"))
		require.NoError(t, s.UpdateLayerIDMap("copy", toMaps(&m), toMaps(&m), ""))
		equal(t, want, seen(t, s.get("copy", graphdriver.MountOpts{}), nil), "before != after nothing")
		require.NoError(t, s.Put("copy"))

		require.NoError(t, s.UpdateLayerIDMap("copy", nil, toMaps(&m), ""))
		equal(t, want, seen(t, s.get("copy", mapped(m)), &m), "before != after")
		require.NoError(t, s.Put("copy"))
		require.ErrorContains(t, s.UpdateLayerIDMap("missing", nil, toMaps(&m), ""), "missing")
	})
}

// TestUsage: a file of which only the metadata changed takes no space.
func TestUsage(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		s.image("large", "image", func(o fsop.Ops) error { return o.Write("large", strings.Repeat("x", 1<<20)) })
		merged := s.container("c", "large", mapping(t, oneExtent))
		require.NoError(t, os.Chmod(merged+"/large", 0o600))
		require.NoError(t, os.WriteFile(merged+"/small", []byte("12345"), 0o600))
		require.NoError(t, os.Chown(merged+"/small", 200000, 200000))
		u, err := s.ReadWriteDiskUsage("c")
		require.NoError(t, err)
		assert.Less(t, u.Size, int64(1<<19))
		n, err := s.DiffSize("c", nil, "large", nil, "")
		require.NoError(t, err)
		assert.Equal(t, int64(5), n)
		require.NoError(t, s.Put("c"))
	})
}

// TestDiffFromAnyParent compares with a layer that is not directly below, and
// with nothing.
func TestDiffFromAnyParent(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		s.image("second", "image", func(o fsop.Ops) error {
			return fsop.All(func() error { return o.Write("second", "2") }, func() error { return o.Remove("data") })
		})
		m := mapping(t, oneExtent)
		merged := s.container("c", "second", m)
		p := fsop.Ops{Root: merged, Mapping: m}
		require.NoError(t, fsop.All(func() error { return p.Write("third", "3") }, func() error { return p.Remove("etc") }, func() error { return p.Rename("usr", "lib") }))
		want := seen(t, merged, &m)
		for _, parent := range []string{"second", "image", ""} {
			id := "from" + parent
			s.commit(id, parent, s.diff("c", parent))
			equal(t, want, seen(t, s.get(id, graphdriver.MountOpts{}), nil), "the container saw != "+id, ofRoot, beforeEpoch(want))
			require.NoError(t, s.Put(id))
		}
		require.NoError(t, s.Put("c"))
	})
}

// TestDiffIsLeft: whoever closes the stream before its end leaves nothing
// behind.
func TestDiffIsLeft(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		m := mapping(t, oneExtent)
		merged := s.container("c", "image", m)
		require.NoError(t, fsop.Ops{Root: merged, Mapping: m}.Write("large", strings.Repeat("x", 1<<20)))
		s.diff("c", "image")
		before := testutil.OpenFiles(t)
		for _, n := range []int{0, 1, 600, 200_000} {
			r, err := s.Diff("c", nil, "image", nil, "")
			require.NoError(t, err)
			_, err = io.ReadFull(r, make([]byte, n))
			require.NoError(t, err)
			require.NoError(t, r.Close())
			_, err = r.Read(make([]byte, 1))
			require.Error(t, err)
		}
		assert.Equal(t, before, testutil.OpenFiles(t))
		require.NoError(t, s.Put("c"), "nothing keeps the mount busy")
	})
}

// applyTo unpacks an archive into a layer that exists.
func (s *store) applyTo(id, parent string, archive []byte) {
	s.t.Helper()
	_, err := s.ApplyDiff(id, parent, graphdriver.ApplyDiffOpts{Diff: strings.NewReader(string(archive))})
	require.NoError(s.t, err)
}

// TestMissingLayer names the layer.
func TestMissingLayer(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		for _, o := range []graphdriver.MountOpts{{}, mapped(mapping(t, oneExtent))} {
			_, err := s.Get("missing", o)
			require.ErrorIs(t, err, os.ErrNotExist)
			assert.ErrorContains(t, err, "missing")
		}
		_, err := s.Diff("missing", nil, "image", nil, "")
		require.ErrorContains(t, err, "missing")
		_, err = s.Changes("missing", nil, "", nil, "")
		require.ErrorContains(t, err, "missing")
		_, err = s.DiffSize("missing", nil, "", nil, "")
		require.ErrorContains(t, err, "missing")
		_, err = s.ApplyDiff("missing", "", graphdriver.ApplyDiffOpts{Diff: strings.NewReader("")})
		require.Error(t, err)
		assert.NoError(t, s.Remove("missing"), "as with overlay")
	})
}

// TestBadRecord: a layer whose record cannot be read is not mounted and not
// written back, because nobody knows whose its files are; but it can be
// removed.
func TestBadRecord(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		s.container("c", "image", mapping(t, oneExtent))
		require.NoError(t, s.Put("c"))
		file := filepath.Join(s.dir("c"), recordName)
		require.NoError(t, os.WriteFile(file, []byte(`{"version":99}`), 0o600))
		_, err := s.Get("c", graphdriver.MountOpts{})
		require.ErrorContains(t, err, file)
		_, err = s.Diff("c", nil, "image", nil, "")
		require.ErrorContains(t, err, file)
		_, err = s.Changes("c", nil, "image", nil, "")
		require.ErrorContains(t, err, file)
		require.NoError(t, s.Remove("c"))
		assert.NoDirExists(t, s.dir("c"))
	})
}

// TestPlainLayers: layers without a mapping are overlay's in every way.
func TestPlainLayers(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		require.NoError(t, s.CreateReadWrite("c", "image", nil))
		merged := s.get("c", graphdriver.MountOpts{})
		before := seen(t, merged, nil)
		require.NoError(t, os.WriteFile(merged+"/new", []byte("x"), 0o600))
		changes, err := s.Changes("c", nil, "image", nil, "")
		require.NoError(t, err)
		require.Len(t, changes, 1)
		assert.Equal(t, "A /new", changes[0].String())
		require.NoError(t, os.Remove(merged+"/new"))
		equal(t, before, seen(t, merged, nil), "before != after", func(d referee.Difference) bool { return d.Path == referee.RootPath })
		require.NoError(t, s.Put("c"))
		_, err = os.Stat(filepath.Join(s.dir("c"), recordName))
		require.ErrorIs(t, err, os.ErrNotExist)
		assert.Empty(t, s.entries())
	})
}
