package shiftoverlay

import (
	"os"
	"path/filepath"
	"testing"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/idtools"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/adopt"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// adoptedHome is a home with a layer, whose upper belongs to an ID and has the
// files that are given by their owners.
func adoptedHome(t *testing.T, root int, owners ...int) (home string) {
	t.Helper()
	home = filepath.Join(t.TempDir(), "overlay")
	upper := filepath.Join(home, "layer", "diff")
	require.NoError(t, os.MkdirAll(upper, 0o755))
	require.NoError(t, os.Chown(upper, root, root))
	for i, id := range owners {
		name := filepath.Join(upper, string(rune('a'+i)))
		require.NoError(t, os.WriteFile(name, nil, 0o600))
		require.NoError(t, os.Chown(name, id, id))
	}
	return home
}

// TestRecordMappings checks which containers get a record, and what it says.
func TestRecordMappings(t *testing.T) {
	testutil.RequireRoot(t)
	ids := []idtools.IDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	for _, c := range []struct {
		name   string
		c      AdoptedContainer
		root   int
		owners []int
		engine string
		err    string
	}{
		{name: "no mapping", c: AdoptedContainer{}, owners: []int{0}},
		{name: "never mounted", c: AdoptedContainer{UIDs: ids, GIDs: ids}},
		{name: "mounted", c: AdoptedContainer{UIDs: ids, GIDs: ids}, root: 100000, engine: "idmap"},
		{name: "written", c: AdoptedContainer{UIDs: ids, GIDs: ids}, owners: []int{100033}, engine: "idmap"},
		{name: "chowned", c: AdoptedContainer{UIDs: ids, GIDs: ids, Chowned: true}, engine: engineOverlay},
		{name: "fuse-overlayfs", c: AdoptedContainer{UIDs: ids, GIDs: ids}, root: 100000, owners: []int{33}, err: "as fuse-overlayfs writes them"},
		{name: "every ID", c: AdoptedContainer{UIDs: idMaps(everyID), GIDs: idMaps(everyID)}, owners: []int{0}},
		{name: "no ID", c: AdoptedContainer{UIDs: []idtools.IDMap{{HostID: -1, Size: 1}}}, err: "is no 32-bit ID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := adoptedHome(t, c.root, c.owners...)
			c.c.Layer, c.c.Name = "layer", "name"
			list := []AdoptedContainer{c.c, {Name: "gone", Layer: "gone", UIDs: ids, GIDs: ids}}
			for range 2 {
				if c.err != "" {
					require.ErrorContains(t, CheckAdopt(home, list), c.err)
					require.ErrorContains(t, CheckAdopt(home, list), "container name")
					require.Error(t, RecordMappings(home, list))
					continue
				}
				require.NoError(t, CheckAdopt(home, list))
				require.NoError(t, RecordMappings(home, list))
				rec, err := readRecord(filepath.Join(home, "layer"))
				require.NoError(t, err)
				if c.engine == "" {
					assert.Nil(t, rec)
					continue
				}
				require.NotNil(t, rec)
				assert.Equal(t, c.engine, rec.Engine)
				assert.Equal(t, "uids=0:100000:65536 gids=0:100000:65536", rec.Mapping.String())
			}
		})
	}
	home := adoptedHome(t, 0)
	require.NoError(t, os.WriteFile(filepath.Join(home, mountProgramFlag), []byte("true\n"), 0o600))
	require.ErrorContains(t, CheckAdopt(home, nil), "shiftoverlay-mount --restore "+filepath.Dir(home))
}

// TestUnfinishedMove checks that nobody uses a store half of which has moved.
func TestUnfinishedMove(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	s := adopt.Store{Graph: dir, Run: filepath.Join(dir, "run")}
	broken := []adopt.Step{{What: "break", Do: func() error { return os.ErrInvalid }}}
	require.ErrorIs(t, s.Carry(t.Context(), adopt.Move{From: "overlay", To: driverName}, broken), os.ErrInvalid)
	for _, driver := range []string{driverName, "overlay"} {
		home := filepath.Join(dir, driver)
		_, err := Init(home, graphOptions(dir))
		require.ErrorContains(t, err, "did not come to its end: run `shiftoverlay adopt`")
		_, err = OpenProgram(home)
		require.ErrorContains(t, err, "did not come to its end")
		assert.NoDirExists(t, home)
	}
}

// TestCheckBack checks what overlay could not go on with.
func TestCheckBack(t *testing.T) {
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, "ext4", 64<<20)
	home := filepath.Join(dir, driverName)
	upper := filepath.Join(home, "layer", "diff")
	require.NoError(t, os.MkdirAll(upper, 0o755))
	ids := []idtools.IDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	plain, mapped := AdoptedContainer{Name: "plain", Layer: "layer"}, AdoptedContainer{Name: "mapped", Layer: "layer", UIDs: ids, GIDs: ids}
	on, off := []string{"overlay.mountopt=nodev,metacopy=on"}, []string{"overlay.mountopt=nodev"}

	t.Run("idmapped", func(t *testing.T) {
		testutil.RequireKernel(t, 5, 19)
		require.NoError(t, CheckBack(t.Context(), home, off, []AdoptedContainer{plain, mapped, {Name: "gone", Layer: "gone"}}))
	})
	t.Setenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")
	require.NoError(t, CheckBack(t.Context(), home, off, []AdoptedContainer{plain}))
	require.ErrorContains(t, CheckBack(t.Context(), home, off, []AdoptedContainer{plain, mapped}), "no idmapped mounts here, so it could not start the containers with user namespaces mapped: commit")
	mapped.Chowned = true
	require.NoError(t, CheckBack(t.Context(), home, off, []AdoptedContainer{mapped}))

	require.NoError(t, os.WriteFile(filepath.Join(upper, "f"), nil, 0o600))
	setMetacopy(t, filepath.Join(upper, "f"))
	require.ErrorContains(t, CheckBack(t.Context(), home, off, []AdoptedContainer{plain}), `the containers plain have changed the owner or mode`)
	require.NoError(t, CheckBack(t.Context(), home, on, []AdoptedContainer{plain}))
	assert.NoFileExists(t, filepath.Join(dir, tryName))
}

// TestRemoveTry checks that mounts that a killed CheckBack has left go, too.
func TestRemoveTry(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	require.NoError(t, RemoveTry(dir))
	inner := filepath.Join(dir, tryName, "overlay")
	require.NoError(t, os.MkdirAll(inner, 0o700))
	mountTmpfs(t, inner)
	require.NoError(t, RemoveTry(dir))
	assert.NoDirExists(t, filepath.Join(dir, tryName))
}

// TestRemoveLinks checks that links go, and overlay's own folders stay.
func TestRemoveLinks(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, RemoveLinks(filepath.Join(home, "nowhere")))
	require.NoError(t, os.MkdirAll(filepath.Join(home, "a"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(home, "b", shiftedLower), 0o700))
	require.NoError(t, os.Symlink("/nowhere", filepath.Join(home, "a", shiftedLower)))
	require.NoError(t, RemoveLinks(home))
	_, err := os.Lstat(filepath.Join(home, "a", shiftedLower))
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.DirExists(t, filepath.Join(home, "b", shiftedLower))
}

func graphOptions(root string) graphdriver.Options {
	return graphdriver.Options{Root: root, RunRoot: filepath.Join(root, "run")}
}

func setMetacopy(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, unix.Lsetxattr(name, "trusted.overlay.metacopy", nil, 0))
}

func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}
