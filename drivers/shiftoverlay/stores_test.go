package shiftoverlay

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// TestAdditionalStores uses images in a read-only store that this driver or
// overlay wrote.
func TestAdditionalStores(t *testing.T) {
	testutil.RequireRoot(t)
	for _, writer := range []string{driverName, "overlay"} {
		for _, c := range engines() {
			t.Run(writer+"/"+c.name, func(t *testing.T) {
				fs := testutil.LoopFS(t, "ext4", smallFS)
				there, here := filepath.Join(fs, "there"), filepath.Join(fs, "here")
				require.NoError(t, os.MkdirAll(there, 0o755))
				other, err := graphdriver.GetDriver(writer, graphdriver.Options{Root: there, RunRoot: filepath.Join(fs, "there-run")})
				require.NoError(t, err)
				require.NoError(t, other.Create("image", "", nil))
				merged, err := other.Get("image", graphdriver.MountOpts{})
				require.NoError(t, err)
				require.NoError(t, fsop.MakeImage(fsop.Ops{Root: merged}))
				plain := seen(t, merged, nil)
				require.NoError(t, other.Put("image"))
				require.NoError(t, other.Cleanup())

				c.options = []string{"shiftoverlay.imagestore=" + there}
				s := newStore(t, here, c)
				meta, err := s.Metadata("image")
				require.NoError(t, err)
				assert.NotContains(t, meta["UpperDir"], here+"/graph")
				assert.Len(t, s.AdditionalImageStores(), 1)
				m := mapping(t, threeExtents)
				merged = s.container("c", "image", m)
				equal(t, plain, seen(t, merged, &m), "the image there != the container")
				require.NoError(t, fsop.Ops{Root: merged, Mapping: m}.Write("etc/passwd", "x"))
				changes, err := s.Changes("c", nil, "image", nil, "")
				require.NoError(t, err)
				require.Len(t, changes, 2)
				assert.Equal(t, "C /etc/passwd", changes[1].String())
				want := seen(t, merged, &m)
				s.commit("new", "image", s.diff("c", "image"))
				equal(t, want, seen(t, s.get("new", graphdriver.MountOpts{}), nil), "the container saw != the new image", beforeEpoch(want))
				require.NoError(t, s.Put("new"))
				require.NoError(t, s.Put("c"))
				require.NoError(t, s.Remove("c"))
				assert.Empty(t, s.users())
			})
		}
	}
}

// TestEmptyStores: a store without anything in it becomes one that overlay or
// this driver may fill later; one that can only be read is left out.
func TestEmptyStores(t *testing.T) {
	testutil.RequireRoot(t)
	fs := testutil.LoopFS(t, "ext4", smallFS)
	empty, ours, readOnly := filepath.Join(fs, "empty"), filepath.Join(fs, "ours"), filepath.Join(fs, "read-only")
	for _, dir := range []string{empty, filepath.Join(ours, driverName), readOnly} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	require.NoError(t, unix.Mount(readOnly, readOnly, "", unix.MS_BIND, ""))
	require.NoError(t, unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(readOnly, 0)) })
	s := newStore(t, filepath.Join(fs, "here"), setup{options: []string{"imagestore=" + empty, "imagestore=" + ours, "imagestore=" + readOnly}})
	stores := s.AdditionalImageStores()
	require.Len(t, stores, 2)
	for i, dir := range []string{empty + "/overlay", ours + "/" + driverName} {
		for _, suffix := range []string{"-images", "-layers"} {
			got, err := filepath.EvalSymlinks(filepath.Join(stores[i], driverName+suffix))
			require.NoError(t, err)
			assert.Equal(t, dir+suffix, got)
		}
	}
	left, err := os.ReadDir(readOnly)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// TestQuiet: who asks for level info hears nothing of the embedded driver's own
// diff. It speaks of that once in a process, so this takes a new one.
func TestQuiet(t *testing.T) {
	testutil.RequireRoot(t)
	const child = "SHIFTOVERLAY_TEST_QUIET"
	if os.Getenv(child) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestQuiet$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Contains(t, string(out), "--- PASS: TestQuiet")
		assert.NotContains(t, string(out), "level=info")
		return
	}
	logrus.SetLevel(logrus.InfoLevel)
	newStore(t, testutil.LoopFS(t, "ext4", smallFS), setup{})
	assert.Equal(t, logrus.InfoLevel, logrus.GetLevel())
}

// TestBadStores names the store that cannot be used.
func TestBadStores(t *testing.T) {
	testutil.RequireRoot(t)
	fs := testutil.LoopFS(t, "ext4", smallFS)
	file := filepath.Join(fs, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	s := newStore(t, fs, setup{})
	for _, bad := range []string{"relative/path", "/no/such/store", file} {
		_, err := s.start(setup{options: []string{"imagestore=" + bad}})
		require.ErrorContains(t, err, bad)
	}
}

// TestStatus shows overlay's rows and ours.
func TestStatus(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, c setup) {
		rows := s.status()
		for _, name := range []string{"Backing Filesystem", "Supports d_type", "Native Overlay Diff", "Using metacopy", "Supports shifting", "Supports volatile"} {
			assert.Contains(t, rows, name, "a row of overlay's")
		}
		assert.Equal(t, c.engine, rows["Shift engine"])
		reason, note, _ := strings.Cut(rows["Shift engine reason"], "; note: ")
		assert.Equal(t, "set in shiftoverlay.conf", reason)
		assert.Equal(t, c.engine == "erofs", strings.Contains(note, "ENOTSUP"), "what an operator should know")
		assert.Equal(t, "0", rows["Shift cache entries"])
		assert.Equal(t, "0B", rows["Shift cache size"])
		assert.Equal(t, filepath.Join(s.root, "shiftoverlay-shifted"), rows["Shift cache path"])
		assert.Equal(t, "true", rows["Supports shifting"])
		s.container("c", "image", mapping(t, oneExtent))
		require.NoError(t, s.Put("c"))
		assert.Equal(t, strconv.Itoa(c.entries(t, 1)), s.status()["Shift cache entries"])
		assert.Equal(t, c.builds(), s.status()["Shift cache size"] != "0B")
		assert.Equal(t, driverName, s.String())
	})
}

// TestAuto takes the cheapest engine that works and says why none cheaper.
func TestAuto(t *testing.T) {
	testutil.RequireRoot(t)
	for name, c := range map[string]struct {
		noIdmap bool
		mount   string
		engine  string
		reason  []string
		image   string // the engine for an image that has ACLs; as engine if empty
	}{
		"all":              {engine: "idmap", reason: []string{"cheapest"}},
		"no idmap":         {noIdmap: true, engine: "erofs", reason: []string{"idmap: ", "_CONTAINERS_OVERLAY_DISABLE_IDMAP"}, image: "metacopy"},
		"neither":          {noIdmap: true, mount: "metacopy=off", engine: "copyup", reason: []string{"idmap: ", "erofs: ", "metacopy: ", "metacopy=off"}},
		"option":           {mount: "x-shiftoverlay.engine=copyup", engine: "copyup", reason: []string{"set in"}},
		"option over file": {noIdmap: true, mount: "nodev,x-shiftoverlay.engine=metacopy", engine: "metacopy", reason: []string{"set in"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			if c.engine == "idmap" {
				testutil.RequireKernel(t, 6, 2) // the first that maps the IDs in ACLs of idmapped lowers, too
			}
			if c.noIdmap {
				t.Setenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")
			}
			s := newStore(t, testutil.LoopFS(t, "ext4", smallFS), setup{options: []string{"mountopt=" + c.mount}})
			rows := s.status()
			assert.Equal(t, c.engine, rows["Shift engine"])
			for _, r := range c.reason {
				assert.Contains(t, rows["Shift engine reason"], r)
			}
			s.image("image", "", fsop.MakeImage)
			merged := s.container("c", "image", mapping(t, oneExtent))
			assert.Equal(t, [2]uint32{200000, 200000}, owner(t, merged+"/etc/passwd"))
			require.NoError(t, s.Put("c"))
			rec, err := readRecord(s.dir("c"))
			require.NoError(t, err)
			if c.image == "" {
				c.image = c.engine
			}
			assert.Equal(t, c.image, rec.Engine)
			s.image("simple", "", func(o fsop.Ops) error { return o.Write("file", "x") })
			s.container("d", "simple", mapping(t, oneExtent))
			require.NoError(t, s.Put("d"))
			rec, err = readRecord(s.dir("d"))
			require.NoError(t, err)
			assert.Equal(t, c.engine, rec.Engine)
		})
	}
}

// TestEngineChanges: a container that was started with one engine starts with
// any other, and what it wrote stays its own.
func TestEngineChanges(t *testing.T) {
	testutil.RequireRoot(t)
	c := setup{engine: "metacopy"}
	s := newStore(t, testutil.LoopFS(t, "ext4", smallFS), c)
	s.image("image", "", fsop.MakeImage)
	m := mapping(t, oneExtent)
	merged := s.container("c", "image", m)
	o := fsop.Ops{Root: merged, Mapping: m}
	require.NoError(t, fsop.All(
		func() error { return o.Chmod("usr/bin/tool", 0o700) }, func() error { return o.Rename("usr", "usr2") },
		func() error { return o.Rename("usr2/bin/tool", "tool") }, func() error { return o.Write("new", "x") },
	))
	want, change := seen(t, merged, &m), s.diff("c", "image")
	require.NoError(t, s.Put("c"))
	for _, c := range append(engines(), c) {
		engine := c.engine
		s.open(c)
		equal(t, want, seen(t, s.get("c", graphdriver.MountOpts{}), &m), "metacopy != "+engine)
		assert.Equal(t, change, s.diff("c", "image"), engine)
		require.NoError(t, s.Put("c"))
		rec, err := readRecord(s.dir("c"))
		require.NoError(t, err)
		assert.Equal(t, engine, rec.Engine)
	}
	assert.Equal(t, []string{"c"}, s.users(), "only the entry of the last mount is in use")
}

// TestBadSettings: one clear error that names the thing; nothing is left
// mounted.
func TestBadSettings(t *testing.T) {
	testutil.RequireRoot(t)
	fs := testutil.LoopFS(t, "ext4", smallFS)
	for name, c := range map[string]struct {
		setup
		noIdmap bool
		want    []string
		is      error
	}{
		"unknown storage option":   {setup: setup{options: []string{"shiftoverlay.no_such_option=1"}}, want: []string{"no_such_option"}},
		"storage option without =": {setup: setup{options: []string{"shiftoverlay.mountopt"}}, want: []string{"shiftoverlay.mountopt"}},
		"unknown engine":           {setup: setup{engine: "best"}, want: []string{"best", "metacopy"}, is: config.ErrInvalid},
		"unknown way":              {setup: setup{conf: `erofs_without = "best"`}, want: []string{"erofs_without", "best", "data-only"}, is: config.ErrInvalid},
		"erofs wants metacopy":     {setup: setup{engine: "erofs", options: []string{"mountopt=metacopy=off"}}, want: []string{"erofs", "metacopy=off"}},
		"unknown key":              {setup: setup{conf: "engines = 3"}, want: []string{"engines"}, is: config.ErrInvalid},
		"no TOML":                  {setup: setup{conf: "=="}, want: []string{"shiftoverlay.conf"}, is: config.ErrInvalid},
		"unknown policy":           {setup: setup{conf: `unmapped = "guess"`}, want: []string{"guess", "refuse"}, is: config.ErrInvalid},
		"private option":           {setup: setup{options: []string{"mountopt=x-shiftoverlay.engine=best"}}, want: []string{"x-shiftoverlay.engine", "best"}},
		"unknown private option":   {setup: setup{options: []string{"mountopt=x-shiftoverlay.no_such=1"}}, want: []string{"no_such"}},
		"idmap is disabled":        {setup: setup{engine: "idmap"}, noIdmap: true, want: []string{"idmap", "_CONTAINERS_OVERLAY_DISABLE_IDMAP"}},
		"metacopy is excluded":     {setup: setup{engine: "metacopy", options: []string{"mountopt=nodev,metacopy=off"}}, want: []string{"metacopy", "metacopy=off"}},
		"redirects are excluded":   {setup: setup{engine: "metacopy", options: []string{"mountopt=redirect_dir=off"}}, want: []string{"redirect_dir=off"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.noIdmap {
				t.Setenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")
			}
			dir := filepath.Join(fs, strings.ReplaceAll(name, " ", "-"))
			s := &store{t: t, root: filepath.Join(dir, "graph"), run: filepath.Join(dir, "run"), conf: filepath.Join(dir, "shiftoverlay.conf")}
			require.NoError(t, os.MkdirAll(s.root, 0o755))
			_, err := s.start(c.setup)
			require.Error(t, err)
			for _, w := range c.want {
				assert.ErrorContains(t, err, w)
			}
			if c.is != nil {
				assert.ErrorIs(t, err, c.is)
			}
			assert.Empty(t, mountsBelow(t, dir), "left mounted")
		})
	}
}

// TestReadOnlyRoot: a graph root that cannot be written gives an error, and no
// layer is harmed.
func TestReadOnlyRoot(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, c setup) {
		m := mapping(t, oneExtent)
		s.container("c", "image", m)
		require.NoError(t, s.Put("c"))
		require.NoError(t, s.CreateReadWrite("d", "image", nil))
		require.NoError(t, s.Cleanup())
		fs := filepath.Dir(s.root)
		// Whoever was forked a moment ago may still hold a copy of a descriptor
		// that is open for writing.
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			assert.NoError(t, unix.Mount("", fs, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}, 10*time.Second, 20*time.Millisecond)
		defer func() { require.NoError(t, unix.Mount("", fs, "", unix.MS_REMOUNT, "")) }()
		_, err := s.Get("d", mapped(m))
		require.ErrorIs(t, err, unix.EROFS)
		assert.Empty(t, mountsBelow(t, s.dir("d")))
		_, err = graphdriver.GetDriver(driverName, graphdriver.Options{Root: s.root, RunRoot: t.TempDir()})
		require.ErrorIs(t, err, unix.EROFS)
		assert.ErrorContains(t, err, s.root)
		assert.Empty(t, mountsBelow(t, s.root))
		_ = c
	})
}

// TestBadMappings are refused by name and leave nothing.
func TestBadMappings(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		require.NoError(t, s.CreateReadWrite("c", "image", nil))
		for _, m := range []idshift.Mapping{
			{UIDs: idshift.Extents{{ContainerID: 0, HostID: 0, Size: 10}, {ContainerID: 5, HostID: 100, Size: 10}}},
			{UIDs: idshift.Extents{{ContainerID: 0, HostID: 4294967290, Size: 10}}},
			{UIDs: idshift.Extents{{ContainerID: 0, HostID: 1, Size: 0}}},
		} {
			_, err := s.Get("c", mapped(m))
			require.ErrorContains(t, err, "mount layer c")
		}
		rec, err := readRecord(s.dir("c"))
		require.NoError(t, err)
		assert.Nil(t, rec)
		assert.Empty(t, s.entries())
		s.noLink("c")
	})
}

// TestLayersAreClean: nothing of ours looks like a layer, and nothing is left
// when all layers are gone.
func TestLayersAreClean(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		for _, id := range []string{"a", "b"} {
			s.container(id, "image", mapping(t, oneExtent))
			require.NoError(t, s.Put(id))
		}
		layers, err := s.ListLayers()
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{"a", "b", "image"}, layers)
		for _, id := range []string{"a", "b", "image"} {
			require.NoError(t, s.Remove(id))
		}
		layers, err = s.ListLayers()
		require.NoError(t, err)
		assert.Empty(t, layers)
		left, err := filepath.Glob(filepath.Join(s.root, driverName+cacheSuffix, "*", "*"))
		require.NoError(t, err)
		for _, p := range left {
			assert.Contains(t, p, "/locks/", "left: %s", p)
		}
	})
}
