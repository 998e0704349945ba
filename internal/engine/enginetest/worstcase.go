package enginetest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/worstcase"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// worstMappings are the mappings of the worst case: as podman makes it; of
// several extents that have the first and the last IDs that there are; and one
// to the last ones.
func worstMappings() [][2]string {
	return [][2]string{
		{"auto", Auto},
		{"extents", "0:100000:1000,1000:5:1,1001:101001:64536,2147483648:500000:1,4294967294:600000:1"},
		{"highest", "0:4294901759:65536"},
	}
}

// explained are the differences that docs/worst-case.md gives the kernel's
// reason for: it counts names that upper layers hide, and takes an inode of
// several layers for one.
func explained() []string {
	const shared = "shared/lower = shared/upper = shared/uppermost"
	out := []string{"links/crossed/kept: nlink: 3 != 1", "links/last/of: nlink: 4 != 1"}
	for _, name := range []string{"shared/lower", "shared/upper", "shared/uppermost"} {
		out = append(out, name+": nlink: 3 != 1", name+": links: "+shared+" != "+name)
	}
	return out
}

// WorstCase compares what engines show of the image of package worstcase with
// the kernel's idmapped mounts of its layers, on a file system of a type. An
// engine that makes nothing stands for the idmapped mounts themselves, which
// are compared with arithmetic.
func WorstCase(t *testing.T, fileSystem string, engines ...engine.Engine) {
	testutil.RequireRoot(t)
	w := &worst{suite: &suite{fs: testutil.LoopFS(t, fileSystem, 4<<30)}}
	w.o = Options{overlay: testutil.Overlay}
	if isRootless(engines[0]) {
		w.forRootless(t, engines[0])
	}
	w.scan = referee.Options{Content: true, OverlayXattrs: true}
	w.write(t)
	w.truths(t)
	var again []engine.Imager
	for _, e := range engines {
		t.Run(title(e), func(t *testing.T) { w.engine(t, e) })
		if i, ok := e.(engine.Imager); ok && i.Variant() == erofs.DataOnly.String() {
			again = append(again, i)
		}
	}
	// Once more for those that some paths are too long for.
	for _, layer := range w.chain {
		require.NoError(t, os.RemoveAll(filepath.Join(layer, worstcase.LongPathsFolder)))
	}
	w.short = true
	w.truths(t)
	for _, e := range again {
		t.Run(title(e)+" without long paths", func(t *testing.T) { w.imager(t, e) })
	}
}

// makes tells whether an engine makes something, or leaves all to the kernel.
func makes(e engine.Engine) bool {
	_, builds := e.(engine.Builder)
	_, images := e.(engine.Imager)
	return builds || images
}

// title is an engine's name, with the ways that it uses.
func title(e engine.Engine) string {
	if s, ok := e.(fmt.Stringer); ok {
		return s.String()
	}
	return e.Name()
}

// worst is the worst-case image on one file system.
type worst struct {
	*suite
	dir   string
	chain []string
	scan  referee.Options
	right map[string]*referee.Tree // by the mapping's name
	short bool                     // long paths are gone
}

// write writes the image and shows what the file system cannot hold.
func (w *worst) write(t *testing.T) {
	w.dir = w.place(t)
	for i := range worstcase.Layers {
		w.chain = append(w.chain, sub(t, w.dir, fmt.Sprintf("l%d", i)))
	}
	start := time.Now()
	var o worstcase.Options
	if w.rootless {
		o.Without = []string{"user-overlay"} // the namespace is in use, and such layers are refused
	}
	left, err := worstcase.Write(t.Context(), w.chain, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, layer := range w.chain {
			assert.NoError(t, worstcase.Remove(layer))
		}
	})
	if w.rootless {
		for _, layer := range w.chain {
			toUser(t, layer)
		}
	}
	t.Logf("written in %v", time.Since(start))
	for _, l := range left {
		t.Logf("left out: %s: %.200s", l.Feature, l.Reason)
	}
}

// truths reads the image through the kernel's idmapped mounts.
func (w *worst) truths(t *testing.T) {
	w.right = map[string]*referee.Tree{}
	mappings := worstMappings()
	if w.short {
		mappings = mappings[1:] // all that imager asks for
	}
	for _, m := range mappings {
		t.Run("truth-"+m[0], func(t *testing.T) {
			w.right[m[0]] = scan(t, w.merged(t, w.idmapped(t, w.dir, w.chain, mapping(t, m[1], m[1]))), w.scan)
			assert.Greater(t, w.right[m[0]].Len(), 50000)
		})
	}
}

// engine runs one engine under all mappings.
func (w *worst) engine(t *testing.T, e engine.Engine) {
	switch e := e.(type) {
	case engine.Builder:
		w.builder(t, e)
	case engine.Imager:
		w.imager(t, e)
	default:
		plain := scan(t, w.merged(t, w.chain), w.scan)
		for _, m := range worstMappings() {
			want, err := plain.Shift(shift(t, mapping(t, m[1], m[1]), idshift.Overflow))
			require.NoError(t, err)
			w.judge(t, m[0], want)
		}
	}
}

// judge compares a tree with the truth: the differences must be those that are
// explained, all of them and no others.
func (w *worst) judge(t *testing.T, name string, got *referee.Tree, explained ...string) {
	t.Helper()
	if w.right[name] == nil {
		testutil.Skip(t, "no idmapped mounts to compare with")
	}
	differences := referee.Compare(w.right[name], got, w.scan)
	var found []string
	for _, d := range differences[:min(30, len(differences))] {
		found = append(found, d.String())
	}
	assert.Equal(t, explained, found, "mapping %s, right != shifted: %d differences", name, len(differences))
	t.Logf("mapping %s: %d paths, %d differences", name, got.Len(), len(differences))
}

// builder builds for every mapping, or recycles what was built for the last.
func (w *worst) builder(t *testing.T, b engine.Builder) {
	r, recycles := b.(engine.Recycler)
	mappings, dir := worstMappings(), ""
	if !recycles {
		mappings = mappings[1:2] // the others would show nothing new
	}
	for i, m := range mappings {
		t.Run(m[0], func(t *testing.T) {
			job := engine.Job{Chain: w.chain, Shift: shift(t, mapping(t, m[1], m[1]), idshift.Overflow)}
			start, what := time.Now(), "built"
			if i == 1 {
				what = "recycled"
				require.NoError(t, r.Recycle(t.Context(), dir, job))
			} else {
				dir = filepath.Join(w.place(t), "built")
				require.NoError(t, os.Mkdir(dir, 0o700))
				require.NoError(t, b.Build(t.Context(), dir, job))
			}
			t.Logf("%s in %v", what, time.Since(start))
			w.judge(t, m[0], scan(t, w.merged(t, append([]string{b.Lower(dir)}, w.chain...), "metacopy=on"), w.scan), explained()...)
		})
	}
}

// imager makes a template and shows it under the mappings but the first.
func (w *worst) imager(t *testing.T, i engine.Imager) {
	w.need(t, i)
	template := w.place(t)
	start := time.Now()
	require.NoError(t, i.Template(t.Context(), template, engine.Job{Chain: w.chain}))
	t.Logf("template in %v", time.Since(start))
	mappings := worstMappings()[1:]
	if i.Variant() == erofs.DataOnly.String() {
		dataOnly, err := i.DataOnly(template)
		require.NoError(t, err)
		assert.Equal(t, w.short, dataOnly, "data-only lowers, which long paths are too long for")
		if !dataOnly {
			mappings = mappings[:1]
		}
	}
	for _, m := range mappings {
		t.Run(m[0], func(t *testing.T) {
			point := w.showImage(t, i, template, w.chain, mapping(t, m[1], m[1]))
			w.judge(t, m[0], scan(t, point, w.scan), explained()...)
		})
	}
}

// need skips a test where the kernel cannot do what the engine wants of it.
func (s *suite) need(t *testing.T, i engine.Imager) {
	t.Helper()
	a := &imager{Imager: i, trees: map[string]mounted{}, shifts: map[string]*idshift.Shift{}}
	a.need(t, &suite{b: a, o: Options{Mount: a.mount, overlay: a.overlay}, fs: s.place(t)})
}

// showImage mounts a template for a mapping above its chain and returns the
// mount point.
func (s *suite) showImage(t *testing.T, i engine.Imager, template string, chain []string, m idshift.Mapping, options ...string) string {
	t.Helper()
	dir, userns := template, -1
	if i.Patches() {
		dir = s.place(t)
		require.NoError(t, i.Patch(t.Context(), dir, template, engine.Job{Chain: chain, Shift: shift(t, m, idshift.Overflow)}))
	} else {
		userns = int(testutil.UserNamespace(t, m).Fd())
	}
	tree, err := i.Mount(dir, userns)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, tree.Close()) })
	a := &imager{Imager: i, trees: map[string]mounted{"image": {tree, dir}}}
	point := sub(t, s.place(t), "merged")
	require.NoError(t, a.overlay(t, point, append([]string{"image"}, chain...), append(options, "metacopy=on")...))
	return point
}

// show mounts a chain, folders in dir, for a mapping with whatever an engine
// makes for that, and returns the mount point. The error is that of the engine.
func (s *suite) show(t *testing.T, e engine.Engine, dir string, chain []string, m idshift.Mapping, options ...string) (string, error) {
	t.Helper()
	switch e := e.(type) {
	case engine.Builder:
		to := filepath.Join(s.place(t), "built")
		require.NoError(t, os.Mkdir(to, 0o700))
		if err := e.Build(t.Context(), to, engine.Job{Chain: chain, Shift: shift(t, m, idshift.Overflow)}); err != nil {
			return "", err
		}
		return s.merged(t, append([]string{e.Lower(to)}, chain...), append(options, "metacopy=on")...), nil
	case engine.Imager:
		s.need(t, e)
		template := s.place(t)
		if err := e.Template(t.Context(), template, engine.Job{Chain: chain}); err != nil {
			return "", err
		}
		return s.showImage(t, e, template, chain, m, options...), nil
	default:
		return s.merged(t, s.idmapped(t, dir, chain, m), options...), nil
	}
}

// idmapped shows the folders of a chain, which are in dir, through an idmapped
// mount.
func (s *suite) idmapped(t *testing.T, dir string, chain []string, m idshift.Mapping) (lowers []string) {
	t.Helper()
	point := sub(t, s.place(t), "idmapped")
	testutil.IdmapMount(t, dir, point, m)
	for _, l := range chain {
		lowers = append(lowers, filepath.Join(point, filepath.Base(l)))
	}
	return lowers
}

// Immutable holds what no engine keeps that makes something: inode flags. They
// are the layer's, not the image's, and no archive has them; where they are
// wanted is for the kernel to show, which the engine that makes nothing does.
func Immutable(t *testing.T, e engine.Engine) {
	testutil.RequireRoot(t)
	s := &suite{fs: testutil.LoopFS(t, "ext4", 512<<20), o: Options{overlay: testutil.Overlay}}
	dir := s.place(t)
	var chain []string
	for i := range worstcase.Layers {
		chain = append(chain, sub(t, dir, fmt.Sprintf("l%d", i)))
	}
	t.Cleanup(func() { assert.NoError(t, worstcase.Remove(dir)) })
	left, err := worstcase.Write(t.Context(), chain, worstcase.Options{Without: []string{"wide"}})
	require.NoError(t, err)
	require.NotContains(t, fmt.Sprint(left), worstcase.Immutable)
	place := s.place(t)
	point, err := s.show(t, e, dir, chain, mapping(t, "", ""), "upperdir="+sub(t, place, "upper"), "workdir="+sub(t, place, "work"))
	require.NoError(t, err)
	file := filepath.Join(point, "immutable/file")
	original := filepath.Join(chain[worstcase.Layers-1], "immutable/file")
	if !makes(e) {
		require.ErrorIs(t, os.Chmod(file, 0o600), unix.EPERM)
		require.ErrorIs(t, os.Remove(file), unix.EPERM)
	} else {
		require.NoError(t, os.Chmod(file, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(point, "immutable/empty"), []byte("full"), 0o600))
		require.NoError(t, os.Remove(filepath.Join(point, "immutable/log")))
	}
	for _, f := range []string{file, original} {
		content, err := os.ReadFile(f)
		require.NoError(t, err)
		assert.Equal(t, "for ever", string(content))
	}
	require.ErrorIs(t, os.Chmod(original, 0o600), unix.EPERM, "the layer's file is as it was")
}
