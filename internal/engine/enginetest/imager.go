package enginetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// ImagerSuite runs everything for an engine that makes images, mounted as it
// says.
func ImagerSuite(t *testing.T, i engine.Imager, fileSystem string) {
	testutil.RequireRoot(t)
	if fileSystem == "" {
		fileSystem = "ext4"
	}
	a := &imager{Imager: i, trees: map[string]mounted{}, shifts: map[string]*idshift.Shift{}}
	s := &suite{b: a, o: Options{Mount: a.mount, overlay: a.overlay}, fs: testutil.LoopFS(t, fileSystem, 320<<20)}
	a.need(t, s)
	Suite(t, a, Options{FileSystem: fileSystem, Mount: a.mount, overlay: a.overlay, lenient: !i.Patches()})
	t.Run("ImageContract", func(t *testing.T) { a.contract(t, s) })
	t.Run("ACLGap", s.aclGap)
	t.Run("InodeNumbers", s.inodeNumbers)
}

// need skips the suite where the kernel cannot do what the engine wants of it.
func (a *imager) need(t *testing.T, s *suite) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.File("f", "x")}})
	m := mapping(t, "", "")
	dir := filepath.Join(s.place(t), "built")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, a.Build(t.Context(), dir, engine.Job{Chain: chain, Shift: shift(t, m, idshift.Overflow)}))
	userns := -1
	if !a.Patches() {
		userns = int(testutil.UserNamespace(t, m).Fd())
	}
	tree, err := a.Mount(a.image(dir), userns)
	if err == nil {
		at := a.Lower(dir)
		require.NoError(t, tree.Attach(at))
		t.Cleanup(func() { assert.NoError(t, errors.Join(tree.Detach(), tree.Close())) })
		a.trees[at] = mounted{tree, a.image(dir)}
		err = a.overlay(t, sub(t, s.place(t), "merged"), append([]string{at}, chain...), "metacopy=on")
	}
	if err != nil {
		testutil.Skip(t, err.Error())
	}
}

// imager makes a Builder of an Imager: what it builds is an image, which is
// the lower as soon as it is mounted.
type imager struct {
	engine.Imager

	mu     sync.Mutex
	trees  map[string]mounted        // by where they are attached
	shifts map[string]*idshift.Shift // by what Build was given
}

// mounted is an image that is mounted.
type mounted struct {
	*mount.Tree

	dir string // of the image
}

// Names in a folder that was built.
const (
	templateName = "template"
	patchedName  = "patched"
	pointName    = "lower"
)

// Build implements engine.Builder.
func (a *imager) Build(ctx context.Context, dir string, job engine.Job) error {
	for _, name := range []string{templateName, patchedName, pointName} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.shifts[dir] = job.Shift
	a.mu.Unlock()
	template := filepath.Join(dir, templateName)
	err := a.Template(ctx, template, engine.Job{Chain: job.Chain, Workers: job.Workers})
	if err != nil || !a.Patches() {
		return err
	}
	return a.Patch(ctx, filepath.Join(dir, patchedName), template, job)
}

// Lower implements engine.Builder.
func (*imager) Lower(dir string) string { return filepath.Join(dir, pointName) }

// image is where the image in a folder that was built is.
func (a *imager) image(dir string) string {
	if a.Patches() {
		return filepath.Join(dir, patchedName)
	}
	return filepath.Join(dir, templateName)
}

// mount is Options.Mount.
func (a *imager) mount(t *testing.T, dir string) string {
	t.Helper()
	a.mu.Lock()
	shift := a.shifts[dir]
	a.mu.Unlock()
	userns := -1
	if !a.Patches() {
		userns = int(testutil.UserNamespace(t, shift.Mapping()).Fd())
	}
	tree, err := a.Mount(a.image(dir), userns)
	require.NoError(t, err)
	at := a.Lower(dir)
	require.NoError(t, tree.Attach(at))
	t.Cleanup(func() { assert.NoError(t, errors.Join(tree.Detach(), tree.Close())) })
	a.mu.Lock()
	a.trees[at] = mounted{tree, a.image(dir)}
	a.mu.Unlock()
	return at
}

// overlay mounts an overlay as the driver does, if the uppermost lower is an
// image: with the chain as data-only lowers if the engine says so.
func (a *imager) overlay(t testing.TB, point string, lowers []string, options ...string) error {
	t.Helper()
	a.mu.Lock()
	tree, ok := a.trees[lowers[0]]
	a.mu.Unlock()
	if !ok {
		return testutil.Overlay(t, point, lowers, options...)
	}
	dataOnly, err := a.DataOnly(tree.dir)
	if err != nil {
		return err
	}
	if !dataOnly && filepath.IsAbs(lowers[0]) { // the way that every kernel has
		return testutil.Overlay(t, point, lowers, append(options, "xino=auto")...)
	}
	o := mount.Overlay{Tree: tree.Tree, Options: []string{"xino=auto"}}
	if dataOnly {
		o.Data = lowers[1:]
	} else {
		o.Below = lowers[1:]
	}
	for _, option := range options {
		switch key, value, _ := strings.Cut(option, "="); key {
		case "upperdir":
			o.Upper = value
		case "workdir":
			o.Work = value
		default:
			o.Options = append(o.Options, option)
		}
	}
	m, err := o.Mount()
	if err != nil {
		return err
	}
	if err := errors.Join(m.Attach(point), m.Close()); err != nil {
		return err
	}
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(point, unix.UMOUNT_NOFOLLOW)) })
	return nil
}

// contract checks what an image is for, and that a template that is none is
// refused.
func (a *imager) contract(t *testing.T, s *suite) {
	assert.NotEmpty(t, a.Variant())
	acl := fstree.Xattr("system.posix_acl_access", fstree.ACL([]uint32{5}, nil))
	for name, c := range map[string]struct {
		nodes []fstree.Node
		unfit bool
	}{
		"without ACLs": {nodes: everyType()},
		"with an ACL":  {nodes: append(everyType(), fstree.File("acl", "x", acl)), unfit: true},
	} {
		chain := s.layers(t, s.place(t), [][]fstree.Node{c.nodes})
		dir := filepath.Join(s.place(t), "built")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, a.Build(t.Context(), dir, engine.Job{Chain: chain, Shift: shift(t, mapping(t, "", ""), idshift.Overflow)}))
		for _, d := range []string{filepath.Join(dir, templateName), a.image(dir)} {
			reason, err := a.Unfit(d)
			require.NoError(t, err)
			assert.Equal(t, c.unfit, reason != "", "%s: %q", name, reason)
		}
		files, err := os.ReadDir(a.image(dir))
		require.NoError(t, err)
		assert.Len(t, files, 1, "one inode")
	}
	empty := s.place(t)
	_, err := a.Unfit(empty)
	require.ErrorIs(t, err, os.ErrNotExist)
	before := testutil.OpenFiles(t)
	err = a.Patch(t.Context(), s.place(t), empty, engine.Job{Shift: shift(t, mapping(t, "", ""), idshift.Overflow)})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = a.Mount(empty, -1)
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.Equal(t, before, testutil.OpenFiles(t))
}

// aclGap holds the one thing that an image cannot do, so that nobody forgets
// it, and that it is seen when a kernel can: an ACL cannot be set on what was
// not copied up yet, and can be afterwards.
func (s *suite) aclGap(t *testing.T) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{{
		fstree.File("file", "x"), fstree.File("empty", ""), fstree.Dir("dir"), fstree.Fifo("fifo"),
		fstree.File("acl", "x", fstree.Xattr("system.posix_acl_access", fstree.ACL([]uint32{5}, nil))),
	}})
	lower := s.build(t, chain, shift(t, mapping(t, "", ""), idshift.Overflow), 0)
	place := s.place(t)
	m := s.merged(t, append([]string{lower}, chain...), "metacopy=on", "upperdir="+sub(t, place, "upper"), "workdir="+sub(t, place, "work"))
	value := []byte(fstree.ACL([]uint32{77}, nil))
	for _, name := range []string{"file", "empty", "dir", "fifo", "acl"} {
		at := filepath.Join(m, name)
		err := unix.Lsetxattr(at, "system.posix_acl_access", value, 0)
		require.ErrorIs(t, err, unix.ENOTSUP, "%s: this kernel has no such gap: it may go from the documentation and from Unfit", name)
		require.NoError(t, os.Chmod(at, 0o750), "copies up")
		require.NoError(t, unix.Lsetxattr(at, "system.posix_acl_access", value, 0))
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(at, "system.posix_acl_access", buf)
		require.NoError(t, err)
		assert.Equal(t, value, buf[:n])
	}
	inside := filepath.Join(m, "dir/new")
	require.NoError(t, os.WriteFile(inside, []byte("x"), 0o600))
	require.NoError(t, unix.Lsetxattr(inside, "system.posix_acl_access", value, 0), "a new file has no gap")
}

// inodeNumbers checks that files have the same numbers under all mappings, in
// all builds, and when they are copied up.
func (s *suite) inodeNumbers(t *testing.T) {
	chain := s.layers(t, s.place(t), append(fiveLayers(), everyType()))
	numbers := func(m, p string) uint64 {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(m, p), &st))
		return st.Ino
	}
	var first map[string]uint64
	for i, uids := range []string{Auto, Three, Short, Auto} {
		lower := s.build(t, chain, shift(t, mapping(t, uids, uids), idshift.Overflow), i)
		place := s.place(t)
		m := s.merged(t, append([]string{lower}, chain...), "metacopy=on", "upperdir="+sub(t, place, "upper"), "workdir="+sub(t, place, "work"))
		got := map[string]uint64{}
		for _, p := range []string{"etc/passwd", "etc/empty", "lib", "usr/bin/tool", "null", "fifo"} {
			got[p] = numbers(m, p)
		}
		if first == nil {
			first = got
		}
		assert.Equal(t, first, got, uids)
		require.NoError(t, os.Chmod(filepath.Join(m, "etc/passwd"), 0o600))
		assert.Equal(t, first["etc/passwd"], numbers(m, "etc/passwd"), "after it was copied up")
	}
}
