package shiftoverlay

import (
	"os"
	"path/filepath"
	"testing"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
)

// driverOf returns the driver of a store.
func driverOf(t testing.TB, s *store) *Driver {
	t.Helper()
	d, ok := s.Driver.(interface{ base() *Driver })
	require.True(t, ok)
	return d.base()
}

// beginMount does what a mount does before the layer is mounted, as somebody who
// dies then: the record is there, and the root folder still the image's.
func (s *store) beginMount(id, mapped string) {
	s.t.Helper()
	m := mapping(s.t, mapped)
	d := driverOf(s.t, s)
	p, err := d.paths(id)
	require.NoError(s.t, err)
	_, err = p.rootOwner(m, true)
	require.NoError(s.t, err)
	require.NoError(s.t, writeRecord(p.dir, &record{Mapping: m, Engine: "metacopy"}, true))
}

// TestDeadBeforeMount: who dies between the record and the mount does not leave a
// root folder that belongs to nobody.
func TestDeadBeforeMount(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		s.image("owned", "image")
		require.NoError(t, os.Chown(filepath.Join(s.dir("owned"), "diff"), 33, 1000))
		for image, want := range map[string][2]uint32{"image": {200000, 200000}, "owned": {200033, 201000}} {
			c := "c-" + image
			require.NoError(t, s.CreateReadWrite(c, image, nil))
			s.beginMount(c, oneExtent)
			assert.Equal(t, want, owner(t, s.get(c, mapped(mapping(t, oneExtent)))))
			require.NoError(t, s.Put(c))
			assert.NoFileExists(t, filepath.Join(s.dir(c), rootOwnerMark))
			assert.Equal(t, want, owner(t, s.get(c, graphdriver.MountOpts{})))
			require.NoError(t, s.Put(c))
		}
	})
}

// TestDeadAfterMount: who dies between the mount and what comes after leaves a root
// folder that belongs to the container's root user, a link and a folder in the
// run root; the next mount puts all of it right.
func TestDeadAfterMount(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		s.image("owned", "image")
		require.NoError(t, os.Chown(filepath.Join(s.dir("owned"), "diff"), 33, 1000))
		merged := s.container("c", "owned", mapping(t, oneExtent))
		d := driverOf(t, s)
		p, err := d.paths("c")
		require.NoError(t, err)
		root, err := p.rootOwner(mapping(t, oneExtent), false)
		require.NoError(t, err)
		assert.Equal(t, [2]uint32{200033, 201000}, [2]uint32{root.uid, root.gid})
		require.NoError(t, os.Chown(merged, 200000, 200000)) // as overlay does
		require.NoError(t, p.link("/nowhere"))
		at, err := d.attachPoint("c")
		require.NoError(t, err)

		s.get("c", mapped(mapping(t, oneExtent)))
		assert.Equal(t, [2]uint32{200033, 201000}, owner(t, merged))
		s.noLink("c")
		assert.NoDirExists(t, at)
		require.NoError(t, s.Put("c"))
		require.NoError(t, s.Put("c"))
	})
}

// TestDeadAttached: an image that is mounted for the time of a call, and whose
// mounter has died, goes with the container.
func TestDeadAttached(t *testing.T) {
	s := newStore(t, t.TempDir(), setup{engine: "metacopy"})
	s.image("image", "")
	require.NoError(t, s.CreateReadWrite("c", "image", nil))
	d := driverOf(t, s)
	at, err := d.attachPoint("c")
	require.NoError(t, err)
	tree, err := mounts.Clone(s.dir("image"))
	require.NoError(t, err)
	require.NoError(t, tree.Attach(at))
	require.NoError(t, tree.Close())
	require.Equal(t, []string{at}, mountsBelow(t, s.run))
	require.NoError(t, s.Remove("c"))
	assert.Empty(t, mountsBelow(t, s.run))
	assert.NoDirExists(t, at)
}

// TestDeadRecord: a record that was begun and not put in place is written over,
// or goes with the next mount that needs none.
func TestDeadRecord(t *testing.T) {
	s := newStore(t, t.TempDir(), setup{engine: "metacopy"})
	s.image("image", "")
	left := filepath.Join(s.dir("c"), "."+recordName+"-new")
	require.NoError(t, s.CreateReadWrite("c", "image", nil))
	for range 2 { // with a new record, and with the same
		require.NoError(t, os.WriteFile(left, []byte("longer than a record, and no record at all"), 0o600))
		s.get("c", mapped(mapping(t, oneExtent)))
		require.NoError(t, s.Put("c"))
		assert.NoFileExists(t, left)
		rec, err := readRecord(s.dir("c"))
		require.NoError(t, err)
		require.NotNil(t, rec)
	}
}

// TestLostList: a layer of which a power cut has taken the list of layers is an
// error that says so, never a container without its image.
func TestLostList(t *testing.T) {
	s := newStore(t, t.TempDir(), setup{engine: "metacopy"})
	s.image("image", "")
	require.NoError(t, s.CreateReadWrite("c", "image", nil))
	for _, text := range []string{"", "\x00\x00\x00"} {
		require.NoError(t, os.WriteFile(filepath.Join(s.dir("c"), lowerList), []byte(text), 0o600))
		for _, o := range []graphdriver.MountOpts{{}, mapped(mapping(t, oneExtent))} {
			_, err := s.Get("c", o)
			require.ErrorContains(t, err, "is damaged, its list of layers is empty")
		}
	}
}
