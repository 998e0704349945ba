package erofs

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// both are the layouts.
var both = []Layout{DataOnly, Opaque}

// build makes the image name of a chain.
func build(t require.TestingT, name string, chain []string, o Options) Info {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	require.NoError(t, err)
	info, err := Build(context.Background(), f, chain, o)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return info
}

// patched makes the image name of a template.
func patched(t require.TestingT, name, template string, shift *idshift.Shift) {
	require.NoError(t, tryPatch(t, name, template, shift))
	before := infoOf(t, template)
	before.Patched = true
	require.Equal(t, before, infoOf(t, name))
}

// tryPatch is patched for a template that may be refused.
func tryPatch(t require.TestingT, name, template string, shift *idshift.Shift) error {
	src, err := os.Open(template)
	require.NoError(t, err)
	defer src.Close()
	dst, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	require.NoError(t, err)
	defer dst.Close()
	return Patch(context.Background(), dst, src, shift)
}

// infoOf is TemplateInfo of a file.
func infoOf(t require.TestingT, name string) Info {
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	info, err := TemplateInfo(f)
	require.NoError(t, err)
	return info
}

// components are the names in a path, none for the root.
func components(p string) []string {
	if p == "." {
		return nil
	}
	return strings.Split(p, "/")
}

// firstRefused is the first path of a tree with an ID that shift refuses, each
// directory before what is in it; "" if there is none.
func firstRefused(v view, shift *idshift.Shift) string {
	paths := slices.Collect(maps.Keys(v))
	slices.SortFunc(paths, func(a, b string) int {
		return slices.Compare(components(a), components(b))
	})
	for _, p := range paths {
		s := v[p]
		if _, _, err := shift.Owner(s.UID, s.GID); err != nil {
			return p
		}
		for x, value := range s.Xattrs {
			if _, _, err := shift.Xattr(x, []byte(value)); err != nil {
				return p
			}
		}
	}
	return ""
}

// judge makes all images of a chain and has all judges compare them with what
// the kernel shows of the chain. Place is a folder for them.
func judge(t require.TestingT, place string, chain []string, shifts ...*idshift.Shift) {
	want := merged(t, place, chain)
	if len(want) > manyPaths {
		shifts = shifts[:1]
	}
	for _, layout := range both {
		template := filepath.Join(place, layout.String())
		info := build(t, template, chain, Options{Layout: layout, Workers: 4})
		again := template + "-1"
		require.Equal(t, info, build(t, again, chain, Options{Layout: layout, Workers: 1}))
		same(t, template, again)
		require.EqualValues(t, info.Size%blockSize, 0)
		inodes := map[string]bool{}
		for _, s := range want {
			inodes[s.First] = true
		}
		require.EqualValues(t, len(inodes), info.Inodes)
		numbers := judgeImage(t, template, want, layout)
		for i, shift := range shifts {
			out := fmt.Sprintf("%s.%d", template, i)
			if p := firstRefused(want, shift); p != "" {
				var u *idshift.UnmappedError
				require.ErrorAs(t, tryPatch(t, out, template, shift), &u)
				require.Equal(t, p, u.Path)
				continue
			}
			patched(t, out, template, shift)
			for p, s := range judgeImage(t, out, want.shifted(t, shift), layout) {
				if numbers[p].ino != s.ino {
					require.Fail(t, "another inode number", "%.200q", p)
				}
			}
		}
	}
}

// manyPaths is from where on judges save time.
const manyPaths = 5000

// judgeImage has all judges look at an image, and returns the kernel's view.
func judgeImage(t require.TestingT, image string, want view, layout Layout) view {
	var data int64
	for _, s := range want {
		data += s.Size
	}
	if layout == DataOnly && data < 1<<30 {
		fsck(t, image, "--extract") // holes, directories and targets, too
	} else {
		fsck(t, image)
	}
	v := kernelView(t, image)
	checkView(t, want, v, layout, "the kernel")
	if len(want) <= manyPaths || layout == DataOnly {
		checkView(t, want.utf8Only(), goView(t, image).utf8Only(), layout, "go-erofs")
	}
	return v
}

// same compares two files.
func same(t require.TestingT, a, b string) {
	x, err := os.ReadFile(a)
	require.NoError(t, err)
	y, err := os.ReadFile(b)
	require.NoError(t, err)
	require.True(t, string(x) == string(y), "%s and %s differ", a, b)
}

// shifts are mappings that map everything, little, and root to root.
func shifts(t testing.TB) []*idshift.Shift {
	t.Helper()
	return []*idshift.Shift{
		newShift(t, "0:2147483647:65536", idshift.Overflow),
		newShift(t, "0:100000:1000", idshift.Overflow),
		newShift(t, "1:200000:100", idshift.Overflow), // without root
		newShift(t, "0:0:4294967295", idshift.Refuse),
		newShift(t, "0:100000:1000", idshift.Refuse),
		newShift(t, "0:0:1000000", idshift.Overflow), // contains the overflow ID
	}
}

// layersOf writes layers, uppermost first.
func layersOf(t testing.TB, place string, trees [][]fstree.Node) []string {
	t.Helper()
	var chain []string
	for i, nodes := range trees {
		dir := filepath.Join(place, fmt.Sprintf("l%d", i))
		require.NoError(t, os.Mkdir(dir, 0o755))
		fstree.Apply(t, dir, nodes...)
		chain = append(chain, dir)
	}
	return chain
}

const (
	acl     = "system.posix_acl_access"
	aclDef  = "system.posix_acl_default"
	label   = "security.selinux"
	fileCap = "security.capability"
)

// hostileTrees are what somebody could put into layers.
func hostileTrees() map[string][][]fstree.Node {
	long := strings.Repeat("n", nameMax)
	names := []fstree.Node{
		fstree.File("!", "before dot"), fstree.File(".a", "x"), fstree.File("..a", "x"), fstree.File("-", "x"), fstree.File("...", "x"),
		fstree.File("\xff\xfe", "no UTF-8"), fstree.Dir("\x80dir"), fstree.File("\x80dir/\x81", "x", fstree.Owner(3, 4)), fstree.File("new\nline", "x"),
		fstree.File(long, long), fstree.Dir(long[:254] + "d"), fstree.File(long[:254]+"d/"+long, "x"),
		fstree.Symlink("short", "x"), fstree.Symlink("longest", strings.Repeat("t", 4095), fstree.Owner(5, 6)), fstree.Symlink("odd", "\xff\n"),
		fstree.Symlink("attributes", strings.Repeat("t", 4000), fstree.Xattr(label, strings.Repeat("l", 500))),
	}
	for n := 3800; n < 4095; n += 7 { // around the size of a block
		names = append(names, fstree.Symlink(fmt.Sprintf("link%d", n), strings.Repeat("t", n), fstree.Owner(n, n)))
	}
	var wide []fstree.Node
	for i := range 50000 {
		wide = append(wide, fstree.File(fmt.Sprintf("wide/%d-%s", i, long[:i%90]), "", fstree.Owner(i, 65535-i)))
	}
	var deep []fstree.Node
	for p, i := "", 0; i < 150; i++ {
		p += fmt.Sprintf("d%d/", i)
		deep = append(deep, fstree.Dir(strings.TrimSuffix(p, "/"), fstree.Owner(i, i)), fstree.File(p+"f", "x", fstree.Owner(i, 1)))
	}
	var segments []fstree.Node // IDs near all places where one segment ends
	for i := range 20000 {
		n := fmt.Sprintf("d%d/%05d-%s", i/1000, i, long[:i%100])
		switch i % 4 {
		case 0:
			segments = append(segments, fstree.File(n, "", fstree.Owner(i, i), fstree.Xattr(acl, fstree.ACL([]uint32{uint32(i), 70000}, []uint32{uint32(i)}))))
		case 1:
			segments = append(segments, fstree.File(n, "x", fstree.Xattr(fileCap, fstree.CapV3(uint32(i))), fstree.Xattr("user.pad", long[:i%250])))
		case 2:
			segments = append(segments, fstree.Dir(n, fstree.Xattr(aclDef, fstree.ACL(nil, []uint32{uint32(i)}))))
		default:
			segments = append(segments, fstree.File(n, "x", fstree.Xattr(acl, fstree.ACL([]uint32{uint32(i / 100)}, nil))))
		}
	}
	return map[string][][]fstree.Node{
		"Empty": {nil}, "Names": {names}, "Wide": {wide}, "Deep": {deep}, "Segments": {segments},
		"Inodes": {{
			fstree.Dir(".", fstree.Owner(1<<32-2, 65534), fstree.Mode(0o7777), fstree.Time(-1, 999999999), fstree.Xattr("user.root", "r"), fstree.Xattr(aclDef, fstree.ACL([]uint32{7}, nil))),
			fstree.File("ids", "x", fstree.Owner(65534, 65535)), fstree.File("more", "x", fstree.Owner(65536, 1<<31)), fstree.File("most", "", fstree.Owner(1<<32-2, 1<<32-2)),
			fstree.File("before-1970", "x", fstree.Time(-1, 999999999)), fstree.File("1902", "x", fstree.Time(-1<<31+1, 1)), fstree.Dir("2400", fstree.Time(13569465600, 999999999)),
			fstree.Symlink("2039", "x", fstree.Time(1<<31+9, 5)), fstree.File("modes", "x", fstree.Mode(0o7777)), fstree.File("none", "x", fstree.Mode(0)),
			fstree.Device("minor", unix.S_IFBLK, 4095, 1<<20-1, fstree.Owner(3, 3)), fstree.Device("middle", unix.S_IFCHR, 300, 70000), fstree.Device("null", unix.S_IFCHR, 1, 3, fstree.Mode(0o666)),
			fstree.Device("zero", unix.S_IFBLK, 0, 0), fstree.Fifo("fifo", fstree.Owner(9, 9)), fstree.Socket("socket", fstree.Xattr("trusted.s", "")),
			fstree.Sparse("tib", 1<<40, []fstree.Data{{Offset: 1 << 39, Content: "x"}}), fstree.Sparse("large", 15<<40+5, nil), fstree.Sparse("gib", 3<<30, nil), fstree.File("block", strings.Repeat("x", 4096)),
		}},
		"HardLinks": {
			{fstree.File("b", "replaced"), fstree.Whiteout("d/c"), fstree.Dir("moved")},
			{
				fstree.File("a", "shared", fstree.Owner(1, 1)), fstree.Link("b", "a"), fstree.Link("d/c", "a"), fstree.Link("d/e/z", "a"), fstree.Link("A", "a"),
				fstree.File("empty", "", fstree.Xattr("user.x", "y")), fstree.Link("d/empty", "empty"), fstree.Symlink("s", "target", fstree.Owner(2, 2)), fstree.Link("d/s", "s"),
				fstree.Device("n", unix.S_IFCHR, 9, 70000, fstree.Owner(3, 3)), fstree.Link("d/e/n", "n"), fstree.Fifo("f", fstree.Owner(4, 4)), fstree.Link("0/f", "f"), fstree.Socket("k"), fstree.Link("0/k", "k"),
				fstree.File("cap", "x", fstree.Xattr(fileCap, fstree.CapV2())), fstree.Link("0/cap", "cap"), fstree.Link("zz", "cap"),
			},
		},
		"Xattrs": {{
			fstree.File("label", "x", fstree.Xattr(label, "system_u:object_r:bin_t:s0\x00"), fstree.Xattr("security.ima", "\x03\x02\x04\x00"), fstree.Xattr("security.evm", "\x01")),
			fstree.File("label2", "x", fstree.Xattr(label, "system_u:object_r:bin_t:s0\x00")), fstree.Symlink("label3", "x", fstree.Xattr(label, "system_u:object_r:bin_t:s0\x00")),
			fstree.File("v2", "x", fstree.Xattr(fileCap, fstree.CapV2())), fstree.File("v2-again", "", fstree.Xattr(fileCap, fstree.CapV2())), fstree.File("v3", "x", fstree.Xattr(fileCap, fstree.CapV3(1000))), fstree.File("v3-root", "x", fstree.Xattr(fileCap, fstree.CapV3(0))),
			fstree.File("v3-none", "x", fstree.Xattr(fileCap, fstree.CapV3(5000))), fstree.File("acl", "x", fstree.Xattr(acl, fstree.ACL([]uint32{0, 1, 1000, 70000}, []uint32{0, 999, 1<<32 - 2}))),
			fstree.Dir("both", fstree.Xattr(acl, fstree.ACL([]uint32{33}, nil)), fstree.Xattr(aclDef, fstree.ACL(nil, []uint32{44})), fstree.Xattr(label, "l")), fstree.Fifo("fifo", fstree.Xattr(acl, fstree.ACL([]uint32{2}, nil))),
			fstree.File("user", "x", fstree.Xattr("user.empty", ""), fstree.Xattr("user.bin", "\x00\xff\n"), fstree.Xattr("user."+long[:250], "name")), fstree.File("big", "x", fstree.Xattr("user.big", strings.Repeat("v", 3500))),
			// Forged notes of overlay's, and such as are none.
			fstree.File("origin", "x", fstree.Xattr("trusted.overlay.origin", "forged"), fstree.Xattr("trusted.overlay.no", "forged"), fstree.Xattr("trusted.overlay.uuid", "forged")),
			fstree.File("user-redirect", "x", fstree.Xattr("user.overlay.redirect", "/label"), fstree.Xattr("user.overlay.metacopy", "")), fstree.Dir("user-opaque", fstree.Xattr("user.overlay.opaque", "y")),
			fstree.File("nested", "x", fstree.Xattr("trusted.overlay.overlay.redirect", "/label"), fstree.Xattr("trusted.overlay.overlay.metacopy", "")), fstree.Dir("nested-opaque", fstree.Xattr("trusted.overlay.overlay.opaque", "y")),
		}},
		"Chain": {
			{
				fstree.Dir("merged", fstree.Opaque(), fstree.Owner(1, 1)), fstree.File("merged/top", "0"), fstree.File("dir-file", "0", fstree.Owner(2, 2)), fstree.Dir("file-dir"), fstree.File("file-dir/new", "0"),
				fstree.Whiteout("gone"), fstree.Whiteout("gone-dir"), fstree.Whiteout("never"), fstree.File("again", "0"), fstree.Dir("kept", fstree.Owner(3, 3), fstree.Xattr("user.layer", "0")), fstree.Symlink("dir-link", "kept"),
			},
			{
				fstree.Dir("merged", fstree.Opaque()), fstree.File("merged/hidden", "1"), fstree.Whiteout("again"), fstree.File("kept/one", "1"), fstree.Whiteout("kept/three"), fstree.Dir("kept/opaque", fstree.Opaque()), fstree.File("kept/opaque/f", "1"),
				fstree.Dir("x", fstree.XattrWhiteouts()), fstree.XattrWhiteout("x/gone"), fstree.Whiteout("x/gone2"), fstree.File("x/stays", "", fstree.Owner(8, 8)),
			},
			{
				fstree.File("merged/hidden2", "2"), fstree.File("dir-file/f", "2"), fstree.File("file-dir", "2"), fstree.File("gone", "2"), fstree.File("gone-dir/f", "2"), fstree.File("again", "2"), fstree.File("dir-link/f", "2"),
				fstree.File("kept/two", "2", fstree.Owner(5, 5)), fstree.File("kept/three", "2"), fstree.File("kept/opaque/hidden", "2"), fstree.File("x/gone", "2"), fstree.File("x/gone2", "2"), fstree.File("x/below", "2"),
			},
		},
	}
}

// TestTrees has all judges look at the images of hostile trees.
func TestTrees(t *testing.T) {
	testutil.RequireRoot(t)
	needFsck(t)
	place := testutil.LoopFS(t, "ext4", 1<<30)
	for name, trees := range hostileTrees() {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(place, name)
			require.NoError(t, os.Mkdir(dir, 0o755))
			judge(t, dir, layersOf(t, dir, trees), shifts(t)...)
			require.NoError(t, os.RemoveAll(dir))
		})
	}
}

// TestLargeAttributes has values and sets of attributes as XFS can hold, up to
// the limits of the format and beyond.
func TestLargeAttributes(t *testing.T) {
	testutil.RequireRoot(t)
	needFsck(t)
	place := testutil.LoopFS(t, "xfs", 320<<20)
	value := func(n int, c string) string { return strings.Repeat(c, n) }
	chain := layersOf(t, place, [][]fstree.Node{{
		fstree.File("value", "x", fstree.Xattr("user.max", value(xattrValueMax, "a"))), fstree.File("shared", "x", fstree.Xattr("user.max", value(xattrValueMax, "a"))),
		fstree.File("set", "x", fstree.Owner(1, 2), fstree.Xattr("user.a", value(60000, "b")), fstree.Xattr("user.b", value(60000, "c")), fstree.Xattr("user.c", value(60000, "d")), fstree.Xattr("user.d", value(60000, "e")), fstree.Xattr(acl, fstree.ACL([]uint32{5}, nil))),
		fstree.Dir("dir", fstree.Xattr("trusted.d", value(50000, "f"))), fstree.File("dir/f", "x"), fstree.Symlink("link", "target", fstree.Xattr("trusted.l", value(9000, "g"))),
	}})
	want := merged(t, place, chain)
	for _, layout := range both {
		image := filepath.Join(place, layout.String())
		build(t, image, chain, Options{Layout: layout})
		fsck(t, image)
		checkView(t, want, kernelView(t, image), layout, "the kernel")
		sh := newShift(t, "0:100000:1000", idshift.Overflow)
		patched(t, image+".patched", image, sh)
		checkView(t, want.shifted(t, sh), kernelView(t, image+".patched"), layout, "the kernel")
	}
	for name, nodes := range map[string][]fstree.Node{
		"value": {fstree.File("d/f", "x", fstree.Xattr("user.v", value(xattrValueMax+1, "v")))},
		"set": {fstree.File("d/f", "x", fstree.Xattr("user.a", value(60000, "h")), fstree.Xattr("user.b", value(60000, "i")), fstree.Xattr("user.c", value(60000, "j")),
			fstree.Xattr("user.d", value(60000, "k")), fstree.Xattr("user.e", value(60000, "l")))},
	} {
		dir := filepath.Join(place, name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		_, err := Build(t.Context(), newFile(t, place), layersOf(t, dir, [][]fstree.Node{nodes}), Options{})
		var unfit *UnfitError
		require.ErrorAs(t, err, &unfit)
		assert.Equal(t, "d/f", unfit.Path)
	}
}

// TestLongPath checks that a path that no redirect can hold is refused in the
// layout that needs redirects, for files with data, and fits otherwise.
func TestLongPath(t *testing.T) {
	testutil.RequireRoot(t)
	needFsck(t)
	place := testutil.LoopFS(t, "ext4", 64<<20)
	var nodes []fstree.Node
	p := ""
	for i := range 20 {
		p += strings.Repeat(string(rune('a'+i)), 250) + "/"
		nodes = append(nodes, fstree.Symlink(p+"l", "f"), fstree.File(p+"empty", "", fstree.Owner(i, 1)))
	}
	chain := layersOf(t, place, [][]fstree.Node{nodes})
	judge(t, place, chain, shifts(t)...)
	fstree.Apply(t, chain[0], fstree.File(p+"f", "data"))
	_, err := Build(t.Context(), newFile(t, place), chain, Options{Layout: DataOnly})
	var unfit *UnfitError
	require.ErrorAs(t, err, &unfit)
	assert.Equal(t, p+"f", unfit.Path)
	assert.ErrorContains(t, err, "redirect")
	image := filepath.Join(place, "long")
	build(t, image, chain, Options{Layout: Opaque})
	checkView(t, merged(t, place, chain), kernelView(t, image), Opaque, "the kernel")
	// With a shorter name elsewhere the redirect leads there.
	fstree.Apply(t, chain[0], fstree.Link("short", p+"f"))
	image = filepath.Join(place, "linked")
	build(t, image, chain, Options{Layout: DataOnly})
	checkView(t, merged(t, place, chain), kernelView(t, image), DataOnly, "the kernel")
}

// TestAcrossLayers checks that one inode that deduplication made a file of two
// layers stays two files.
func TestAcrossLayers(t *testing.T) {
	testutil.RequireRoot(t)
	place := testutil.LoopFS(t, "ext4", 64<<20)
	chain := layersOf(t, place, [][]fstree.Node{{fstree.File("top/f", "x")}, {fstree.Dir("low")}})
	fstree.Apply(t, chain[1], fstree.LinkFrom("low/f", filepath.Join(chain[0], "top/f")), fstree.LinkFrom("low/g", filepath.Join(chain[0], "top/f")))
	image := filepath.Join(place, "image")
	build(t, image, chain, Options{})
	v := kernelView(t, image)
	assert.Equal(t, v["low/f"].ino, v["low/g"].ino)
	assert.NotEqual(t, v["low/f"].ino, v["top/f"].ino)
	assert.Equal(t, []uint64{1, 2, 2}, []uint64{v["top/f"].Nlink, v["low/f"].Nlink, v["low/g"].Nlink})
	assert.Equal(t, []string{"/top/f", "/low/f"}, []string{v["top/f"].Xattrs["trusted.overlay.redirect"], v["low/g"].Xattrs["trusted.overlay.redirect"]})
}
