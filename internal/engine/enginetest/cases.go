package enginetest

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
)

// everyType is a tree with one of every type and a few owners.
func everyType() []fstree.Node {
	return []fstree.Node{
		fstree.Dir(".", fstree.Mode(0o755)),
		fstree.Dir("etc"),
		fstree.File("etc/passwd", "root:x:0:0\n", fstree.Mode(0o644)),
		fstree.File("etc/shadow", "root:*\n", fstree.Owner(0, 42), fstree.Mode(0o640)),
		fstree.File("etc/empty", ""),
		fstree.Dir("home/user", fstree.Owner(1000, 1000), fstree.Mode(0o700)),
		fstree.File("home/user/.profile", "umask 022\n", fstree.Owner(1000, 1000), fstree.Mode(0o600)),
		fstree.File("last", "uid 65535", fstree.Owner(65535, 65535)),
		fstree.File("nobody", "uid 65534", fstree.Owner(65534, 65534), fstree.Mode(0)),
		fstree.Symlink("lib", "usr/lib"),
		fstree.Symlink("owned-link", "/nowhere", fstree.Owner(33, 34)),
		fstree.Symlink("long-link", strings.Repeat("x/", 500)+"end", fstree.Owner(1, 2)), // XFS has 1,023 bytes
		fstree.Device("null", unix.S_IFCHR, 1, 3, fstree.Mode(0o666)),
		fstree.Device("loop", unix.S_IFBLK, 7, 70000, fstree.Owner(0, 6), fstree.Mode(0o660)),
		fstree.Device("zero-minor", unix.S_IFCHR, 5, 0),
		fstree.Fifo("fifo", fstree.Owner(7, 8), fstree.Mode(0o620)),
		fstree.Socket("socket", fstree.Owner(9, 10), fstree.Mode(0o755)),
	}
}

// basicCases are about types, modes and mappings.
func basicCases() []Case {
	one := func(nodes ...fstree.Node) [][]fstree.Node { return [][]fstree.Node{nodes} }
	var modes []fstree.Node
	for i, mode := range []uint32{0, 0o1, 0o111, 0o400, 0o444, 0o777, 0o1777, 0o2755, 0o4755, 0o6755, 0o7777, 0o4000, 0o2000, 0o1000, 0o6000} {
		modes = append(modes,
			fstree.File(fmt.Sprintf("file%05o", mode), "x", fstree.Owner(i, 1000+i), fstree.Mode(mode)),
			fstree.File(fmt.Sprintf("empty%05o", mode), "", fstree.Owner(i, 1000+i), fstree.Mode(mode)),
			fstree.Fifo(fmt.Sprintf("fifo%05o", mode), fstree.Owner(i, 1000+i), fstree.Mode(mode)),
			fstree.Dir(fmt.Sprintf("dir%05o", mode), fstree.Owner(i, 1000+i), fstree.Mode(mode)),
			fstree.File(fmt.Sprintf("dir%05o/inside", mode), "y", fstree.Owner(2*i, i)))
	}
	return []Case{
		{Name: "EmptyImage", Layers: one()},
		{Name: "EveryType", Layers: one(everyType()...)},
		{Name: "ThreeExtents", Layers: one(everyType()...), UIDs: Three, GIDs: Three},
		{Name: "UidsAreNotGids", Layers: one(everyType()...), UIDs: "0:300000:65536", GIDs: Three},
		{Name: "Identity", Layers: one(everyType()...), UIDs: Self, GIDs: Self},
		{Name: "Permutation", Layers: one(everyType()...), UIDs: Permut, GIDs: Permut},
		{Name: "Modes", Layers: one(modes...)},
		{Name: "Root", Layers: one(fstree.Dir(".", fstree.Owner(5, 6), fstree.Mode(0o1750),
			fstree.Xattr("user.root", "attribute"), fstree.Xattr("system.posix_acl_default", fstree.ACL([]uint32{7}, nil))))},
		{Name: "Unmapped", UIDs: Short, GIDs: Short, Layers: one(
			fstree.File("uid", "x", fstree.Owner(1000, 0)), fstree.File("gid", "y", fstree.Owner(0, 1000)),
			fstree.Dir("dir", fstree.Owner(4000000000, 4000000001)), fstree.File("dir/below", "z"),
			fstree.Symlink("link", "uid", fstree.Owner(2000, 2000)), fstree.Fifo("fifo", fstree.Owner(1<<31, 1<<31)),
			fstree.File("suid", "x", fstree.Owner(1000, 1000), fstree.Mode(0o4755)))},
		{Name: "Times", Layers: one(
			fstree.File("before-1970", "x", fstree.Time(-1, 999999999)), fstree.File("1902", "x", fstree.Time(-1<<31+1, 1)),
			fstree.File("2040", "x", fstree.Time(2208988800, 5)), fstree.File("2400", "x", fstree.Time(13569465600, 999999999)),
			fstree.File("epoch", "x", fstree.Time(0, 0)), fstree.Symlink("link", "x", fstree.Time(-86400, 7)),
			fstree.Dir("dir", fstree.Time(-86400, 8)), fstree.File("dir/new", "x"), fstree.Dir("dir/sub", fstree.Time(4102444800, 9)),
			fstree.Device("null", unix.S_IFCHR, 1, 3, fstree.Time(-5, 6)), fstree.Socket("socket", fstree.Time(3000000000, 1)),
			fstree.Dir(".", fstree.Time(-7, 77)))},
	}
}

// metadataCases are about capabilities, ACLs, attributes and hard links.
func metadataCases() []Case {
	one := func(nodes ...fstree.Node) [][]fstree.Node { return [][]fstree.Node{nodes} }
	const access, deflt, capability = "system.posix_acl_access", "system.posix_acl_default", "security.capability"
	acls := []fstree.Node{
		fstree.File("access", "x", fstree.Xattr(access, fstree.ACL([]uint32{1, 1000}, []uint32{4, 1000}))),
		fstree.File("empty", "", fstree.Owner(3, 4), fstree.Xattr(access, fstree.ACL([]uint32{0}, []uint32{0}))),
		fstree.File("order", "x", fstree.Xattr(access, fstree.ACL([]uint32{999, 1000, 1001}, []uint32{999, 1000, 1001}))),
		fstree.Dir("dir", fstree.Xattr(access, fstree.ACL([]uint32{33}, nil)), fstree.Xattr(deflt, fstree.ACL(nil, []uint32{44}))),
		fstree.Dir("default", fstree.Owner(8, 9), fstree.Xattr(deflt, fstree.ACL([]uint32{5}, []uint32{6}))),
		fstree.Fifo("fifo", fstree.Xattr(access, fstree.ACL([]uint32{2}, []uint32{3}))),
		fstree.File("setgid", "x", fstree.Owner(1, 2), fstree.Mode(0o2775), fstree.Xattr(access, fstree.ACL([]uint32{9}, []uint32{2}))),
	}
	// What a directory with a default ACL gives to its children must not show.
	acls = append(acls, fstree.File("default/file", "x", fstree.Mode(0o600)), fstree.Dir("default/sub", fstree.Mode(0o711)),
		fstree.Fifo("default/fifo", fstree.Mode(0o666)), fstree.Symlink("default/link", "file"))
	return []Case{
		{Name: "Capabilities", Layers: one(
			fstree.File("v2", "x", fstree.Mode(0o755), fstree.Xattr(capability, fstree.CapV2())),
			fstree.File("v2-owned", "x", fstree.Owner(33, 33), fstree.Xattr(capability, fstree.CapV2())),
			fstree.File("v3", "x", fstree.Xattr(capability, fstree.CapV3(1000))),
			fstree.File("v3-root", "x", fstree.Xattr(capability, fstree.CapV3(0))),
			fstree.File("v2-empty", "", fstree.Xattr(capability, fstree.CapV2())),
			fstree.File("v2-suid", "x", fstree.Owner(5, 5), fstree.Mode(0o6755), fstree.Xattr(capability, fstree.CapV2())),
		)},
		{Name: "CapabilitiesThreeExtents", UIDs: Three, GIDs: Three, Layers: one(
			fstree.File("v2", "x", fstree.Xattr(capability, fstree.CapV2())),
			fstree.File("v3", "x", fstree.Xattr(capability, fstree.CapV3(1000))))},
		{Name: "CapabilitiesUnmapped", UIDs: Short, GIDs: Short, Layers: one(
			fstree.File("v2", "x", fstree.Xattr(capability, fstree.CapV2())),
			fstree.File("v3-unmapped", "x", fstree.Xattr(capability, fstree.CapV3(5000))))},
		{Name: "RootBecomesZero", UIDs: "5:0:1,0:100000:5", GIDs: Auto, Layers: one(
			fstree.File("v3", "x", fstree.Xattr(capability, fstree.CapV3(5))),
			fstree.File("v2", "x", fstree.Xattr(capability, fstree.CapV2())))},
		{Name: "ACLs", Layers: one(acls...)},
		{Name: "ACLsThreeExtents", Layers: one(acls...), UIDs: Three, GIDs: Three},
		{Name: "ACLsUnmapped", UIDs: Short, GIDs: Short, Layers: one(
			fstree.File("some", "x", fstree.Xattr(access, fstree.ACL([]uint32{1, 5000}, []uint32{6000, 7}))),
			fstree.File("two", "x", fstree.Xattr(access, fstree.ACL([]uint32{5000, 5001}, []uint32{6000, 6001}))),
			fstree.Dir("dir", fstree.Xattr(deflt, fstree.ACL([]uint32{70000}, nil))))},
		{Name: "Xattrs", Layers: one(
			fstree.File("user", "x", fstree.Owner(1000, 1000), fstree.Mode(0o400), fstree.Xattr("user.a", "value"), fstree.Xattr("user.empty", ""), fstree.Xattr("user.bin", "\x00\xff\n")),
			fstree.File("big", "x", fstree.Xattr("user.big", strings.Repeat("0123456789", 300))),
			fstree.File("trusted", "x", fstree.Owner(1, 1), fstree.Xattr("trusted.mine", "v")),
			fstree.File("selinux", "x", fstree.Owner(2, 2), fstree.Xattr("security.selinux", "system_u:object_r:bin_t:s0\x00")),
			fstree.Symlink("link", "target", fstree.Owner(3, 3), fstree.Xattr("security.selinux", "system_u:object_r:etc_t:s0\x00"), fstree.Xattr("trusted.l", "v")),
			fstree.Fifo("fifo", fstree.Owner(4, 4), fstree.Xattr("security.selinux", "label\x00"), fstree.Xattr("trusted.f", "")),
			fstree.Device("dev", unix.S_IFCHR, 1, 5, fstree.Xattr("security.selinux", "null_device_t\x00")),
			fstree.Socket("sock", fstree.Xattr("trusted.s", "1")),
			fstree.Dir("dir", fstree.Owner(5, 5), fstree.Mode(0o500), fstree.Xattr("user.d", "v"), fstree.Xattr("security.selinux", "usr_t\x00"), fstree.Xattr("trusted.d", "v")),
			fstree.File("unknown", "x", fstree.Xattr("security.unheard", "of")))},
		{Name: "NestedOverlayXattrs", Layers: one(
			// A container storage inside of an image: escaped by the inner
			// overlay, shown unescaped to the container (Linux 6.8).
			fstree.File("file", "x", fstree.Xattr("trusted.overlay.overlay.origin", "o")),
			fstree.Dir("dir", fstree.Xattr("trusted.overlay.overlay.opaque", "y")), fstree.File("dir/f", "x"),
			// The unprivileged form is an attribute as any for this overlay.
			fstree.File("user", "x", fstree.Xattr("user.overlay.origin", "o")),
			fstree.Dir("opaque", fstree.Xattr("user.overlay.opaque", "y")))},
		{Name: "OverlayOwnXattrs", Layers: one(
			fstree.File("origin", "x", fstree.Xattr("trusted.overlay.origin", "whatever")),
			fstree.Dir("impure", fstree.Xattr("trusted.overlay.impure", "y")), fstree.File("impure/f", "x"))},
		{Name: "HardLinks", Layers: one(
			fstree.File("a", "data", fstree.Owner(1, 1), fstree.Mode(0o4755)), fstree.Link("b", "a"), fstree.Link("d1/d2/c", "a"), fstree.Link("0/first", "a"),
			fstree.File("e0", "", fstree.Owner(2, 2), fstree.Xattr("user.x", "y")), fstree.Link("e1", "e0"),
			fstree.Symlink("s0", "target", fstree.Owner(3, 3)), fstree.Link("d1/s1", "s0"),
			fstree.Device("n0", unix.S_IFCHR, 1, 3, fstree.Owner(4, 4)), fstree.Link("d1/n1", "n0"),
			fstree.Fifo("f0", fstree.Owner(5, 5)), fstree.Link("f1", "f0"),
			fstree.Socket("k0", fstree.Owner(6, 6)), fstree.Link("d1/k1", "k0"),
			fstree.File("cap", "x", fstree.Xattr(capability, fstree.CapV2())), fstree.Link("d1/cap", "cap"),
			fstree.File("foreign", "x", fstree.Owner(1000, 1000), fstree.Mode(0o600)), fstree.Link("d1/foreign", "foreign"))},
	}
}

// nameCases are about names.
func nameCases() []Case {
	names := []string{
		"new\nline", "co:lon", "com,ma", `back\slash`, `\072`, "invalid\xff\xfe", "space ", " ", "-rf", "tab\t", "quote\"'", "$(x)",
		".wh.x", ".wh..wh..opq", "...", "..a", "work", "index", "#1", "\x01", "\x7f", "%", "ümlaut", "\u202e", "*",
		strings.Repeat("n", 255), strings.Repeat("\xf0\x9f\x90\xa7", 63),
	}
	var flat, dirs []fstree.Node
	for i, n := range names {
		flat = append(flat, fstree.File(n, n, fstree.Owner(i, i), fstree.Xattr("user.n", n)))
		dirs = append(dirs, fstree.Dir(n, fstree.Owner(i, i)), fstree.File(n+"/"+n, n, fstree.Owner(i, 0)),
			fstree.Symlink(n+"/link", n), fstree.Fifo(n+"/fifo", fstree.Owner(0, i), fstree.Xattr("trusted.x", "y")))
	}
	return []Case{
		{Name: "OddNames", Layers: [][]fstree.Node{flat}},
		{Name: "OddDirectories", Layers: [][]fstree.Node{dirs}},
	}
}

// sizeCases are about large and deep trees.
func sizeCases() []Case {
	var wide []fstree.Node
	for i := range 30000 {
		wide = append(wide, fstree.File(fmt.Sprintf("wide/%05d", i), "", fstree.Owner(i, 65535-i)))
	}
	var deep []fstree.Node
	for p, i := "", 0; i < 60; i++ {
		p += fmt.Sprintf("d%d/", i)
		deep = append(deep, fstree.Dir(strings.TrimSuffix(p, "/"), fstree.Owner(i, i)), fstree.File(p+"f", p, fstree.Owner(i, 1)))
	}
	var long []fstree.Node
	for p, i := "", 0; i < 20; i++ {
		p += strings.Repeat(string(rune('a'+i)), 250) + "/"
		long = append(long, fstree.Dir(strings.TrimSuffix(p, "/"), fstree.Owner(i, i), fstree.Xattr("user.d", "x")),
			fstree.File(p+"f", p, fstree.Owner(i, 1)), fstree.Symlink(p+"l", "f", fstree.Owner(2, i)), fstree.Fifo(p+"p", fstree.Xattr("trusted.f", "y")))
	}
	long = append(long, fstree.Link("up-here", strings.TrimPrefix(longPath(20), "/")+"f"))
	return []Case{
		{Name: "LongestSymlink", Only: "ext4", Layers: [][]fstree.Node{{fstree.Symlink("l", strings.Repeat("x", 4095), fstree.Owner(1, 2))}}},
		{Name: "WideDirectory", Layers: [][]fstree.Node{wide}},
		{Name: "DeepPath", Layers: [][]fstree.Node{deep}},
		{Name: "PathBeyond4096", Layers: [][]fstree.Node{long}},
		{Name: "Sparse", Layers: [][]fstree.Node{{
			fstree.Sparse("tib", 1<<40, []fstree.Data{{Offset: 1<<39 + 5, Content: "far away"}, {Offset: 1<<40 - 3, Content: "end"}}, fstree.Owner(1, 1)),
			fstree.Sparse("hole", 3<<30, nil, fstree.Owner(2, 2)),
			fstree.Sparse("ends-in-hole", 1<<20, []fstree.Data{{Offset: 0, Content: "start"}}),
			fstree.File("data", strings.Repeat("0123456789abcdef", 1<<17)),
		}}},
	}
}

// longPath is a path of n components of 250 bytes, with a slash at the end.
func longPath(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(string(rune('a'+i)), 250) + "/")
	}
	return b.String()
}
