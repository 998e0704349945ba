package worstcase

// hostileFeatures are what layers can carry to mislead those who read them,
// as far as it does no harm: what a layer may not carry is in Hostile.
func hostileFeatures() []Feature {
	return []Feature{
		{Name: "user-overlay", What: "overlay's attributes in the namespace that is not in use: attributes as any", add: userOverlay},
		{Name: "nested-overlay", What: "the escaped attributes of an overlay inside of the image", add: nestedOverlay},
		{Name: "trusted-overlay", What: "overlay's own attributes where they mean nothing", add: trustedOverlay},
		{Name: "planted-links", What: "symbolic links planted to lead a walk out of its layer", add: plantedLinks, certain: true},
	}
}

func userOverlay(t *tree, _ limits) {
	t.on(0).file("hostile/user/victim", "victim")
	t.on(0).file("hostile/user/dir/shown", "shown")
	l := t.on(2)
	l.file("hostile/user/redirect", "own", attr("user.overlay.redirect", "/hostile/user/victim"), attr("user.overlay.metacopy", ""))
	l.dir("hostile/user/dir", attr("user.overlay.opaque", "y"), attr("user.overlay.redirect", "/etc"))
	l.file("hostile/user/whiteout", "", attr("user.overlay.whiteout", ""))
	l.file("hostile/user/origin", "own", attr("user.overlay.origin", "\x00\xfb"), attr("user.overlay.impure", "y"), attr("user.overlay.nlink", "L+1"))
}

func nestedOverlay(t *tree, _ limits) {
	l := t.on(1)
	l.file("hostile/nested/file", "own", attr("trusted.overlay.overlay.metacopy", ""), attr("trusted.overlay.overlay.redirect", "/etc/passwd"))
	l.dir("hostile/nested/dir", attr("trusted.overlay.overlay.opaque", "y"))
	l.file("hostile/nested/twice", "own", attr("trusted.overlay.overlay.overlay.origin", "x"))
	t.on(0).file("hostile/nested/dir/shown", "shown")
}

func trustedOverlay(t *tree, _ limits) {
	t.on(0).file("hostile/trusted/dir/shown", "shown")
	l := t.on(1)
	l.file("hostile/trusted/origin", "own", attr("trusted.overlay.origin", "\x00\xfb\x1d"), attr("trusted.overlay.nlink", "U-5"), attr("trusted.overlay.upper", "x"))
	l.dir("hostile/trusted/dir", attr("trusted.overlay.impure", "y"), attr("trusted.overlay.origin", "x"), attr("trusted.overlay.uuid", "0123456789abcdef"), attr("trusted.overlay.unheard", "of"))
	l.file("hostile/trusted/protected", "own", attr("trusted.overlay.protattr", "ai"))
	// Marks of a whiteout on what is not an empty file.
	l.file("hostile/trusted/full", "own", attr("trusted.overlay.whiteout", "y"))
	l.dir("hostile/trusted/whiteout", attr("trusted.overlay.whiteout", ""))
	l.fifo("hostile/trusted/fifo", attr("trusted.overlay.whiteout", ""))
}

func plantedLinks(t *tree, _ limits) {
	up := "../../../../../../../../../../"
	// A link in a lower layer in the place of an upper one's directory, and
	// the other way round.
	t.on(0).symlink("hostile/links/below", up+"etc")
	t.on(2).file("hostile/links/below/file", "own")
	t.on(0).file("hostile/links/above/hidden", "0")
	t.on(2).symlink("hostile/links/above", up+"etc")
	t.on(1).symlink("hostile/links/between", up+"etc")
	t.on(0).file("hostile/links/between/hidden", "0")
	t.on(3).file("hostile/links/between/file", "own")
	l := t.on(4)
	l.symlink("hostile/links/passwd", "/etc/passwd")
	l.symlink("hostile/links/self", "/proc/self/fd/0")
	l.symlink("hostile/links/cwd", "/proc/self/cwd")
	l.symlink("hostile/links/root", "/proc/1/root/etc")
}
