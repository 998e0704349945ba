package worstcase

import (
	"fmt"
	"strings"
)

// nameFeatures are about names and targets of symbolic links.
func nameFeatures() []Feature {
	var out []Feature
	for _, n := range []int{1, 255, 1023, 1024, 3000, 4095} {
		out = append(out, Feature{
			Name: fmt.Sprintf("symlink-%d", n), What: fmt.Sprintf("a symbolic link of %d bytes", n),
			add: func(t *tree, _ limits) {
				t.on(0).symlink(fmt.Sprintf("symlinks/%d", n), strings.Repeat("x/", n/2)+strings.Repeat("y", n%2), owner(uint32(n), 2))
			},
		})
	}
	return append(out,
		Feature{Name: "symlinks", What: "symbolic links that dangle, are absolute, lead to themselves, or hold odd bytes", add: symlinks, certain: true},
		Feature{Name: "names", What: "names of 255 bytes, with newlines, spaces, colons, commas, backslashes, like whiteouts and options of overlay", add: oddNames, certain: true},
		Feature{Name: "names-invalid-utf8", What: "names that are no UTF-8", add: invalidNames},
	)
}

func symlinks(t *tree, _ limits) {
	l := t.on(0)
	for name, target := range sorted(map[string]string{
		"dangling": "nowhere", "absolute": "/etc/passwd", "absolute-dangling": "/nowhere/at/all", "self": "self", "loop1": "loop2", "loop2": "loop1",
		"root": "/", "dot": ".", "dotdot": "..", "up": "../../../../../../../../etc/shadow", "newline": "a\nb", "bytes": "\xff\xfe:,\\", "proc": "/proc/self/root/etc",
		"slashes": "//etc///passwd/", "space": " ",
	}) {
		l.symlink("symlinks/"+name, target, owner(33, 34))
	}
	l.symlink("symlinks/to-dir", "../modes", owner(1, 1))
	// Directories below a name that is a link in a lower layer, and the other
	// way round.
	l.symlink("symlinks/then-dir", "/etc")
	t.on(1).dir("symlinks/then-dir", owner(2, 2))
	t.on(1).file("symlinks/then-dir/file", "not behind the link")
	l.dir("symlinks/then-link")
	l.file("symlinks/then-link/hidden", "x")
	t.on(1).symlink("symlinks/then-link", "../names")
}

// names that somebody somewhere takes for something else.
func oddNames(t *tree, _ limits) {
	list := []string{
		"new\nline", "\n", " ", "  two", "trailing ", "co:lon", ":", "::", "com,ma", ",", `back\slash`, `\`, `\\`, `\072`, `\:`, `\,`, "a=b", "%2e%2e", "#", "tab\t",
		"quote\"'`", "$(id)", "*", "?", "[a]", "~", "-rf", "--", "!first", "...", "..a", ".a", "\x01", "\x7f", "\x1b[31m", "ümlaut", "\u202e", "\u2028", "\U0001f427",
		".wh.x", ".wh.", ".wh..wh..opq", ".wh..wh.plnk", ".wh..opq", ".wh..wh.aufs", "#0", "#1a2b",
		"work", "index", "incompat", "volatile", "upper", "merged", "diff", "diff1", "link", "lower", "empty", "trusted.overlay.opaque", "overlay.opaque",
		"lowerdir=a", "lowerdir=a:b,upperdir=c", "upperdir", "metacopy=on", "redirect_dir=on", "xino=auto", "(deleted)", "memory (deleted)", "CON", "a.lnk", "lost+found",
		strings.Repeat("n", 255), strings.Repeat("\n", 255), strings.Repeat("\\", 255), strings.Repeat("\U0001f427", 63), strings.Repeat(":", 254), ".wh." + strings.Repeat("w", 251),
	}
	l := t.on(0)
	for i, n := range list {
		id := uint32(i)
		l.file("names/files/"+n, n, owner(id, id), attr("user.n", n))
		d := "names/dirs/" + n
		l.dir(d, owner(id, id))
		l.file(d+"/"+n, n, owner(id, 0))
		l.symlink(d+"/l", n)
		l.fifo(d+"/p", owner(0, id))
		t.on(2).dir(d, owner(id, 2))
		t.on(2).file(d+"/upper", n, owner(2, id))
		t.on(1).whiteout(d + "/l")
	}
}

func invalidNames(t *tree, _ limits) {
	l := t.on(0)
	for i, n := range []string{"\xff", "invalid\xff\xfe", "\xc3", "\xed\xa0\x80", "\x80:", "a\xf0\x9f", strings.Repeat("\xff", 255)} {
		l.file("names/invalid/"+n, n, owner(uint32(i), 5))
		l.dir("names/invalid-dirs/"+n, owner(5, uint32(i)))
		l.file("names/invalid-dirs/"+n+"/"+n, n)
		t.on(3).file("names/invalid-dirs/"+n+"/upper", n)
	}
}
