package shifter_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func mapping(t *testing.T, uids, gids string) idshift.Mapping {
	t.Helper()
	m, err := idshift.ParseMapping(uids, gids)
	require.NoError(t, err)
	return m
}

func newShifter(t *testing.T, o shifter.Options) *shifter.Shifter {
	t.Helper()
	s, err := shifter.New(o)
	require.NoError(t, err)
	return s
}

// aclNote is what the engine erofs has to say of itself.
const aclNote = `the kernel sets no POSIX ACL on a file of the image that was not changed before (ENOTSUP): engine = "metacopy" has no such limit`

// TestNew checks the choice of the engine.
func TestNew(t *testing.T) {
	all, none := engine.Env{}, engine.Env{Idmap: "no idmapped mounts", Erofs: "no EROFS", Metacopy: "no metacopy"}
	for _, c := range []struct {
		ask             string
		env             engine.Env
		name, reason    string
		errs            []string
		buildsSomeThing bool
	}{
		{ask: "auto", env: all, name: "idmap", reason: "cheapest engine"},
		{ask: "auto", env: engine.Env{Idmap: "no idmapped mounts"}, name: "erofs", reason: "idmap: no idmapped mounts; note: erofs (data-only, idmapped, file); " + aclNote, buildsSomeThing: true},
		{ask: "auto", env: engine.Env{Idmap: "no idmapped mounts", Erofs: "no EROFS"}, name: "metacopy", reason: "idmap: no idmapped mounts; erofs: no EROFS", buildsSomeThing: true},
		{ask: "auto", env: none, name: "copyup", reason: "idmap: no idmapped mounts; erofs: no EROFS; metacopy: no metacopy", buildsSomeThing: true},
		{
			ask: "erofs", env: engine.Env{ErofsFile: "x", ErofsData: "x", ErofsIdmap: "x"}, name: "erofs",
			reason: "set in shiftoverlay.conf; note: erofs (opaque, patched, loop); " + aclNote, buildsSomeThing: true,
		},
		{ask: "metacopy", env: all, name: "metacopy", reason: "set in shiftoverlay.conf", buildsSomeThing: true},
		{ask: "copyup", env: none, name: "copyup", reason: "set in shiftoverlay.conf", buildsSomeThing: true},
		{ask: "idmap", env: none, errs: []string{"idmap: no idmapped mounts", `"auto"`}},
		{ask: "metacopy", env: none, errs: []string{"metacopy: no metacopy"}},
		{ask: "fuse", env: all, errs: []string{`"fuse"`, "auto, idmap, erofs, metacopy, copyup"}},
	} {
		t.Run(fmt.Sprint(c.ask, c.env), func(t *testing.T) {
			s, err := shifter.New(shifter.Options{Settings: shifter.Settings{Engine: c.ask}, Env: c.env})
			if len(c.errs) > 0 {
				for _, e := range c.errs {
					require.ErrorContains(t, err, e)
				}
				return
			}
			require.NoError(t, err)
			name, reason := s.Engine()
			assert.Equal(t, c.name, name)
			assert.Equal(t, c.reason, reason)
			p, err := s.Plan(shifter.Request{Chain: []shifter.Layer{{ID: "a", Dirs: []string{"/a"}}}, Mapping: mapping(t, "0:100000:65536", "0:100000:65536")})
			require.NoError(t, err)
			assert.Equal(t, c.name, p.Engine.Name())
			assert.Equal(t, c.buildsSomeThing, p.Ref != cache.Ref{})
			assert.Equal(t, c.ask == "auto" && c.name != "copyup", p.Else != nil, "something else to do if the image is not fit")
		})
	}
}

// TestPlan checks what a plan holds.
func TestPlan(t *testing.T) {
	s := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "metacopy", Workers: 3, Unmapped: idshift.Refuse}})
	m := mapping(t, "0:100000:65536", "0:200000:1000")
	p, err := s.Plan(shifter.Request{Mapping: m, Chain: []shifter.Layer{
		{ID: "top", Dirs: []string{"/s/top/diff1", "/s/top/diff"}}, {ID: "base", Dirs: []string{"/s/base/diff"}},
	}})
	require.NoError(t, err)
	assert.Equal(t, "metacopy", p.Engine.Name())
	assert.Nil(t, p.Else, "the engine was asked for by name")
	assert.Equal(t, []string{"top", "base"}, p.Layers)
	assert.Equal(t, []string{"/s/top/diff1", "/s/top/diff", "/s/base/diff"}, p.Job.Chain)
	assert.Equal(t, 3, p.Job.Workers)
	assert.Equal(t, "top", p.Ref.Layer)
	assert.True(t, m.Equal(p.Mapping))
	assert.True(t, m.Equal(p.Job.Shift.Mapping()))
	_, _, err = p.Job.Shift.Owner(70000, 0)
	require.ErrorIs(t, err, idshift.ErrNotMapped, "the policy is handed on")

	empty, err := s.Plan(shifter.Request{Mapping: m})
	require.NoError(t, err)
	assert.Equal(t, cache.Ref{}, empty.Ref, "an image without layers needs nothing")
	_, err = s.Plan(shifter.Request{Chain: []shifter.Layer{{ID: "a"}}})
	require.ErrorIs(t, err, idshift.ErrNoExtents)
	_, err = s.Plan(shifter.Request{Chain: []shifter.Layer{{ID: "a"}}, Mapping: idshift.Mapping{
		UIDs: idshift.Extents{{Size: 2}, {ContainerID: 1, HostID: 5, Size: 2}}, GIDs: idshift.Extents{{Size: 1}},
	}})
	require.ErrorIs(t, err, idshift.ErrOverlap)
}

// keyOf plans and returns the key.
func keyOf(t *testing.T, settings shifter.Settings, m idshift.Mapping, layers ...string) string {
	t.Helper()
	var chain []shifter.Layer
	for _, l := range layers {
		chain = append(chain, shifter.Layer{ID: l, Dirs: []string{"/anywhere/" + l}})
	}
	p, err := newShifter(t, shifter.Options{Settings: settings}).Plan(shifter.Request{Chain: chain, Mapping: m})
	require.NoError(t, err)
	return p.Ref.Key.String()
}

// TestKey checks that the key names content: equal for equal content, different
// for everything that makes a difference, and the same in every release as
// long as keyVersion is.
func TestKey(t *testing.T) {
	settings := shifter.Settings{Engine: "metacopy"}
	m := mapping(t, "0:100000:65536", "0:100000:65536")
	base := keyOf(t, settings, m, "top", "base")
	assert.Equal(t, "6ba026dd437d5035d4952414f801dda5f8e9f22e6faa19b9a33934b00e722ca2", base, "caches on disk are lost when this changes")

	same := map[string]string{
		"split extents": keyOf(t, settings, mapping(t, "0:100000:1000,1000:101000:64536", "0:100000:65536"), "top", "base"),
		"other order":   keyOf(t, settings, mapping(t, "1000:101000:64536,0:100000:1000", "0:100000:65536"), "top", "base"),
		"by hand": keyOf(t, settings, idshift.Mapping{
			UIDs: idshift.Extents{{ContainerID: 1, HostID: 100001, Size: 65535}, {HostID: 100000, Size: 1}}, GIDs: m.GIDs,
		}, "top", "base"),
		"more workers": keyOf(t, shifter.Settings{Engine: "metacopy", Workers: 7}, m, "top", "base"),
	}
	for name, k := range same {
		assert.Equal(t, base, k, name)
	}
	seen := map[string]string{base: "base"}
	for name, k := range map[string]string{
		"engine":           keyOf(t, shifter.Settings{Engine: "copyup"}, m, "top", "base"),
		"policy":           keyOf(t, shifter.Settings{Engine: "metacopy", Unmapped: idshift.Refuse}, m, "top", "base"),
		"host range":       keyOf(t, settings, mapping(t, "0:100001:65536", "0:100000:65536"), "top", "base"),
		"size":             keyOf(t, settings, mapping(t, "0:100000:65535", "0:100000:65536"), "top", "base"),
		"groups":           keyOf(t, settings, mapping(t, "0:100000:65536", "0:100000:65535"), "top", "base"),
		"fewer layers":     keyOf(t, settings, m, "top"),
		"other lower":      keyOf(t, settings, m, "top", "base2"),
		"order of layers":  keyOf(t, settings, m, "base", "top"),
		"bounds of layers": keyOf(t, settings, m, "topb", "ase"),
		"one for two":      keyOf(t, settings, m, "topbase"),
	} {
		assert.NotContains(t, seen, k, "%s makes the key of %s", name, seen[k])
		seen[k] = name
	}
}

// store is a place with a cache and an image.
type store struct {
	dir   string
	cache *cache.Cache
	chain []shifter.Layer
}

func newStore(t *testing.T) store {
	t.Helper()
	dir := testutil.LoopFS(t, "ext4", 128<<20)
	layer := filepath.Join(dir, "layer")
	require.NoError(t, os.Mkdir(layer, 0o755))
	fstree.Apply(t, layer, fstree.File("f", "data", fstree.Owner(1000, 1000)), fstree.Dir("d"))
	c, err := cache.Open(filepath.Join(dir, "cache"), cache.Options{})
	require.NoError(t, err)
	return store{dir: dir, cache: c, chain: []shifter.Layer{{ID: "image", Dirs: []string{layer}}}}
}

func (s store) plan(t *testing.T, sh *shifter.Shifter, m idshift.Mapping) shifter.Plan {
	t.Helper()
	p, err := sh.Plan(shifter.Request{Chain: s.chain, Mapping: m})
	require.NoError(t, err)
	return p
}

// log is where a shifter's debug messages go.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) debugf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *log) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.lines {
		if strings.Contains(s, text) {
			n++
		}
	}
	return n
}

// TestPrepare checks that a lower is built once, used again, and released.
func TestPrepare(t *testing.T) {
	testutil.RequireRoot(t)
	for _, name := range []string{"metacopy", "copyup"} {
		t.Run(name, func(t *testing.T) {
			st, l := newStore(t), &log{}
			sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: name}, Cache: st.cache, Debugf: l.debugf})
			m := mapping(t, "0:100000:65536", "0:100000:65536")
			p := st.plan(t, sh, m)
			lower, err := sh.Prepare(t.Context(), p, "container1")
			require.NoError(t, err)
			var stat unix.Stat_t
			require.NoError(t, unix.Lstat(filepath.Join(lower.Path, "f"), &stat))
			assert.Equal(t, name, lower.Engine)
			assert.Equal(t, p.Ref, lower.Ref)
			assert.Equal(t, [2]uint32{101000, 101000}, [2]uint32{stat.Uid, stat.Gid})
			again, err := sh.Prepare(t.Context(), st.plan(t, sh, mapping(t, "1:100001:65535,0:100000:1", "0:100000:65536")), "container2")
			require.NoError(t, err)
			assert.True(t, lower.Built)
			lower.Built = false
			assert.Equal(t, lower, again)
			assert.Equal(t, 1, l.count("built now: true"))
			assert.Equal(t, 1, l.count("built now: false"))

			infos, err := st.cache.List(t.Context())
			require.NoError(t, err)
			require.Len(t, infos, 1)
			assert.ElementsMatch(t, []string{"container1", "container2"}, infos[0].Users)
			var meta shifter.Meta
			require.NoError(t, json.Unmarshal(infos[0].Meta, &meta))
			assert.Equal(t, name, meta.Engine)
			assert.Equal(t, 1, meta.Format)
			assert.Equal(t, []string{"image"}, meta.Layers)
			assert.True(t, m.Equal(*meta.Mapping))

			require.NoError(t, sh.Release(p.Ref, "container1"))
			require.NoError(t, sh.Release(p.Ref, "container1"), "twice")
			require.NoError(t, sh.Release(p.Ref, "container2"))
			infos, err = st.cache.List(t.Context())
			require.NoError(t, err)
			require.Len(t, infos, 1, "kept for the next one")
			assert.Empty(t, infos[0].Users)
		})
	}
}

// TestPrepareNothing checks that the engine that builds nothing needs no cache.
func TestPrepareNothing(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, 5, 19)
	home := t.TempDir()
	chain := []string{filepath.Join(home, "a/diff1"), filepath.Join(home, "a/diff"), filepath.Join(home, "b/diff")}
	for _, dir := range chain {
		require.NoError(t, os.MkdirAll(dir, 0o700))
	}
	prepare := func(env engine.Env, debugf func(string, ...any)) shifter.Lower {
		sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "idmap"}, Env: env, UserNS: userNS(t), Debugf: debugf})
		p, err := sh.Plan(shifter.Request{
			Chain:   []shifter.Layer{{ID: "a", Dirs: chain[:2]}, {ID: "b", Dirs: chain[2:]}},
			Mapping: mapping(t, "0:100000:1", "0:100000:1"),
		})
		require.NoError(t, err)
		lower, err := sh.Prepare(t.Context(), p, "user")
		require.NoError(t, err)
		return lower
	}
	assert.Equal(t, shifter.Lower{Engine: "idmap"}, prepare(engine.Env{IdmapDetached: "no"}, nil))

	lower := prepare(engine.Env{}, nil)
	require.Len(t, lower.Parts, 3)
	assert.Equal(t, "a/diff1", lower.Parts[0].Path)
	assert.Equal(t, "b/diff", lower.Parts[2].Path)
	assert.Same(t, lower.Parts[0].Tree, lower.Parts[2].Tree, "one mount for the store")
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(filepath.Join(lower.Parts[0].Tree.Path(), "b/diff"), &st))
	assert.Equal(t, [2]uint32{100000, 100000}, [2]uint32{st.Uid, st.Gid})
	require.NoError(t, lower.Close())
	require.NoError(t, lower.Close(), "twice")

	files := testutil.OpenFiles(t)
	require.NoError(t, os.Mkdir(filepath.Join(home, "b/composefs-data"), 0o700))
	var l log
	assert.Equal(t, shifter.Lower{Engine: "idmap"}, prepare(engine.Env{}, l.debugf), "overlay knows how")
	assert.Equal(t, 1, l.count("composefs"))
	assert.LessOrEqual(t, testutil.OpenFiles(t), files+1, "the namespace's, closed at the end")
}

// TestPrepareErrors checks that an error names layer, mapping and engine, and
// that nothing is left.
func TestPrepareErrors(t *testing.T) {
	testutil.RequireRoot(t)
	st := newStore(t)
	sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "metacopy", Unmapped: idshift.Refuse}, Cache: st.cache})
	p := st.plan(t, sh, mapping(t, "0:100000:10", "0:100000:10"))
	_, err := sh.Prepare(t.Context(), p, "user")
	var u *idshift.UnmappedError
	require.ErrorAs(t, err, &u)
	assert.Equal(t, "f", u.Path)
	for _, part := range []string{"image", "uids=0:100000:10 gids=0:100000:10", "metacopy"} {
		assert.ErrorContains(t, err, part)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = sh.Prepare(ctx, st.plan(t, sh, mapping(t, "0:100000:65536", "0:100000:65536")), "user")
	require.ErrorIs(t, err, context.Canceled)
	infos, err := st.cache.List(t.Context())
	require.NoError(t, err)
	assert.Empty(t, infos)
}

// TestPrepareNoSpace checks that a full disk is named with what is free, and
// that what was built is removed.
func TestPrepareNoSpace(t *testing.T) {
	testutil.RequireRoot(t)
	st := newStore(t)
	var before unix.Statfs_t
	fill := filepath.Join(st.dir, "fill")
	fstree.Apply(t, filepath.Join(st.dir, "layer"), fstree.File("large", strings.Repeat("x", 8<<20)))
	f, err := os.OpenFile(fill, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	require.NoError(t, unix.Statfs(st.dir, &before))
	require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(before.Bfree)*before.Bsize-6<<20))
	require.NoError(t, f.Close())
	sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "copyup"}, Cache: st.cache})
	_, err = sh.Prepare(t.Context(), st.plan(t, sh, mapping(t, "0:100000:65536", "0:100000:65536")), "user")
	require.ErrorIs(t, err, unix.ENOSPC)
	assert.ErrorContains(t, err, "inodes")
	infos, err := st.cache.List(t.Context())
	require.NoError(t, err)
	assert.Empty(t, infos)
	left, err := filepath.Glob(filepath.Join(st.cache.Dir(), "tmp", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

// TestPrepareTogether checks that many who want the same at the same time get
// one lower, built once.
func TestPrepareTogether(t *testing.T) {
	testutil.RequireRoot(t)
	st, l := newStore(t), &log{}
	sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "metacopy"}, Cache: st.cache, Debugf: l.debugf})
	p := st.plan(t, sh, mapping(t, "0:100000:65536", "0:100000:65536"))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			lower, err := sh.Prepare(t.Context(), p, fmt.Sprint("c", i))
			if assert.NoError(t, err) {
				assert.FileExists(t, filepath.Join(lower.Path, "f"))
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 1, l.count("built now: true"))
}

// TestBuildOnce checks that a lower can be had without the cache, whichever
// engine mounts use.
func TestBuildOnce(t *testing.T) {
	testutil.RequireRoot(t)
	st := newStore(t)
	m := mapping(t, "0:100000:65536", "0:100000:65536")
	rules, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	for _, c := range []struct {
		ask    string
		env    engine.Env
		blocks bool // the file's data is there
	}{
		{"idmap", engine.Env{}, false},
		{"copyup", engine.Env{}, false},
		{"auto", engine.Env{Idmap: "no", Erofs: "no", Metacopy: "no"}, true},
		{"auto", engine.Env{Idmap: "no", Erofs: "no", Rootless: true}, true}, // metadata only would need data-only lowers
	} {
		sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: c.ask}, Cache: st.cache, Env: c.env})
		dir := t.TempDir()
		lower, err := sh.BuildOnce(t.Context(), dir, st.chain[0].Dirs, rules)
		require.NoError(t, err)
		assert.True(t, strings.HasPrefix(lower, dir+"/"))
		var stat unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(lower, "f"), &stat))
		assert.Equal(t, uint32(101000), stat.Uid)
		assert.Equal(t, c.blocks, stat.Blocks > 0, "%s with %+v", c.ask, c.env)
	}
	sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "idmap"}})
	_, err = sh.BuildOnce(t.Context(), t.TempDir(), []string{filepath.Join(st.dir, "gone")}, rules)
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.ErrorContains(t, err, "metacopy")
	assert.NoDirExists(t, st.cache.Dir(), "the cache is not touched")
}

// TestDurable checks that an entry that has had the time to reach the disk is
// made durable in passing.
func TestDurable(t *testing.T) {
	testutil.RequireRoot(t)
	st := newStore(t)
	var mu sync.Mutex
	now := time.Now()
	c, err := cache.Open(st.cache.Dir(), cache.Options{Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}})
	require.NoError(t, err)
	sh := newShifter(t, shifter.Options{Settings: shifter.Settings{Engine: "metacopy"}, Cache: c})
	p := st.plan(t, sh, mapping(t, "0:100000:65536", "0:100000:65536"))
	durable := func() bool {
		infos, err := c.List(t.Context())
		require.NoError(t, err)
		require.Len(t, infos, 1)
		return infos[0].Durable
	}
	for range 2 {
		_, err = sh.Prepare(t.Context(), p, "c")
		require.NoError(t, err)
	}
	assert.Never(t, durable, 100*time.Millisecond, 20*time.Millisecond, "not at once")
	mu.Lock()
	now = now.Add(time.Minute)
	mu.Unlock()
	_, err = sh.Prepare(t.Context(), p, "c")
	require.NoError(t, err)
	assert.Eventually(t, durable, 10*time.Second, 10*time.Millisecond)
}
