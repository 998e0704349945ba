package shiftoverlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// smallFS is the size of a file system for a few layers, in bytes.
const smallFS = 96 << 20

// eachEngine runs a test with a store for each engine, which has an image
// called "image".
func eachEngine(t *testing.T, test func(t *testing.T, s *store, c setup)) {
	testutil.RequireRoot(t)
	for _, c := range engines() {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, testutil.LoopFS(t, "ext4", smallFS), c)
			s.image("image", "", fsop.MakeImage)
			test(t, s, c)
		})
	}
}

// owner returns whose a path is.
func owner(t *testing.T, path string) [2]uint32 {
	t.Helper()
	st, err := fsop.Ops{Root: path}.Stat(".")
	require.NoError(t, err)
	return [2]uint32{st.Uid, st.Gid}
}

// users lists who uses the cache's entries.
func (s *store) users() []string {
	s.t.Helper()
	c, err := cache.Open(filepath.Join(s.root, driverName+cacheSuffix), cache.Options{})
	require.NoError(s.t, err)
	all, err := c.List(s.t.Context())
	require.NoError(s.t, err)
	var out []string
	for _, e := range all {
		out = append(out, e.Users...)
	}
	return out
}

func (s *store) noLink(id string) {
	s.t.Helper()
	assert.NoFileExists(s.t, filepath.Join(s.dir(id), shiftedLower))
	_, err := os.Lstat(filepath.Join(s.dir(id), shiftedLower))
	assert.ErrorIs(s.t, err, os.ErrNotExist, "the link is there for the time of the mount only")
}

// TestShiftedMount: the mount shows the image under the mapping, in every
// attribute, writable, with the same entry for the same mapping.
func TestShiftedMount(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, c setup) {
		plain := seen(t, s.get("image", graphdriver.MountOpts{}), nil)
		require.NoError(t, s.Put("image"))
		for i, text := range []string{oneExtent, threeExtents} {
			m := mapping(t, text)
			shift, err := idshift.NewShift(m, idshift.Refuse)
			require.NoError(t, err)
			want, err := plain.Shift(shift)
			require.NoError(t, err)
			for _, id := range []string{fmt.Sprint("a", i), fmt.Sprint("b", i)} {
				merged := s.container(id, "image", m)
				equal(t, want, seen(t, merged, nil), "arithmetic != mount")
				s.noLink(id)
				rec, err := readRecord(s.dir(id))
				require.NoError(t, err)
				require.NotNil(t, rec)
				assert.True(t, rec.Mapping.Equal(m))
				assert.Equal(t, c.engine, rec.Engine)
				assert.Equal(t, c.builds(), rec.Key != "")
				assert.Len(t, s.entries(), c.entries(t, i+1))
				require.NoError(t, os.WriteFile(filepath.Join(merged, "written"), []byte("x"), 0o600))
				require.NoError(t, s.Put(id))
				assert.NoError(t, s.Put(id), "again")
				require.NoError(t, s.Remove(id))
			}
			assert.Empty(t, s.users(), i)
		}
		after := seen(t, s.get("image", graphdriver.MountOpts{}), nil)
		equal(t, plain, after, "the image before != after")
		require.NoError(t, s.Put("image"))
	})
}

// TestMappingStays: a layer is mounted under the mapping of its record, after
// a restart too, and under no other as long as it has content.
func TestMappingStays(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, c setup) {
		one, three := mapping(t, oneExtent), mapping(t, threeExtents)
		s.container("c", "image", one)
		require.NoError(t, s.Put("c"))

		merged := s.get("c", mapped(three))
		assert.Equal(t, [2]uint32{300000, 300000}, owner(t, merged+"/etc/passwd"), "an empty upper may change its mapping")
		assert.Equal(t, [2]uint32{300000, 300000}, owner(t, merged), "and so does its root")
		require.NoError(t, s.Put("c"))
		if c.builds() {
			assert.Equal(t, []string{"c"}, s.users(), "the old entry is released")
		}
		merged = s.get("c", mapped(three))
		require.NoError(t, fsop.Ops{Root: merged, Mapping: three}.Write("new", "x"))
		require.NoError(t, s.Put("c"))

		s.open(c)
		merged = s.get("c", graphdriver.MountOpts{})
		assert.Equal(t, [2]uint32{300000, 300000}, owner(t, merged+"/etc/passwd"))
		assert.Equal(t, [2]uint32{300000, 300000}, owner(t, merged+"/new"))
		require.NoError(t, s.Put("c"))

		for _, other := range []string{oneExtent, "0:0:4294967295"} {
			_, err := s.Get("c", mapped(mapping(t, other)))
			require.ErrorContains(t, err, "c")
			assert.ErrorContains(t, err, three.String())
			assert.ErrorContains(t, err, mapping(t, other).String())
		}
		assert.Empty(t, mountsBelow(t, s.dir("c")))
		s.noLink("c")
		rec, err := readRecord(s.dir("c"))
		require.NoError(t, err)
		assert.True(t, rec.Mapping.Equal(three), "a refusal changes nothing")

		// Removing the content makes it free again.
		merged = s.get("c", graphdriver.MountOpts{})
		require.NoError(t, os.Remove(merged+"/new"))
		require.NoError(t, s.Put("c"))
		merged = s.get("c", mapped(one))
		assert.Equal(t, [2]uint32{200000, 200000}, owner(t, merged+"/etc/passwd"))
		require.NoError(t, s.Put("c"))
	})
}

// TestIdentity: IDs mapped to themselves are no reason to shift.
func TestIdentity(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		for i, text := range []string{"0:0:4294967295", "0:0:65536", "0:0:1000,1000:1000:1"} {
			id := "c" + string(rune('0'+i))
			merged := s.container(id, "image", mapping(t, text))
			assert.Equal(t, [2]uint32{0, 0}, owner(t, merged+"/etc/passwd"))
			rec, err := readRecord(s.dir(id))
			require.NoError(t, err)
			assert.Nil(t, rec)
			require.NoError(t, s.Put(id))
		}
		assert.Empty(t, s.entries())

		s.container("d", "image", mapping(t, oneExtent))
		require.NoError(t, s.Put("d"))
		merged := s.get("d", mapped(mapping(t, "0:0:65536")))
		assert.Equal(t, [2]uint32{0, 0}, owner(t, merged+"/etc/passwd"))
		rec, err := readRecord(s.dir("d"))
		require.NoError(t, err)
		assert.Nil(t, rec, "the record of an empty layer goes with its mapping")
		assert.Equal(t, [2]uint32{0, 0}, owner(t, merged), "root")
		assert.Empty(t, s.users())
		require.NoError(t, s.Put("d"))
	})
}

// TestForeignLowers: a layer that overlay chowned itself is left to overlay;
// a link that a crash left is ours to remove.
func TestForeignLowers(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		require.NoError(t, s.CreateReadWrite("c", "image", nil))
		foreign := filepath.Join(s.dir("c"), shiftedLower)
		require.NoError(t, os.Mkdir(foreign, 0o755))
		require.NoError(t, os.WriteFile(foreign+"/theirs", []byte("x"), 0o600))
		merged := s.get("c", mapped(mapping(t, oneExtent)))
		assert.FileExists(t, merged+"/theirs")
		assert.Equal(t, [2]uint32{0, 0}, owner(t, merged+"/etc/passwd"))
		require.NoError(t, s.Put("c"))
		assert.DirExists(t, foreign)
		rec, err := readRecord(s.dir("c"))
		require.NoError(t, err)
		assert.Nil(t, rec)
		assert.Empty(t, s.entries())

		for id, o := range map[string]graphdriver.MountOpts{"plain": {}, "mapped": mapped(mapping(t, oneExtent))} {
			require.NoError(t, s.CreateReadWrite(id, "image", nil))
			require.NoError(t, os.Symlink("/no/where", filepath.Join(s.dir(id), shiftedLower)))
			merged := s.get(id, o)
			assert.FileExists(t, merged+"/etc/passwd")
			s.noLink(id)
			require.NoError(t, s.Put(id))
		}
		require.NoError(t, os.Symlink("/no/where", filepath.Join(s.dir("plain"), shiftedLower)))
		require.NoError(t, s.Remove("plain"))
	})
}

// TestRemove: a container gives up its entry, an image takes its entries with
// it, by either way of removal.
func TestRemove(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, c setup) {
		remove := map[string]func(id string) error{
			"remove": s.Remove,
			"deferred": func(id string) error {
				cleanup, err := s.DeferredRemove(id)
				require.NoError(t, err)
				return cleanup()
			},
		}
		for name, rm := range remove {
			s.image("i"+name, "image", func(o fsop.Ops) error { return o.Write("more", "x") })
			for _, id := range []string{"a", "b"} {
				s.container(id, "i"+name, mapping(t, oneExtent))
				require.NoError(t, s.Put(id))
			}
			if c.builds() {
				assert.ElementsMatch(t, []string{"a", "b"}, s.users(), name)
				require.Len(t, s.entries(), c.entries(t, 1))
				for _, e := range s.entries() {
					assert.True(t, strings.HasPrefix(e, "i"+name+"/"))
				}
			}
			require.NoError(t, rm("a"))
			if c.builds() {
				assert.Equal(t, []string{"b"}, s.users(), name)
			}
			require.NoError(t, rm("b"))
			assert.Empty(t, s.users(), name)
			require.NoError(t, rm("i"+name))
			assert.Empty(t, s.entries(), name)
			assert.False(t, s.Exists("i"+name))
			left, err := filepath.Glob(filepath.Join(s.root, driverName+cacheSuffix, "*", "*"))
			require.NoError(t, err)
			for _, p := range left {
				assert.NotContains(t, p, "i"+name)
			}
		}
		layers, err := s.ListLayers()
		require.NoError(t, err)
		assert.Equal(t, []string{"image"}, layers)
	})
}

// TestRootOwner: the root of the file system belongs to whom the image says,
// also at the second mount, and to whom the container gave it.
func TestRootOwner(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		s.image("owned", "image")
		require.NoError(t, os.Chown(filepath.Join(s.dir("owned"), "diff"), 33, 1000))
		m := mapping(t, oneExtent)
		merged := s.container("c", "owned", m)
		assert.Equal(t, [2]uint32{200033, 201000}, owner(t, merged))
		require.NoError(t, s.Put("c"))
		merged = s.get("c", graphdriver.MountOpts{})
		assert.Equal(t, [2]uint32{200033, 201000}, owner(t, merged))
		require.NoError(t, os.Chown(merged, 200001, 200002))
		require.NoError(t, s.Put("c"))
		merged = s.get("c", mapped(m))
		assert.Equal(t, [2]uint32{200001, 200002}, owner(t, merged))
		require.NoError(t, s.Put("c"))
		merged = s.get("c", graphdriver.MountOpts{Options: []string{"ro"}})
		assert.Equal(t, [2]uint32{200001, 200002}, owner(t, merged))
		require.ErrorIs(t, os.WriteFile(merged+"/x", nil, 0o600), unix.EROFS)
		require.NoError(t, s.Put("c"))
	})
}

// TestUnmapped: IDs outside of the mapping show as the overflow ID, or start
// nothing and are named; written back they are refused with their path.
func TestUnmapped(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, c setup) {
		s.image("far", "image", func(o fsop.Ops) error { return o.Chown("data/user", 70000, 0) })
		m := mapping(t, oneExtent)
		merged := s.container("c", "far", m)
		assert.Equal(t, uint32(idshift.OverflowID), owner(t, merged+"/data/user")[0])
		require.NoError(t, os.WriteFile(merged+"/etc/passwd", []byte("x"), 0o600))
		require.NoError(t, os.WriteFile(merged+"/mine", []byte("x"), 0o600)) // by the host's root
		require.NoError(t, s.Put("c"))
		r, err := s.Diff("c", nil, "far", nil, "")
		if err == nil {
			_, err = r.Read(make([]byte, 1<<20))
			for err == nil {
				_, err = r.Read(make([]byte, 1<<20))
			}
			require.NoError(t, r.Close())
		}
		var u *idshift.UnmappedError
		require.ErrorAs(t, err, &u)
		assert.Equal(t, "mine", u.Path)
		assert.Equal(t, uint32(0), u.ID)
		_, err = s.Changes("c", nil, "far", nil, "")
		require.ErrorAs(t, err, &u)
		_, err = s.DiffSize("c", nil, "far", nil, "")
		require.ErrorAs(t, err, &u)
		before := s.entries()

		c.conf = `unmapped = "refuse"`
		if c.engine == "idmap" {
			_, err := s.start(c)
			require.ErrorContains(t, err, "refuse", "the kernel cannot")
			return
		}
		s.open(c)
		require.NoError(t, s.CreateReadWrite("d", "far", nil))
		_, err = s.Get("d", mapped(m))
		require.ErrorAs(t, err, &u)
		assert.Equal(t, "data/user", u.Path)
		assert.Equal(t, uint32(70000), u.ID)
		assert.ErrorContains(t, err, "data/user")
		if c.engine != "erofs" { // the template serves other mappings
			assert.Equal(t, before, s.entries())
		}
		assert.Empty(t, mountsBelow(t, s.dir("d")))
		s.noLink("d")
		merged = s.container("e", "image", m)
		assert.Equal(t, [2]uint32{200000, 200000}, owner(t, merged+"/etc/passwd"), "an image without such IDs starts")
		require.NoError(t, s.Put("e"))
	})
}

// TestDetached: where the kernel allows it, the idmapped layers of several stores
// are in no mount table, and nobody has to make a folder for them.
func TestDetached(t *testing.T) {
	testutil.RequireRoot(t)
	for _, attached := range []bool{false, true} {
		t.Run(fmt.Sprint("attached=", attached), func(t *testing.T) {
			fs := testutil.LoopFS(t, "ext4", smallFS)
			other := newStore(t, filepath.Join(fs, "other"), setup{engine: "idmap"})
			other.image("below", "", fsop.MakeImage)
			other.image("middle", "below", func(o fsop.Ops) error { return o.Write("middle", "m") })
			s := newStore(t, filepath.Join(fs, "here"), setup{engine: "idmap", attached: attached, options: []string{"imagestore=" + other.root}})
			s.image("top", "middle", func(o fsop.Ops) error { return o.Write("top", "t") })
			plain := seen(t, s.get("top", graphdriver.MountOpts{}), nil)
			require.NoError(t, s.Put("top"))
			m := mapping(t, oneExtent)
			for range 2 { // volatile again
				require.NoError(t, s.CreateReadWrite("c", "top", nil))
				o := mapped(m)
				o.Volatile = true
				equal(t, plain, seen(t, s.get("c", o), &m), "image != container")
				require.NoError(t, s.Put("c"))
				_, err := os.Stat(filepath.Join(s.dir("c"), "mapped"))
				if attached || !testutil.KernelSince(t, 6, 15) {
					require.NoError(t, err, "where overlay attaches them")
				} else {
					require.ErrorIs(t, err, os.ErrNotExist)
				}
				require.NoError(t, s.Remove("c"))
			}
		})
	}
}

// TestApplyToShifted: what is put into a layer with a record is translated.
func TestApplyToShifted(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		one, three := mapping(t, oneExtent), mapping(t, threeExtents)
		merged := s.container("c", "image", one)
		p := fsop.Ops{Root: merged, Mapping: one}
		require.NoError(t, fsop.All(
			func() error { return p.Write("new", "x") }, func() error { return p.Chown("new", 33, 1000) }, func() error { return p.SetCap("new", 1) },
			func() error { return p.SetACL("new", idshift.ACLAccess, 1, 33) }, func() error { return p.Remove("etc") },
		))
		want := seen(t, merged, &one)
		change := s.diff("c", "image")
		require.NoError(t, s.Put("c"))
		s.container("d", "image", three)
		require.NoError(t, s.Put("d"))
		s.applyTo("d", "image", change)
		equal(t, want, seen(t, s.get("d", graphdriver.MountOpts{}), &three), "the container saw != the other one sees")
		require.NoError(t, s.Put("d"))
		assert.Equal(t, change, s.diff("d", "image"))
	})
}
