package worstcase

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// layerFeatures are about how layers come together.
func layerFeatures() []Feature {
	return []Feature{
		{Name: "layers", What: "five layers that delete, recreate, hide and change what lower ones have", add: layered, certain: true},
		{Name: "replaced", What: "every type in the place of every other", add: replaced, certain: true},
		{Name: "whiteouts", What: "whiteouts of nothing, in the lowest layer, with owners and attributes", add: oddWhiteouts, certain: true},
		{Name: "opaque", What: "opaque directories at the top, in the middle, at the bottom, and in one another", add: opaques, certain: true},
		{Name: "roots", What: "layers whose root folders differ in owner and mode, or are opaque", add: roots, certain: true},
		{Name: RootXattrs, What: "layers whose root folders have attributes", add: rootXattrs},
	}
}

func layered(t *tree, _ limits) {
	l := t.on(0)
	l.file("layers/deleted", "0", owner(1, 1))
	l.file("layers/deleted-dir/a", "0")
	l.file("layers/deleted-dir/b/c", "0")
	l.file("layers/again", "0", owner(1, 1))
	l.file("layers/again-dir/old", "0", owner(1, 1))
	l.dir("layers/again-dir", owner(1, 1), attr("user.layer", "0"))
	l.file("layers/meta-file", "the same", owner(1, 1), mode(0o644), attr("user.layer", "0"))
	l.dir("layers/meta-dir", owner(1, 1), attr("user.layer", "0"))
	l.file("layers/meta-dir/kept", "0", owner(1, 1))
	l.file("layers/deep/a/b/c/d", "0", owner(1, 1))
	l.file("layers/emptied/a", "0")
	l.file("layers/emptied/b", "0")

	l = t.on(1)
	l.whiteout("layers/deleted")
	l.whiteout("layers/deleted-dir")
	l.whiteout("layers/again")
	l.whiteout("layers/again-dir")
	l.dir("layers/meta-dir", owner(2, 2), mode(0o1777), attr("user.layer", "1"))
	l.file("layers/meta-file", "the same", owner(2, 2), mode(0o4755), attr("user.layer", "1"))
	l.whiteout("layers/deep/a/b")
	l.file("layers/emptied/c", "1")

	l = t.on(2)
	l.file("layers/again", "2", owner(3, 3), mode(0o6755))
	l.file("layers/again-dir/new", "2", owner(3, 3))
	l.file("layers/deep/a/b/e", "2", owner(3, 3))
	l.dir("layers/meta-dir", owner(3, 3), mode(0o2750))
	l.file("layers/meta-file", "the same", owner(3, 3), mode(0o600), attr(capability, capV2(1<<10, 0)))
	l.whiteout("layers/emptied/a")
	l.whiteout("layers/emptied/b")
	l.whiteout("layers/emptied/c")

	l = t.on(3)
	l.whiteout("layers/again")
	l.file("layers/deleted-dir/back", "3", owner(4, 4))
	l.dir("layers/deep/a/b", opaque(), owner(4, 4))
	l.file("layers/deep/a/b/c/d", "3", owner(4, 4))
	l.file("layers/meta-file", "the same", owner(4, 65536), mode(0o644), attr(aclAccess, acl([]entry{{6, 1000}}, nil, 7)))

	l = t.on(4)
	l.file("layers/again", "4", owner(5, 5), attr("user.layer", "4"))
	l.dir("layers/meta-dir", owner(5, 5), mode(0o711), attr(aclDefault, acl(nil, []entry{{5, 1000}}, 7)))
	l.file("layers/top-only", "4", owner(5, 5))
}

// replaced has each type in a layer, over each other one in a lower, and both
// over a directory with content in the lowest.
func replaced(t *tree, _ limits) {
	kinds := []string{"file", "dir", "link", "dir-link", "fifo", "dev", "none", "deleted", "opaque"}
	for _, upper := range kinds {
		for _, lower := range kinds {
			for _, lowest := range []string{"dir", "file", "none"} {
				p := "replaced/" + strings.Join([]string{upper, lower, lowest}, "-")
				one(t.on(0), p, lowest)
				one(t.on(2), p, lower)
				one(t.on(4), p, upper)
			}
		}
	}
}

// one puts something of a kind somewhere.
func one(l on, p, kind string) {
	id := uint32(l.layer + 1)
	own := owner(id, 10*id)
	switch kind {
	case "file":
		l.file(p, p, own, mode(0o4755))
	case "dir", "opaque":
		l.dir(p, own)
		if kind == "opaque" {
			l.dir(p, own, opaque())
		}
		l.file(fmt.Sprintf("%s/in%d", p, id), p, own)
		l.dir(p + "/common")
		l.file(fmt.Sprintf("%s/common/in%d", p, id), p)
		l.file(p+"/common/each", fmt.Sprint(id), own)
	case "link":
		l.symlink(p, "nowhere", own)
	case "dir-link":
		l.symlink(p, "dir-dir-dir", own)
	case "fifo":
		l.fifo(p, own)
	case "dev":
		l.device(p, unix.S_IFCHR, 0, id, own)
	case "deleted":
		l.whiteout(p)
	}
}

func oddWhiteouts(t *tree, _ limits) {
	l := t.on(0)
	l.whiteout("whiteouts/lowest/alone")
	l.file("whiteouts/lowest/beside", "x")
	l.file("whiteouts/owned", "x")
	l.file("whiteouts/marked", "x")
	l.file("whiteouts/linked-a", "x")
	l.file("whiteouts/linked-b", "x")
	l.file("whiteouts/dir/a", "x")
	l = t.on(1)
	l.whiteout("whiteouts/nothing")
	l.whiteout("whiteouts/no/such/directory")
	l.whiteout("whiteouts/owned", owner(1000, 1000), mode(0o4777))
	l.whiteout("whiteouts/marked", attr("trusted.mine", "x"), attr("security.selinux", "system_u:object_r:bin_t:s0\x00"))
	// As overlay makes them: one inode for all.
	l.whiteout("whiteouts/linked-a")
	l.link("whiteouts/linked-b", "whiteouts/linked-a")
	l.whiteout("whiteouts/dir")
	t.on(2).whiteout("whiteouts/dir") // once more
	// A directory of one layer alone is read as it is, whiteouts and all (Ghosts).
	t.on(3).dir("whiteouts/lowest", owner(3, 3))
	t.on(3).dir("whiteouts/no/such/directory")
	t.on(3).whiteout("whiteouts/dir/a")
	t.on(4).dir("whiteouts/dir/a", owner(3, 3)) // below what is a whiteout in two layers
}

func opaques(t *tree, _ limits) {
	for layer, p := range []string{"bottom", "second", "middle", "fourth", "top"} {
		for i := range Layers {
			t.on(i).file(fmt.Sprintf("opaque/%s/in%d", p, i), p, owner(uint32(i), 1))
			t.on(i).file("opaque/"+p+"/sub/each", fmt.Sprint(i), owner(uint32(i), 2))
		}
		t.on(layer).dir("opaque/"+p, opaque(), owner(uint32(layer), 3))
	}
	t.on(0).file("opaque/nested/in/hidden", "0")
	t.on(1).dir("opaque/nested", opaque())
	t.on(1).file("opaque/nested/in/hidden-too", "1")
	t.on(3).dir("opaque/nested/in", opaque(), owner(9, 9))
	t.on(0).file("opaque/empty/hidden", "0")
	t.on(2).dir("opaque/empty", opaque())
	// On what is no directory, and with other values, it means nothing.
	t.on(0).file("opaque/value/shown", "0")
	t.on(1).dir("opaque/value", attr("trusted.overlay.opaque", "n"))
	t.on(2).dir("opaque/value", attr("trusted.overlay.opaque", "yy"))
	t.on(3).dir("opaque/value", attr("trusted.overlay.opaque", ""))
	t.on(1).file("opaque/file", "x", opaque())
	t.on(1).symlink("opaque/link", "x", opaque())
}

// roots are the root folders of the layers; the uppermost counts.
func roots(t *tree, _ limits) {
	for layer, o := range [][]option{
		{owner(1, 1), mode(0o700)},
		{owner(2, 2)},
		{opaque()}, // of no consequence on a root (ovl_get_root in fs/overlayfs/super.c)
		{owner(3, 3), mode(0o1777)},
		{owner(0, 5), mode(0o755)},
	} {
		t.on(layer).dir(".", o...)
	}
}

func rootXattrs(t *tree, _ limits) {
	t.on(3).dir(".", owner(3, 3), mode(0o1777), attr("user.root", "lower"), attr("user.lower", "x"), attr(aclDefault, acl([]entry{{7, 1}}, nil, 7)))
	t.on(4).dir(".", owner(0, 5), attr("user.root", "uppermost"), attr("trusted.root", "uppermost"), attr(aclDefault, acl(nil, []entry{{7, 1000}}, 7)))
}
