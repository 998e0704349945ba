package idshift_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// recorder is a sink that checks the promises of Sink and remembers what it
// got.
type recorder struct {
	onDir func(ctx context.Context, d *idshift.Dir) error // called besides

	mu       sync.Mutex
	entries  map[string]idshift.Entry // by path; "." for the root
	order    []string                 // directories
	returned map[string]bool          // Directory has returned for these
	released map[string]int
	wrong    []string // broken promises
	data     map[string]string
}

func newRecorder() *recorder {
	return &recorder{entries: map[string]idshift.Entry{}, returned: map[string]bool{}, released: map[string]int{}, data: map[string]string{}}
}

func (r *recorder) wrongf(format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

// Directory implements idshift.Sink.
func (r *recorder) Directory(ctx context.Context, d *idshift.Dir) error {
	p := d.Path()
	data, err := readAll(d)
	r.mu.Lock()
	switch parent := d.Parent(); {
	case parent == nil:
		if p != "." || d.Self.Name != "" {
			r.wrongf("root has path %q, name %q", p, d.Self.Name)
		}
	case !r.returned[parent.Path()]:
		r.wrongf("%s came before its parent was done", p)
	case parent.State != "state of "+parent.Path():
		r.wrongf("state of the parent of %s is %v", p, parent.State)
	case r.released[parent.Path()] > 0:
		r.wrongf("parent of %s was released", p)
	}
	if !slices.IsSortedFunc(d.Entries, func(a, b idshift.Entry) int { return strings.Compare(a.Name, b.Name) }) {
		r.wrongf("entries of %s are not sorted", p)
	}
	if mask := unix.Umask(0); mask != 0 {
		r.wrongf("umask is %#o", mask)
	}
	r.order = append(r.order, p)
	r.entries[p] = d.Self
	for _, e := range d.Entries {
		r.entries[path.Join(p, e.Name)] = e
	}
	maps.Copy(r.data, data)
	r.mu.Unlock()
	d.State = "state of " + p
	if err == nil && r.onDir != nil {
		err = r.onDir(ctx, d)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.returned[p] = true
	return err
}

// readAll reads the regular files of a directory through Dir.Open.
func readAll(d *idshift.Dir) (map[string]string, error) {
	out := map[string]string{}
	for i := range d.Entries {
		e := &d.Entries[i]
		if e.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		fd, err := d.Open(e)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), e.Name)
		b, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		out[path.Join(d.Path(), e.Name)] = string(b)
	}
	return out, nil
}

// Release implements idshift.Sink.
func (r *recorder) Release(d *idshift.Dir) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released[d.Path()]++
}

// check fails with broken promises: those seen, and a Release for each
// Directory, once.
func (r *recorder) check(t *testing.T) {
	t.Helper()
	assert.Empty(t, r.wrong)
	for _, p := range r.order {
		assert.Equal(t, 1, r.released[p], "releases of %s", p)
	}
	assert.Len(t, r.released, len(r.order))
}

// paths lists what the walk has shown, "path@layer", directories with a slash.
func (r *recorder) paths() []string {
	var out []string
	for p, e := range r.entries {
		if p == "." {
			continue
		}
		slash := ""
		if e.IsDir() {
			slash = "/"
		}
		out = append(out, fmt.Sprintf("%s%s@%d", p, slash, e.Layer))
	}
	slices.Sort(out)
	return out
}

// writeLayers makes layer folders, uppermost first.
func writeLayers(t *testing.T, trees ...[]fstree.Node) []string {
	t.Helper()
	testutil.RequireRoot(t)
	dir := t.TempDir()
	var chain []string
	for i, nodes := range trees {
		l := filepath.Join(dir, fmt.Sprintf("layer%d", i))
		require.NoError(t, os.Mkdir(l, 0o755))
		fstree.Apply(t, l, nodes...)
		chain = append(chain, l)
	}
	return chain
}

type nodes = []fstree.Node

// TestWalkMerges checks which names of which layers the merged view shows.
func TestWalkMerges(t *testing.T) {
	user := func(name, value string) fstree.Attr { return fstree.Xattr("user.overlay."+name, value) }
	for name, c := range map[string]struct {
		layers []nodes
		ns     idshift.Namespace
		want   string
	}{
		"one layer":                     {layers: []nodes{{fstree.File("b", ""), fstree.File("a/f", "")}}, want: "a/@0 a/f@0 b@0"},
		"empty":                         {layers: []nodes{nil}, want: ""},
		"added":                         {layers: []nodes{{fstree.File("a", "")}, {fstree.File("b", "")}}, want: "a@0 b@1"},
		"uppermost wins":                {layers: []nodes{nil, {fstree.File("a", "")}, {fstree.File("a", "")}}, want: "a@1"},
		"merged":                        {layers: []nodes{{fstree.File("d/a", "")}, {fstree.File("d/b", "")}, {fstree.File("d/c", ""), fstree.File("d/a", "")}}, want: "d/@0 d/a@0 d/b@1 d/c@2"},
		"whiteout":                      {layers: []nodes{{fstree.Whiteout("a")}, {fstree.File("a", ""), fstree.File("b", "")}}, want: "b@1"},
		"whiteout and again":            {layers: []nodes{{fstree.File("a", "")}, {fstree.Whiteout("a")}, {fstree.File("a", "")}}, want: "a@0"},
		"whiteout of a folder, again":   {layers: []nodes{{fstree.File("d/new", "")}, {fstree.Whiteout("d")}, {fstree.File("d/old", "")}}, want: "d/@0 d/new@0"},
		"file stops merging":            {layers: []nodes{{fstree.File("d/a", "")}, {fstree.File("d", "")}, {fstree.File("d/b", "")}}, want: "d/@0 d/a@0"},
		"symlink over folder":           {layers: []nodes{{fstree.Symlink("d", "e")}, {fstree.File("d/b", ""), fstree.Dir("e")}}, want: "d@0 e/@1"},
		"opaque":                        {layers: []nodes{{fstree.Dir("d", fstree.Opaque()), fstree.File("d/a", "")}, {fstree.File("d/b", "")}}, want: "d/@0 d/a@0"},
		"opaque in the middle":          {layers: []nodes{{fstree.File("d/a", "")}, {fstree.Dir("d", fstree.Opaque()), fstree.File("d/b", "")}, {fstree.File("d/c", "")}}, want: "d/@0 d/a@0 d/b@1"},
		"opaque hides below":            {layers: []nodes{{fstree.Dir("d", fstree.Opaque()), fstree.File("d/e/a", "")}, {fstree.File("d/e/b", "")}}, want: "d/@0 d/e/@0 d/e/a@0"},
		"opaque with another value":     {layers: []nodes{{fstree.Dir("d", fstree.Xattr("trusted.overlay.opaque", "n"))}, {fstree.File("d/b", "")}}, want: "d/@0 d/b@1"},
		"opaque on a file":              {layers: []nodes{{fstree.File("f", "", fstree.Opaque())}, {fstree.File("f", "")}}, want: "f@0"},
		"root is merged, opaque or not": {layers: []nodes{{fstree.Dir(".", fstree.Opaque()), fstree.File("a", "")}, {fstree.File("b", "")}}, want: "a@0 b@1"},
		"xattr whiteout": {layers: []nodes{
			{fstree.Dir("d", fstree.XattrWhiteouts()), fstree.XattrWhiteout("d/a"), fstree.Whiteout("d/c"), fstree.File("d/new", "")}, {fstree.File("d/a", ""), fstree.File("d/b", ""), fstree.File("d/c", "")},
		}, want: "d/@0 d/b@1 d/new@0"},
		"xattr whiteout in the root": {layers: []nodes{
			{fstree.Dir(".", fstree.XattrWhiteouts()), fstree.XattrWhiteout("a")}, {fstree.File("a", ""), fstree.File("b", "")},
		}, want: "b@1"},
		"xattr whiteout in a lower part": {layers: []nodes{
			{fstree.File("d/x", "")}, {fstree.Dir("d", fstree.XattrWhiteouts()), fstree.XattrWhiteout("d/a")}, {fstree.File("d/a", "")},
		}, want: "d/@0 d/x@0"},
		// As the kernel looks names up; it lists this one all the same.
		"xattr whiteout without the mark": {layers: []nodes{{fstree.Dir("d"), fstree.XattrWhiteout("d/a")}, {fstree.File("d/a", "")}}, want: "d/@0"},
		"xattr whiteout with content":     {layers: []nodes{{fstree.File("a", "x", fstree.Xattr("trusted.overlay.whiteout", ""))}, {fstree.File("a", "")}}, want: "a@0"},
		"AUFS names mean nothing":         {layers: []nodes{{fstree.File(".wh.a", ""), fstree.File("d/.wh..wh..opq", "")}, {fstree.File("a", ""), fstree.File("d/b", "")}}, want: ".wh.a@0 a@1 d/.wh..wh..opq@0 d/@0 d/b@1"},
		"a device 0/0 of the other type":  {layers: []nodes{{fstree.Device("b", unix.S_IFBLK, 0, 0)}}, want: "b@0"},
		"user namespace": {ns: idshift.UserOverlay, layers: []nodes{
			{fstree.Dir("d", user("opaque", "y")), fstree.Dir("x", user("opaque", "x")), fstree.File("x/a", "", user("whiteout", ""))},
			{fstree.File("d/b", ""), fstree.File("x/a", "")},
		}, want: "d/@0 x/@0"},
		"the other namespace's": {ns: idshift.TrustedOverlay, layers: []nodes{{fstree.Dir("d", user("opaque", "y"))}, {fstree.File("d/b", "")}}, want: "d/@0 d/b@1"},
	} {
		t.Run(name, func(t *testing.T) {
			chain := writeLayers(t, c.layers...)
			for _, workers := range []int{1, 3} {
				r := newRecorder()
				require.NoError(t, idshift.Walk(t.Context(), chain, idshift.WalkOptions{Workers: workers, Namespace: c.ns}, r))
				r.check(t)
				assert.Equal(t, strings.Fields(c.want), append([]string{}, r.paths()...))
			}
		})
	}
}

// TestWalkEntries checks what is read of one name.
func TestWalkEntries(t *testing.T) {
	chain := writeLayers(t,
		nodes{
			fstree.Dir(".", fstree.Owner(1, 2), fstree.Mode(0o711), fstree.Xattr("user.root", "r")),
			fstree.Symlink("link", "where/to", fstree.Owner(3, 4), fstree.Xattr("trusted.l", "v")),
			fstree.File("f", "top", fstree.Owner(5, 6), fstree.Mode(0o4711), fstree.Xattr("user.a", "1"), fstree.Xattr("user.b", ""),
				fstree.Xattr("trusted.overlay.origin", "o"), fstree.Xattr("trusted.overlay.overlay.x", "y"), fstree.Xattr("user.overlay.opaque", "y")),
			fstree.Dir("d", fstree.Owner(7, 7), fstree.Xattr("user.d", "top"), fstree.Xattr("trusted.overlay.impure", "y")),
			fstree.Symlink("empty-after", strings.Repeat("t", 255)),
			fstree.File("hard1", "h"), fstree.Link("d/hard2", "hard1"),
		},
		nodes{
			fstree.Dir("d", fstree.Owner(8, 8), fstree.Xattr("user.d", "low")), fstree.File("d/low", "low"), fstree.File("f", "low"),
		})
	r := newRecorder()
	require.NoError(t, idshift.Walk(t.Context(), chain, idshift.WalkOptions{}, r))
	r.check(t)
	for p, e := range r.entries {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(chain[e.Layer], p), &st))
		st.Atim = e.Stat.Atim // reading changes it
		assert.Equal(t, st, e.Stat, "stat of %s", p)
	}
	x := func(p string) map[string]string {
		out := map[string]string{}
		for _, a := range r.entries[p].Xattrs {
			out[a.Name] = string(a.Value)
		}
		return out
	}
	assert.Equal(t, map[string]string{"user.root": "r"}, x("."))
	assert.Equal(t, map[string]string{"trusted.l": "v"}, x("link"))
	assert.Equal(t, "where/to", r.entries["link"].Target)
	assert.Equal(t, strings.Repeat("t", 255), r.entries["empty-after"].Target)
	assert.Equal(t, map[string]string{"user.a": "1", "user.b": "", "trusted.overlay.overlay.x": "y", "user.overlay.opaque": "y"}, x("f"))
	assert.Equal(t, map[string]string{"user.d": "top"}, x("d"))
	assert.Equal(t, "top", r.data["f"])
	assert.Equal(t, "low", r.data["d/low"], "Open takes the entry's layer")
	a, b, f := r.entries["hard1"], r.entries["d/hard2"], r.entries["f"]
	ka, sharedA := a.Link()
	kb, sharedB := b.Link()
	kf, sharedF := f.Link()
	assert.True(t, sharedA && sharedB && !sharedF)
	assert.Equal(t, ka, kb)
	assert.NotEqual(t, ka, kf)
	d := r.entries["d"]
	_, shared := d.Link()
	assert.False(t, shared, "a directory has one name")
}

// TestWalkOpenElsewhere checks that only the directory's own layers can be
// opened.
func TestWalkOpenElsewhere(t *testing.T) {
	chain := writeLayers(t, nodes{fstree.File("d/f", "x"), fstree.Symlink("d/l", "f")}, nodes{fstree.File("g", "x")})
	r := newRecorder()
	r.onDir = func(_ context.Context, d *idshift.Dir) error {
		if d.Path() != "d" {
			return nil
		}
		_, err := d.Open(&idshift.Entry{Name: "f", Layer: 1})
		assert.ErrorContains(t, err, "d/f")
		_, err = d.Open(&idshift.Entry{Name: "gone"})
		assert.ErrorIs(t, err, unix.ENOENT)
		assert.ErrorContains(t, err, "d/gone")
		_, err = d.Open(&idshift.Entry{Name: "l"})
		assert.ErrorIs(t, err, unix.ELOOP, "symbolic links are not followed")
		return nil
	}
	require.NoError(t, idshift.Walk(t.Context(), chain, idshift.WalkOptions{}, r))
	assert.Contains(t, r.order, "d")
}

// TestWalkRootLink checks that a layer may be given as a symbolic link, as the
// storage library does.
func TestWalkRootLink(t *testing.T) {
	chain := writeLayers(t, nodes{fstree.File("f", "x")})
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(chain[0], link))
	r := newRecorder()
	require.NoError(t, idshift.Walk(t.Context(), []string{link}, idshift.WalkOptions{}, r))
	assert.Equal(t, []string{"f@0"}, r.paths())
}

// TestWalkDescriptors checks that the number of open files grows with depth
// and number of threads, not with the number of directories.
func TestWalkDescriptors(t *testing.T) {
	const width, depth = 60, 12
	var tree nodes
	for i := range width {
		p := ""
		for j := range depth {
			p = path.Join(p, fmt.Sprintf("%d-%d", i, j))
			tree = append(tree, fstree.Dir(p+"/side"), fstree.Dir(p+"/other"))
		}
	}
	chain := writeLayers(t, tree, tree)
	for _, workers := range []int{1, 4} {
		before := testutil.OpenFiles(t)
		most := 0
		r := newRecorder()
		var mu sync.Mutex
		r.onDir = func(context.Context, *idshift.Dir) error {
			mu.Lock()
			defer mu.Unlock()
			most = max(most, testutil.OpenFiles(t)-before)
			return nil
		}
		require.NoError(t, idshift.Walk(t.Context(), chain, idshift.WalkOptions{Workers: workers}, r))
		r.check(t)
		assert.Len(t, r.order, 1+3*width*depth)
		assert.LessOrEqual(t, most, workers*len(chain)*(depth+4), "open files with %d threads", workers)
		assert.Equal(t, before, testutil.OpenFiles(t))
	}
}

// TestWalkSinkError checks that an error of the sink ends the walk, comes
// back, and that everything is released.
func TestWalkSinkError(t *testing.T) {
	var tree nodes
	for i := range 300 {
		tree = append(tree, fstree.Dir(fmt.Sprintf("d%d/e/f", i)))
	}
	chain := writeLayers(t, tree)
	boom := errors.New("boom")
	for _, workers := range []int{1, 8} {
		for _, at := range []int{1, 2, 50} {
			before := testutil.OpenFiles(t)
			r := newRecorder()
			n := 0
			var mu sync.Mutex
			r.onDir = func(context.Context, *idshift.Dir) error {
				mu.Lock()
				defer mu.Unlock()
				if n++; n == at {
					return boom
				}
				return nil
			}
			err := idshift.Walk(t.Context(), chain, idshift.WalkOptions{Workers: workers}, r)
			require.ErrorIs(t, err, boom)
			r.check(t)
			assert.Less(t, len(r.order), 901, "the walk ended early")
			assert.Equal(t, before, testutil.OpenFiles(t))
		}
	}
}

// TestWalkCancel cancels a walk from within and checks the error.
func TestWalkCancel(t *testing.T) {
	var tree nodes
	for i := range 300 {
		tree = append(tree, fstree.Dir(fmt.Sprintf("d%d/e/f", i)))
	}
	chain := writeLayers(t, tree)
	reason := errors.New("the operator said so")
	for _, workers := range []int{1, 8} {
		before := testutil.OpenFiles(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		r := newRecorder()
		r.onDir = func(inner context.Context, d *idshift.Dir) error {
			if strings.HasPrefix(d.Path(), "d7") {
				cancel(reason)
				<-inner.Done() // the sink sees it, too
			}
			return nil
		}
		err := idshift.Walk(ctx, chain, idshift.WalkOptions{Workers: workers}, r)
		cancel(nil)
		require.ErrorIs(t, err, reason)
		r.check(t)
		assert.Less(t, len(r.order), 901)
		assert.Equal(t, before, testutil.OpenFiles(t))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newRecorder()
	require.ErrorIs(t, idshift.Walk(ctx, chain, idshift.WalkOptions{}, r), context.Canceled)
	r.check(t)
}

// TestWalkErrors checks that what cannot be read is named.
func TestWalkErrors(t *testing.T) {
	chain := writeLayers(t, nodes{fstree.File("f", "x"), fstree.Dir("a/b")})
	walk := func(chain ...string) error {
		before := testutil.OpenFiles(t)
		r := newRecorder()
		err := idshift.Walk(t.Context(), chain, idshift.WalkOptions{}, r)
		r.check(t)
		assert.Equal(t, before, testutil.OpenFiles(t))
		return err
	}
	require.ErrorContains(t, walk(), "empty chain")
	gone := filepath.Join(chain[0], "gone")
	err := walk(chain[0], gone)
	require.ErrorIs(t, err, unix.ENOENT)
	require.ErrorContains(t, err, gone)
	require.ErrorIs(t, walk(filepath.Join(chain[0], "f")), unix.ENOTDIR)

	r := newRecorder()
	r.onDir = func(_ context.Context, d *idshift.Dir) error {
		if d.Path() == "a" {
			return os.Remove(filepath.Join(chain[0], "a/b"))
		}
		return nil
	}
	err = idshift.Walk(t.Context(), chain, idshift.WalkOptions{}, r)
	require.ErrorIs(t, err, unix.ENOENT, "a directory that vanishes is an error, not left out")
	require.ErrorContains(t, err, filepath.Join(chain[0], "a/b"))
	r.check(t)
}

// TestWalkLayerError checks the refusal of what has no meaning in a layer.
func TestWalkLayerError(t *testing.T) {
	for name, c := range map[string]struct {
		node  fstree.Node
		ns    idshift.Namespace
		xattr string
		ok    bool
	}{
		"redirect of a folder":      {node: fstree.Dir("a/x", fstree.Xattr("trusted.overlay.redirect", "y")), xattr: "trusted.overlay.redirect"},
		"redirect of a file":        {node: fstree.File("a/x", "", fstree.Xattr("trusted.overlay.redirect", "/y")), xattr: "trusted.overlay.redirect"},
		"metadata-only file":        {node: fstree.File("a/x", "", fstree.Xattr("trusted.overlay.metacopy", "")), xattr: "trusted.overlay.metacopy"},
		"the user's":                {ns: idshift.UserOverlay, node: fstree.File("a/x", "", fstree.Xattr("user.overlay.metacopy", "")), xattr: "user.overlay.metacopy"},
		"the user's means nothing":  {node: fstree.File("a/x", "", fstree.Xattr("user.overlay.metacopy", "")), ok: true},
		"trusted means nothing":     {ns: idshift.UserOverlay, node: fstree.File("a/x", "", fstree.Xattr("trusted.overlay.metacopy", "")), ok: true},
		"escaped means nothing":     {node: fstree.File("a/x", "", fstree.Xattr("trusted.overlay.overlay.metacopy", "")), ok: true},
		"something like it":         {node: fstree.File("a/x", "", fstree.Xattr("trusted.overlay.redirected", "")), ok: true},
		"origin is only a note":     {node: fstree.File("a/x", "", fstree.Xattr("trusted.overlay.origin", "")), ok: true},
		"without overlay.* at all":  {node: fstree.File("a/x", "", fstree.Xattr("trusted.metacopy", "")), ok: true},
		"xattr whiteout is allowed": {node: fstree.File("a/x", "content", fstree.Xattr("trusted.overlay.whiteout", "")), ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			chain := writeLayers(t, nodes{fstree.Dir("a")}, nodes{c.node})
			r := newRecorder()
			err := idshift.Walk(t.Context(), chain, idshift.WalkOptions{Namespace: c.ns}, r)
			r.check(t)
			if c.ok {
				require.NoError(t, err)
				assert.Contains(t, r.entries, "a/x")
				return
			}
			var le *idshift.LayerError
			require.ErrorAs(t, err, &le)
			assert.Equal(t, idshift.LayerError{Layer: chain[1], Path: "a/x", Xattr: c.xattr}, *le)
			assert.ErrorContains(t, err, "cannot be shifted")
		})
	}
}

// TestWalkLowerRedirect checks that a redirect is refused on a part of a
// merged directory that is not the uppermost, too.
func TestWalkLowerRedirect(t *testing.T) {
	chain := writeLayers(t, nodes{fstree.Dir("a/b")}, nodes{fstree.Dir("a/b", fstree.Xattr("trusted.overlay.redirect", "/c"))}, nodes{fstree.File("c/f", "x")})
	var le *idshift.LayerError
	require.ErrorAs(t, idshift.Walk(t.Context(), chain, idshift.WalkOptions{}, newRecorder()), &le)
	assert.Equal(t, idshift.LayerError{Layer: chain[1], Path: "a/b", Xattr: "trusted.overlay.redirect"}, *le)
}
