package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// place is a file system with a layer and an image of its metadata.
type place struct {
	dir, layer, image string
}

func newPlace(t *testing.T, layout erofs.Layout) place {
	t.Helper()
	dir := testutil.LoopFS(t, "ext4", 64<<20)
	p := place{dir: dir, layer: filepath.Join(dir, "layer"), image: filepath.Join(dir, "image")}
	require.NoError(t, os.MkdirAll(filepath.Join(p.layer, "d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(p.layer, "d/f"), []byte("data"), 0o644))
	f, err := os.OpenFile(p.image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	require.NoError(t, err)
	_, err = erofs.Build(t.Context(), f, []string{p.layer}, erofs.Options{Layout: layout})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return p
}

// mkdir makes a folder of the place.
func (p place) mkdir(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(p.dir, name)
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir
}

// table counts the mounts that are shown at or below a folder.
func table(t *testing.T, dir string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(strings.Fields(line)[4], dir) {
			n++
		}
	}
	return n
}

// loops counts the loop devices behind a file.
func loops(t *testing.T, file string) (n int) {
	t.Helper()
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(t, err)
	for _, d := range devices {
		if b, err := os.ReadFile(d); err == nil && strings.TrimSpace(string(b)) == file {
			n++
		}
	}
	return n
}

// TestErofs mounts an image in every way, and checks that nothing is left.
func TestErofs(t *testing.T) {
	testutil.RequireRoot(t)
	p := newPlace(t, erofs.Opaque)
	for name, via := range map[string]ErofsVia{"auto": Auto, "file": File, "loop": Loop} {
		t.Run(name, func(t *testing.T) {
			files := testutil.OpenFiles(t)
			tree, err := Erofs(p.image, via)
			if via == File && err != nil {
				testutil.Skip(t, "no file-backed EROFS: "+err.Error())
			}
			require.NoError(t, err)
			before := table(t, p.dir)
			st, err := os.Stat(tree.Path() + "/d/f")
			require.NoError(t, err)
			assert.Equal(t, int64(4), st.Size())
			assert.Equal(t, before, table(t, p.dir), "in no mount table")
			if via == Loop {
				assert.Equal(t, 1, loops(t, p.image))
			}
			at := p.mkdir(t, name)
			require.NoError(t, tree.Attach(at))
			assert.Equal(t, before+1, table(t, p.dir))
			assert.FileExists(t, filepath.Join(at, "d/f"))
			require.NoError(t, tree.Detach())
			require.NoError(t, tree.Detach(), "twice")
			assert.Equal(t, before, table(t, p.dir))
			require.NoError(t, tree.Close())
			require.NoError(t, tree.Close(), "twice")
			assert.Zero(t, loops(t, p.image))
			assert.Equal(t, files, testutil.OpenFiles(t))
			require.ErrorIs(t, Detach(at), unix.EINVAL)
		})
	}
}

// TestErofsFarAway mounts an image with a path longer than fsconfig(2) takes.
func TestErofsFarAway(t *testing.T) {
	testutil.RequireRoot(t)
	p := newPlace(t, erofs.Opaque)
	dir := p.dir
	for range 3 {
		dir = filepath.Join(dir, strings.Repeat("long", 50))
	}
	require.NoError(t, os.MkdirAll(dir, 0o755))
	image := filepath.Join(dir, "image")
	require.NoError(t, os.Rename(p.image, image))
	for _, via := range []ErofsVia{Auto, Loop} {
		tree, err := Erofs(image, via)
		require.NoError(t, err)
		require.NoError(t, tree.Close())
	}
}

// TestErofsErrors checks that an error names what is wrong.
func TestErofsErrors(t *testing.T) {
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, "ext4", 64<<20)
	_, err := Erofs(filepath.Join(dir, "gone"), Auto)
	require.ErrorIs(t, err, unix.ENOENT)
	garbage := filepath.Join(dir, "garbage")
	require.NoError(t, os.WriteFile(garbage, make([]byte, 8192), 0o600))
	for _, via := range []ErofsVia{Auto, Loop} {
		_, err = Erofs(garbage, via)
		require.ErrorIs(t, err, unix.EINVAL)
		require.ErrorContains(t, err, "erofs")
	}
	assert.Zero(t, loops(t, garbage))
}

// TestIdmap maps the IDs of an image.
func TestIdmap(t *testing.T) {
	testutil.RequireRoot(t)
	p := newPlace(t, erofs.Opaque)
	m, err := idshift.ParseMapping("0:100000:65536", "0:200000:65536")
	require.NoError(t, err)
	tree, err := Erofs(p.image, Auto)
	require.NoError(t, err)
	defer tree.Close()
	if err := tree.Idmap(int(testutil.UserNamespace(t, m).Fd())); err != nil {
		testutil.Skip(t, err.Error())
	}
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(tree.Path()+"/d/f", &st))
	assert.Equal(t, [2]uint32{100000, 200000}, [2]uint32{st.Uid, st.Gid})
}

// TestOverlay mounts overlays of an image and a layer as ordinary and as
// data-only lower, with and without an upper, below any path.
func TestOverlay(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, 6, 8) // lowerdir+
	for name, c := range map[string]struct {
		layout           erofs.Layout
		writable, attach bool
		folder           string
	}{
		"ordinary lowers":     {layout: erofs.Opaque},
		"data only":           {layout: erofs.DataOnly},
		"data only, writable": {layout: erofs.DataOnly, writable: true, attach: true},
		"odd names":           {layout: erofs.DataOnly, writable: true, folder: `a:b,c\d e`},
		"long names":          {layout: erofs.DataOnly, writable: true, folder: strings.Repeat("long", 60)},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			p := newPlace(t, c.layout)
			if c.folder != "" {
				dir := filepath.Join(p.mkdir(t, c.folder), "layer")
				require.NoError(t, os.Rename(p.layer, dir))
				p.layer = dir
			}
			tree, err := Erofs(p.image, Auto)
			require.NoError(t, err)
			defer tree.Close()
			o := Overlay{Tree: tree, Options: []string{"metacopy=on", "xino=auto"}, Flags: unix.MS_NODEV | unix.MS_NOATIME}
			if c.layout == erofs.DataOnly {
				o.Data = []string{p.layer}
			} else {
				o.Below = []string{p.layer}
			}
			if c.writable {
				o.Upper, o.Work = p.mkdir(t, "upper"), p.mkdir(t, "work")
			} else {
				o.Flags |= unix.MS_RDONLY
			}
			if c.attach || !testutil.KernelSince(t, 6, 15) {
				o.Attach = p.mkdir(t, "attach")
			}
			before := table(t, p.dir)
			mnt, err := o.Mount()
			require.NoError(t, err)
			require.NoError(t, tree.Close(), "overlay keeps what it needs")
			assert.Equal(t, before, table(t, p.dir), "in no mount table yet")
			target := p.mkdir(t, "merged")
			require.NoError(t, mnt.Attach(target))
			require.NoError(t, mnt.Close())
			defer func() { require.NoError(t, unix.Unmount(target, 0)) }()
			b, err := os.ReadFile(filepath.Join(target, "d/f"))
			require.NoError(t, err)
			assert.Equal(t, "data", string(b))
			info, err := os.ReadFile("/proc/self/mountinfo")
			require.NoError(t, err)
			for line := range strings.Lines(string(info)) {
				if strings.Contains(line, " "+target+" ") {
					assert.Contains(t, line, "nodev,noatime")
				}
			}
			err = os.WriteFile(filepath.Join(target, "d/f"), []byte("more"), 0o600)
			if !c.writable {
				require.ErrorIs(t, err, unix.EROFS)
				return
			}
			require.NoError(t, err)
			b, err = os.ReadFile(filepath.Join(o.Upper, "d/f"))
			require.NoError(t, err)
			assert.Equal(t, "more", string(b))
		})
	}
}

// TestOverlayParts shows folders of a tree that is in no mount table, and checks
// that nothing leads out of it.
func TestOverlayParts(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, 6, 15)
	home := t.TempDir()
	for _, dir := range []string{"a/diff/both", "b/diff/both", "b/diff/b"} {
		require.NoError(t, os.MkdirAll(filepath.Join(home, dir), 0o700))
	}
	require.NoError(t, os.Symlink("/", filepath.Join(home, "out")))
	tree, err := CloneOne(home)
	require.NoError(t, err)
	defer tree.Close()
	merged, err := Overlay{Parts: []Part{{Tree: tree, Path: "a/diff"}, {Tree: tree, Path: "b/diff"}}}.Mount()
	require.NoError(t, err)
	names, err := os.ReadDir(merged.Path() + "/.")
	require.NoError(t, err)
	assert.Len(t, names, 2)
	require.NoError(t, merged.Close())
	for path, want := range map[string]error{"out": unix.ELOOP, "out/etc": unix.ELOOP, "../x": unix.EXDEV, "gone": unix.ENOENT} {
		_, err := Overlay{Parts: []Part{{Tree: tree, Path: "a/diff"}, {Tree: tree, Path: path}}}.Mount()
		assert.ErrorIs(t, err, want, path)
	}
}

// TestOverlayErrors checks that an error says what the kernel says, and that
// nothing stays attached.
func TestOverlayErrors(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, 6, 8) // lowerdir+
	p := newPlace(t, erofs.DataOnly)
	tree, err := Erofs(p.image, Auto)
	require.NoError(t, err)
	defer tree.Close()
	attach := p.mkdir(t, "attach")
	for want, o := range map[string]Overlay{
		"no_such_option": {Tree: tree, Data: []string{p.layer}, Options: []string{"no_such_option=1"}},
		"upperdir":       {Tree: tree, Data: []string{p.layer}, Upper: filepath.Join(p.dir, "gone"), Work: p.layer},
		"datadir+":       {Tree: tree, Data: []string{p.image}},
		"flags":          {Tree: tree, Flags: unix.MS_REMOUNT},
	} {
		o.Attach = attach
		before, files := table(t, p.dir), testutil.OpenFiles(t)
		_, err := o.Mount()
		require.ErrorContains(t, err, want)
		assert.Equal(t, before, table(t, p.dir), want)
		assert.Equal(t, files, testutil.OpenFiles(t), want)
	}
}

// TestSplit checks the translation of flags.
func TestSplit(t *testing.T) {
	attrs, options, err := split(unix.MS_RDONLY | unix.MS_NODEV | unix.MS_SYNCHRONOUS)
	require.NoError(t, err)
	assert.Equal(t, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV, attrs)
	assert.Equal(t, []string{"ro", "sync"}, options)
	_, _, err = split(unix.MS_REMOUNT)
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, fmt.Sprintf("%#x", unix.MS_REMOUNT))
}
