// Package enginetest is the conformance suite of engines that build: whatever
// a shifted lower is made of, an overlay with it as the uppermost lower must
// show the image as the kernel shows it through idmapped mounts, and as the
// arithmetic of the mapping says. What an engine.Recycler makes out of the lower
// of another mapping must be what it builds from nothing.
//
// An engine runs it from a test of its own:
//
//	func TestConformance(t *testing.T) {
//		enginetest.Suite(t, metacopy.Engine{}, enginetest.Options{})
//	}
//
// A new tree is a Case in cases.go or layers.go. A fixed bug gets a case in
// issues.go, with its link.
package enginetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Options say what is special about an engine. The zero value is right for
// one that makes a plain folder.
type Options struct {
	// FileSystem is the file system of the layers and of what is built:
	// "ext4" if empty, or another that testutil.LoopFS knows.
	FileSystem string
	// Mount makes what Build has made in dir usable and returns the lower;
	// nil stands for Builder.Lower. It cleans up by t.Cleanup.
	Mount func(t *testing.T, dir string) string

	overlay func(t testing.TB, point string, lowers []string, options ...string) error // testutil.Overlay if nil
	lenient bool                                                                       // the kernel maps the IDs, so that none is refused
}

// Mappings of the cases. Auto is what podman's --userns=auto gives with the
// range of the documentation, as one extent.
const (
	Auto   = "0:2147483647:65536"
	Three  = "0:100000:1000,1000:5:1,1001:101001:64535"
	Short  = "0:200000:1000"
	Self   = "0:0:65536"
	Permut = "0:1:1000,1000:0:1,1001:1001:64535"
)

// Case is a chain of layers and how it is to be shifted.
type Case struct {
	// Name is a test's name.
	Name string
	// Layers are trees as data, uppermost first.
	Layers [][]fstree.Node
	// UIDs and GIDs are the mapping; Auto if empty.
	UIDs, GIDs string
	// Only is the one file system that can hold the layers; empty for all.
	Only string
	// MergedNlink says that the kernel's count of links is not to be trusted,
	// because one layer hides names of another's inode.
	MergedNlink bool
	// Ignore, if set, names differences that are meant; the case's comment
	// says why.
	Ignore func(referee.Difference) bool
	// Prepare, if set, changes the layers' folders, uppermost first, before
	// they are used.
	Prepare func(t *testing.T, layers []string)
	// Check, if set, looks at the mounted result besides.
	Check func(t *testing.T, merged string)
}

// Suite runs everything for one engine. It needs root and makes file systems
// in loop devices.
func Suite(t *testing.T, b engine.Builder, o Options) {
	testutil.RequireRoot(t)
	if o.FileSystem == "" {
		o.FileSystem = "ext4"
	}
	if o.Mount == nil {
		o.Mount = func(_ *testing.T, dir string) string { return b.Lower(dir) }
	}
	if o.overlay == nil {
		o.overlay = testutil.Overlay
	}
	s := &suite{b: b, o: o, fs: testutil.LoopFS(t, o.FileSystem, 2<<30)}
	if isRootless(b) {
		s.forRootless(t, b)
	}
	t.Run("Contract", s.contract)
	for _, c := range allCases() {
		if c.Only != "" && c.Only != o.FileSystem {
			continue
		}
		t.Run(c.Name, func(t *testing.T) { s.run(t, c) })
	}
	t.Run("Issues", func(t *testing.T) {
		for _, c := range issues() {
			t.Run(c.Name, func(t *testing.T) { s.run(t, c) })
		}
		t.Run("HardLinkRace", s.hardLinkRace)
		t.Run("HardLinkPairs", s.hardLinkPairs)
		t.Run("VoidCapability", s.voidCapability)
	})
	t.Run("Workers", s.workers)
	t.Run("Writable", s.writable)
	t.Run("Cancel", s.cancel)
	t.Run("CancelledBefore", s.cancelledBefore)
	if !o.lenient {
		t.Run("Refuse", s.refuse)
		t.Run("OverflowMapped", s.overflowMapped)
	}
	t.Run("Redirects", s.redirects)
	if !s.rootless { // the trap works with metacopy=on only
		t.Run("Unreadable", s.unreadable)
	}
	t.Run("MissingLayer", s.missingLayer)
	t.Run("ChainUnchanged", s.chainUnchanged)
	if r, ok := b.(engine.Recycler); ok {
		t.Run("Recycle", func(t *testing.T) { s.recycle(t, r) })
	}
}

// allCases are the trees that every engine must show right.
func allCases() []Case {
	var all []Case
	for _, list := range [][]Case{basicCases(), metadataCases(), nameCases(), sizeCases(), layerCases()} {
		all = append(all, list...)
	}
	return all
}

// suite is one engine under test.
type suite struct {
	b  engine.Builder
	o  Options
	fs string // the file system for layers and results
	n  int
	// rootless says that layers are those of an ordinary user.
	rootless bool
}

// place makes a new folder on the suite's file system.
func (s *suite) place(t *testing.T) string {
	t.Helper()
	s.n++
	dir := filepath.Join(s.fs, fmt.Sprint(s.n))
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir
}

// sub makes a folder in dir.
func sub(t *testing.T, dir, name string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	require.NoError(t, os.Mkdir(p, 0o755))
	return p
}

// layers writes the layers of a case to dir/l0, dir/l1 and so on.
func (s *suite) layers(t *testing.T, dir string, trees [][]fstree.Node) []string {
	t.Helper()
	var out []string
	for i, nodes := range trees {
		l := sub(t, dir, fmt.Sprintf("l%d", i))
		fstree.Apply(t, l, nodes...)
		if s.rootless {
			toUser(t, l)
		}
		out = append(out, l)
	}
	return out
}

// mapping reads a mapping; empty sides are Auto.
func mapping(t *testing.T, uids, gids string) idshift.Mapping {
	t.Helper()
	if uids == "" {
		uids = Auto
	}
	if gids == "" {
		gids = Auto
	}
	m, err := idshift.ParseMapping(uids, gids)
	require.NoError(t, err)
	return m
}

// shift makes the rules for a mapping.
func shift(t *testing.T, m idshift.Mapping, policy idshift.Unmapped) *idshift.Shift {
	t.Helper()
	s, err := idshift.NewShift(m, policy)
	require.NoError(t, err)
	return s
}

// build makes a shifted lower and returns it, ready to be mounted.
func (s *suite) build(t *testing.T, chain []string, sh *idshift.Shift, workers int) string {
	t.Helper()
	dir := filepath.Join(s.place(t), "built")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, s.b.Build(t.Context(), dir, engine.Job{Chain: chain, Shift: sh, Workers: workers}))
	return s.o.Mount(t, dir)
}

// merged mounts lowers, uppermost first, and returns the mount point.
func (s *suite) merged(t *testing.T, lowers []string, options ...string) string {
	t.Helper()
	dir := s.place(t)
	if len(lowers) == 1 { // without an upper overlay wants two
		lowers = append(lowers, sub(t, dir, "empty"))
	}
	point := sub(t, dir, "merged")
	require.NoError(t, s.o.overlay(t, point, lowers, options...))
	return point
}

// shifted builds the lower of a chain and mounts it as a container does.
func (s *suite) shifted(t *testing.T, chain []string, sh *idshift.Shift, workers int) string {
	t.Helper()
	lower := s.build(t, chain, sh, workers)
	return s.merged(t, append([]string{lower}, chain...), "metacopy=on")
}

// scan reads a tree with contents.
func scan(t *testing.T, root string, o referee.Options) *referee.Tree {
	t.Helper()
	tree, err := referee.Scan(t.Context(), root, o)
	require.NoError(t, err)
	return tree
}

// run does one case.
func (s *suite) run(t *testing.T, c Case) {
	dir := s.place(t)
	chain := s.layers(t, dir, c.Layers)
	if c.Prepare != nil {
		c.Prepare(t, chain)
	}
	m := mapping(t, c.UIDs, c.GIDs)
	sh := shift(t, m, idshift.Overflow)
	o := referee.Options{Content: true, OverlayXattrs: true, MergedNlink: c.MergedNlink}
	point := s.shifted(t, chain, sh, 0)
	got := scan(t, point, o)
	t.Run("arithmetic", func(t *testing.T) {
		want, err := scan(t, s.merged(t, chain), o).Shift(sh)
		require.NoError(t, err)
		c.same(t, want, got, o)
	})
	t.Run("kernel", func(t *testing.T) {
		c.same(t, s.truth(t, dir, chain, m, o), got, o)
	})
	if c.Check != nil {
		t.Run("check", func(t *testing.T) { c.Check(t, point) })
	}
}

// truth is the tree that the kernel shows: overlay on idmapped mounts of the
// layers, which are folders in dir. Before Linux 6.2 it is not true of ACLs.
func (s *suite) truth(t *testing.T, dir string, chain []string, m idshift.Mapping, o referee.Options) *referee.Tree {
	t.Helper()
	if !testutil.KernelSince(t, 6, 2) && hasACLs(t, chain) {
		testutil.Skip(t, "overlay shows the users of ACLs on an idmapped mount unmapped (before Linux 6.2)")
	}
	point := sub(t, s.place(t), "idmapped")
	testutil.IdmapMount(t, dir, point, m)
	var lowers []string
	for _, l := range chain {
		lowers = append(lowers, filepath.Join(point, filepath.Base(l)))
	}
	return scan(t, s.merged(t, lowers), o)
}

// hasACLs tells whether anything in the layers has an ACL, as far as paths reach.
func hasACLs(t *testing.T, chain []string) (has bool) {
	t.Helper()
	for _, layer := range chain {
		require.NoError(t, filepath.WalkDir(layer, func(p string, _ fs.DirEntry, err error) error {
			if errors.Is(err, unix.ENAMETOOLONG) {
				return fs.SkipDir
			}
			for _, name := range []string{idshift.ACLAccess, idshift.ACLDefault} {
				if n, _ := unix.Lgetxattr(p, name, nil); n > 0 {
					has = true
					return fs.SkipAll
				}
			}
			return err
		}))
	}
	return has
}

// same fails with the differences of two trees that are not meant.
func (c Case) same(t *testing.T, want, got *referee.Tree, o referee.Options) {
	t.Helper()
	var lines []string
	for _, d := range referee.Compare(want, got, o) {
		if c.Ignore == nil || !c.Ignore(d) {
			lines = append(lines, d.String())
		}
	}
	if n := len(lines); n > 30 {
		lines = append(lines[:30], fmt.Sprintf("and %d more", n-30))
	}
	assert.Empty(t, lines, "right != shifted:\n%s", strings.Join(lines, "\n"))
	assert.Greater(t, got.Len(), 0)
}
