package enginetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
)

// layerCases are about several layers.
func layerCases() []Case {
	cases := []Case{
		{Name: "FiveLayers", Layers: fiveLayers()},
		{Name: "FiveLayersThreeExtents", Layers: fiveLayers(), UIDs: Three, GIDs: Three},
		{Name: "Replaced", Layers: replaced()},
		{Name: "Opaque", Layers: opaque()},
		{Name: "XattrWhiteouts", Layers: xattrWhiteouts(), Prepare: needXattrWhiteouts},
		{Name: "EmptyLayers", Layers: [][]fstree.Node{nil, {fstree.File("b/f", "x", fstree.Owner(1, 1))}, nil, {fstree.Dir("a", fstree.Owner(2, 2))}, nil}},
		{Name: "WhiteoutOfNothing", Layers: [][]fstree.Node{{fstree.Whiteout("none"), fstree.Whiteout("dir/none"), fstree.File("f", "x")}, {fstree.Dir("dir")}}},
		{Name: "WhiteoutInLowest", Layers: [][]fstree.Node{{fstree.File("f", "x"), fstree.Dir("d")}, {fstree.Whiteout("alone"), fstree.Whiteout("d/alone"), fstree.File("d/f", "x")}}},
		{Name: "OpaqueRoot", Layers: [][]fstree.Node{
			{fstree.File("new", "x", fstree.Owner(1, 1))},
			{fstree.Dir(".", fstree.Opaque(), fstree.Owner(7, 7)), fstree.File("middle", "y", fstree.Owner(2, 2)), fstree.Dir("d")},
			{fstree.File("hidden", "z"), fstree.File("d/hidden", "z")},
		}},
		{Name: "RootMetadata", Layers: [][]fstree.Node{
			{fstree.Dir(".", fstree.Owner(1, 2), fstree.Mode(0o711), fstree.Xattr("user.top", "t"))},
			{fstree.Dir(".", fstree.Owner(3, 4), fstree.Mode(0o755), fstree.Xattr("user.low", "l")), fstree.File("f", "x")},
		}},
		{Name: "HardLinksInLayers", MergedNlink: true, Layers: [][]fstree.Node{
			{fstree.File("b", "replaced", fstree.Owner(9, 9)), fstree.Whiteout("d/c")},
			{fstree.File("a", "shared", fstree.Owner(1, 1)), fstree.Link("b", "a"), fstree.Link("d/c", "a"), fstree.Link("z", "a")},
		}},
		{
			Name: "SameInodeInTwoLayers", Layers: [][]fstree.Node{{fstree.Dir("top")}, {fstree.Dir("low")}},
			Prepare: shareInode,
			// The kernel shows the two names of a deduplicated inode as hard
			// links. They never were in the image, so a shifted image does
			// not make them (idshift.LinkKey).
			Ignore: func(d referee.Difference) bool {
				return d.Attribute == referee.AttrNlink || d.Attribute == referee.AttrLinks
			},
			Check: func(t *testing.T, merged string) {
				var a, b unix.Stat_t
				require.NoError(t, unix.Lstat(filepath.Join(merged, "top/f"), &a))
				require.NoError(t, unix.Lstat(filepath.Join(merged, "low/f"), &b))
				assert.NotEqual(t, a.Ino, b.Ino, "files of two layers became one")
			},
		},
		{Name: "SixtyLayers", Layers: manyLayers(60)},
	}
	return cases
}

// fiveLayers is an image as builds make them: each layer adds, deletes and
// changes what lower ones have.
func fiveLayers() [][]fstree.Node {
	return [][]fstree.Node{
		{
			fstree.Whiteout("etc/motd"), fstree.File("etc/hosts", "fifth", fstree.Owner(5, 5), fstree.Mode(0o600)),
			fstree.Dir("var/cache", fstree.Owner(5, 6), fstree.Mode(0o1777)), fstree.File("again", "back", fstree.Owner(5, 5)),
			fstree.Dir("emptied"), fstree.Whiteout("emptied/a"), fstree.Whiteout("emptied/b"),
		},
		{
			fstree.Whiteout("again"), fstree.Dir("usr/share/doc", fstree.Opaque(), fstree.Owner(4, 4)), fstree.File("usr/share/doc/new", "4"),
			fstree.Dir("opt/app/data", fstree.Owner(40, 40)), fstree.File("opt/app/data/x", "4", fstree.Owner(41, 41)),
			fstree.Whiteout("gone-for-good"),
		},
		{
			fstree.File("again", "third"), fstree.Whiteout("opt/app"), fstree.File("etc/motd", "third"),
			fstree.Dir("usr", fstree.Owner(3, 3), fstree.Mode(0o711), fstree.Xattr("user.layer", "3")),
		},
		{
			fstree.File("opt/app/data/hidden", "2"), fstree.Dir("gone-for-good"), fstree.File("gone-for-good/f", "2"),
			fstree.File("usr/share/doc/hidden", "2"), fstree.File("usr/bin/tool", "2", fstree.Owner(2, 2), fstree.Mode(0o4755)),
			fstree.Whiteout("again"), fstree.File("emptied/b", "2"),
		},
		{
			fstree.Dir("etc", fstree.Owner(1, 1)), fstree.File("etc/hosts", "first"), fstree.File("etc/kept", "first", fstree.Owner(1, 1)), fstree.File("etc/motd", "first"),
			fstree.Dir("var/cache", fstree.Owner(1, 1), fstree.Xattr("user.layer", "1")), fstree.File("var/cache/c", "first", fstree.Owner(11, 11)),
			fstree.File("again", "first"), fstree.File("usr/share/doc/old", "1"), fstree.File("usr/bin/tool", "1"), fstree.File("usr/lib/l", "1", fstree.Owner(12, 12)),
			fstree.File("opt/app/data/old", "1"), fstree.File("opt/other", "1"), fstree.File("emptied/a", "1"), fstree.Symlink("s", "etc"),
		},
	}
}

// replaced has every type in the place of every other.
func replaced() [][]fstree.Node {
	kinds := []string{"file", "dir", "link", "fifo", "dev", "none"}
	make1 := func(p, kind string, id int) []fstree.Node {
		own := fstree.Owner(id, id)
		switch kind {
		case "file":
			return []fstree.Node{fstree.File(p, p, own)}
		case "dir":
			return []fstree.Node{fstree.Dir(p, own), fstree.File(fmt.Sprintf("%s/in%d", p, id), p, own), fstree.Dir(p + "/common"), fstree.File(fmt.Sprintf("%s/common/in%d", p, id), p)}
		case "link":
			return []fstree.Node{fstree.Symlink(p, "dir-dir-dir", own)}
		case "fifo":
			return []fstree.Node{fstree.Fifo(p, own)}
		case "dev":
			return []fstree.Node{fstree.Device(p, unix.S_IFBLK, 8, uint32(id), own)}
		default:
			return nil
		}
	}
	out := make([][]fstree.Node, 3)
	for _, a := range kinds {
		for _, b := range kinds {
			for _, c := range kinds {
				p := strings.Join([]string{a, b, c}, "-")
				for i, k := range []string{a, b, c} {
					out[i] = append(out[i], make1(p, k, 10*(i+1))...)
				}
			}
		}
	}
	return out
}

// opaque has opaque directories at the top, in the middle, at the bottom, one
// inside the other and beside whiteouts.
func opaque() [][]fstree.Node {
	return [][]fstree.Node{
		{
			fstree.Dir("top", fstree.Opaque(), fstree.Owner(1, 1)), fstree.File("top/new", "0"),
			fstree.Dir("middle", fstree.Owner(1, 1)), fstree.File("middle/a", "0"),
			fstree.Dir("bottom"), fstree.Dir("nested/in", fstree.Opaque()), fstree.File("nested/in/new", "0"),
			fstree.Dir("empty", fstree.Opaque()), fstree.Dir("value", fstree.Xattr("trusted.overlay.opaque", "n")),
		},
		{
			fstree.File("top/hidden", "1"), fstree.Dir("middle", fstree.Opaque(), fstree.Owner(2, 2)), fstree.File("middle/b", "1"), fstree.Whiteout("middle/c"),
			fstree.File("bottom/b", "1"), fstree.Dir("nested", fstree.Opaque()), fstree.File("nested/b", "1"), fstree.File("nested/in/hidden", "1"),
			fstree.File("empty/hidden", "1"), fstree.File("value/shown", "1"),
		},
		{
			fstree.File("top/hidden2", "2"), fstree.File("middle/c", "2"), fstree.File("middle/hidden", "2"),
			fstree.Dir("bottom", fstree.Opaque()), fstree.File("bottom/c", "2"), fstree.File("nested/hidden", "2"), fstree.File("nested/in/hidden2", "2"),
			fstree.File("value/shown2", "2"),
		},
	}
}

// xattrWhiteouts has whiteouts of the attribute form beside the other form,
// and files that only look like them.
func xattrWhiteouts() [][]fstree.Node {
	return [][]fstree.Node{
		{
			fstree.Dir(".", fstree.XattrWhiteouts()), fstree.XattrWhiteout("root-file"),
			fstree.Dir("d", fstree.XattrWhiteouts(), fstree.Owner(1, 1)), fstree.XattrWhiteout("d/file"), fstree.XattrWhiteout("d/dir"), fstree.XattrWhiteout("d/nothing"),
			fstree.Whiteout("d/char"), fstree.File("d/new", "0", fstree.Owner(2, 2)), fstree.File("d/empty", ""),
			fstree.File("d/content", "not empty", fstree.Xattr("trusted.overlay.whiteout", "")),
		},
		{
			fstree.File("root-file", "1"), fstree.File("d/file", "1"), fstree.File("d/dir/f", "1"), fstree.File("d/char", "1"), fstree.File("d/kept", "1", fstree.Owner(3, 3)),
			fstree.File("d/empty", "1"), fstree.File("d/content", "1"),
		},
		{fstree.File("d/file", "2"), fstree.File("d/lowest", "2"), fstree.File("root-kept", "2")},
	}
}

// needXattrWhiteouts skips where the kernel does not know whiteouts of the
// attribute form (before 6.7).
func needXattrWhiteouts(t *testing.T, layers []string) {
	t.Helper()
	for name, options := range map[string][]string{"probe": nil, "probe-rootless": {"userxattr"}} {
		if options != nil && !testutil.KernelSince(t, 5, 11) {
			continue // there is no userxattr
		}
		point := sub(t, filepath.Dir(layers[0]), name)
		require.NoError(t, testutil.Overlay(t, point, layers, options...))
		if _, err := os.Lstat(filepath.Join(point, "d/file")); err != nil {
			return
		}
	}
	testutil.Skip(t, "the kernel does not know whiteouts of the attribute form")
}

// shareInode makes one inode a file of both layers, as deduplication does.
func shareInode(t *testing.T, layers []string) {
	t.Helper()
	fstree.Apply(t, layers[0], fstree.File("top/f", "same", fstree.Owner(3, 3)))
	fstree.Apply(t, layers[1], fstree.LinkFrom("low/f", filepath.Join(layers[0], "top/f")))
}

// manyLayers is n layers that add, change and delete one another's files.
func manyLayers(n int) [][]fstree.Node {
	out := make([][]fstree.Node, n)
	for i := range n {
		out[i] = []fstree.Node{
			fstree.File(fmt.Sprintf("own%d", i), "x", fstree.Owner(i, i)),
			fstree.Dir("common", fstree.Owner(i, i)), fstree.File(fmt.Sprintf("common/of%d", i%7), fmt.Sprint(i), fstree.Owner(i, 0)),
			fstree.File("every", fmt.Sprint(i), fstree.Owner(0, i)),
		}
		if i%5 == 0 && i+1 < n {
			out[i] = append(out[i], fstree.Whiteout(fmt.Sprintf("own%d", i+1)))
		}
	}
	return out
}
