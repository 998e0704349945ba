package erofs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/enginetest"
	engineerofs "github.com/shiftoverlay/shiftoverlay/internal/engine/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// TestConformanceDataOnly runs the suite of all engines with data-only lowers,
// images mounted from their file, and an image for each mapping.
func TestConformanceDataOnly(t *testing.T) {
	enginetest.ImagerSuite(t, engineerofs.Engine{Layout: erofs.DataOnly, Via: mount.File, Owners: true}, "")
}

// TestConformanceDataOnlyIdmapped runs it with one image for all mappings.
func TestConformanceDataOnlyIdmapped(t *testing.T) {
	enginetest.ImagerSuite(t, engineerofs.Engine{Layout: erofs.DataOnly, Via: mount.File}, "")
}

// TestConformanceOpaque runs it as old kernels need it: ordinary lowers, loop
// devices, and an image for each mapping.
func TestConformanceOpaque(t *testing.T) {
	enginetest.ImagerSuite(t, engineerofs.Engine{Layout: erofs.Opaque, Via: mount.Loop, Owners: true}, "")
}

// TestConformanceOpaqueIdmapped runs it with one image for all mappings. (Overlay
// shows the ACLs of an idmapped image as they should be since Linux 6.2.)
func TestConformanceOpaqueIdmapped(t *testing.T) {
	testutil.RequireKernel(t, 6, 2)
	enginetest.ImagerSuite(t, engineerofs.Engine{Layout: erofs.Opaque, Via: mount.Loop}, "")
}

// TestConformanceXFS runs it where readdir, attributes and links are another
// file system's.
func TestConformanceXFS(t *testing.T) {
	enginetest.ImagerSuite(t, engineerofs.Engine{Layout: erofs.DataOnly, Via: mount.File, Owners: true}, "xfs")
}

// TestNew checks that the best way is taken that works.
func TestNew(t *testing.T) {
	for name, c := range map[string]struct {
		env     engine.Env
		want    engineerofs.Engine
		variant string
		text    string
		patches bool
	}{
		"all works":  {engine.Env{}, engineerofs.Engine{}, "data-only", "erofs (data-only, idmapped, file)", false},
		"no idmap":   {engine.Env{ErofsIdmap: "no"}, engineerofs.Engine{Owners: true}, "data-only", "erofs (data-only, patched, file)", true},
		"no data":    {engine.Env{ErofsData: "no"}, engineerofs.Engine{Layout: erofs.Opaque}, "opaque", "erofs (opaque, idmapped, file)", false},
		"no file":    {engine.Env{ErofsFile: "no"}, engineerofs.Engine{Via: mount.Loop}, "data-only", "erofs (data-only, idmapped, loop)", false},
		"old kernel": {engine.Env{ErofsIdmap: "no", ErofsData: "no", ErofsFile: "no"}, engineerofs.Engine{Layout: erofs.Opaque, Via: mount.Loop, Owners: true}, "opaque", "erofs (opaque, patched, loop)", true},
	} {
		e := engineerofs.New(c.env)
		assert.Equal(t, c.want, e, name)
		assert.Equal(t, c.variant, e.Variant(), name)
		assert.Equal(t, c.text, e.String(), name)
		assert.Equal(t, c.patches, e.Patches(), name)
		require.NoError(t, e.Check(c.env), name)
		assert.True(t, strings.HasPrefix(e.Note(), c.text+"; "), name)
		assert.Contains(t, e.Note(), "ENOTSUP", name)
		assert.Contains(t, e.Note(), `engine = "metacopy"`, name)
	}
}

// TestCheck checks that the reason is handed on.
func TestCheck(t *testing.T) {
	e := engineerofs.Engine{}
	require.NoError(t, e.Check(engine.Env{Idmap: "no", Metacopy: "no", ErofsFile: "no", ErofsData: "no", ErofsIdmap: "no"}))
	assert.EqualError(t, e.Check(engine.Env{Erofs: "no EROFS here"}), "no EROFS here")
	assert.Equal(t, "erofs", e.Name())
}

// TestUnfit checks that what an image cannot hold is said in a way that lets
// another engine be taken, and a damaged image in another.
func TestUnfit(t *testing.T) {
	testutil.RequireRoot(t)
	place := testutil.LoopFS(t, "xfs", 320<<20)
	layer, dir := filepath.Join(place, "layer"), filepath.Join(place, "dir")
	require.NoError(t, os.Mkdir(layer, 0o755))
	require.NoError(t, os.Mkdir(dir, 0o700))
	fstree.Apply(t, layer, fstree.File("d/f", "x", fstree.Xattr("user.big", strings.Repeat("v", 1<<16))))
	e := engineerofs.Engine{}
	err := e.Template(t.Context(), dir, engine.Job{Chain: []string{layer}})
	var unfit *engine.UnfitError
	require.ErrorAs(t, err, &unfit)
	assert.Equal(t, engineerofs.Name, unfit.Engine)
	assert.Contains(t, unfit.Reason, "d/f")
	assert.Contains(t, unfit.Reason, "user.big")

	_, err = e.Unfit(dir)
	require.ErrorIs(t, err, erofs.ErrDamaged, "what a failed build has left")
	require.NotErrorAs(t, err, &unfit)
	m, err := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
	require.NoError(t, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	to := filepath.Join(place, "to")
	require.NoError(t, os.Mkdir(to, 0o700))
	require.ErrorIs(t, e.Patch(t.Context(), to, dir, engine.Job{Shift: s}), erofs.ErrDamaged)
	// Nothing is written over.
	require.ErrorIs(t, e.Template(t.Context(), dir, engine.Job{Chain: []string{layer}}), unix.EEXIST)
}

// TestLongPath checks that an image with a path that no data-only lower can have
// is made for ordinary ones, and only that.
func TestLongPath(t *testing.T) {
	testutil.RequireRoot(t)
	place := testutil.LoopFS(t, "ext4", 64<<20)
	for name, c := range map[string]struct {
		layout   erofs.Layout
		parts    int
		dataOnly bool
	}{
		"long":          {erofs.DataOnly, 20, false},
		"not so long":   {erofs.DataOnly, 15, true},
		"ordinary, too": {erofs.Opaque, 15, false},
	} {
		layer, dir := filepath.Join(place, name, "layer"), filepath.Join(place, name, "dir")
		require.NoError(t, os.MkdirAll(layer, 0o755))
		require.NoError(t, os.Mkdir(dir, 0o700))
		fstree.Apply(t, layer, fstree.File(strings.Repeat(strings.Repeat("l", 250)+"/", c.parts)+"f", "x"))
		e := engineerofs.Engine{Layout: c.layout}
		require.NoError(t, e.Template(t.Context(), dir, engine.Job{Chain: []string{layer}}), name)
		dataOnly, err := e.DataOnly(dir)
		require.NoError(t, err, name)
		assert.Equal(t, c.dataOnly, dataOnly, name)
	}
}

// TestFormat checks the number that makes images of another version useless.
func TestFormat(t *testing.T) {
	assert.Equal(t, 2, engineerofs.Engine{}.Format())
}
