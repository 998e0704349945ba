package writeback_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// step is one operation of a container.
type step func(o fsop.Ops) error

// steps for tables.
func write(p, content string) step { return func(o fsop.Ops) error { return o.Write(p, content) } }
func add(p, content string) step   { return func(o fsop.Ops) error { return o.Append(p, content) } }
func mkdir(p string) step          { return func(o fsop.Ops) error { return o.Mkdir(p) } }
func remove(p string) step         { return func(o fsop.Ops) error { return o.Remove(p) } }
func rename(from, to string) step  { return func(o fsop.Ops) error { return o.Rename(from, to) } }
func link(from, to string) step    { return func(o fsop.Ops) error { return o.Link(from, to) } }
func symlink(to, p string) step    { return func(o fsop.Ops) error { return o.Symlink(to, p) } }
func truncate(p string, n int64) step {
	return func(o fsop.Ops) error { return o.Truncate(p, n) }
}
func chmod(p string, mode uint32) step { return func(o fsop.Ops) error { return o.Chmod(p, mode) } }
func chown(p string, uid, gid uint32) step {
	return func(o fsop.Ops) error { return o.Chown(p, uid, gid) }
}
func setcap(p string) step { return func(o fsop.Ops) error { return o.SetCap(p, 1<<13) } }
func setfacl(p, name string) step {
	return func(o fsop.Ops) error { return o.SetACL(p, name, 33, 1000) }
}

func setxattr(p, name, v string) step {
	return func(o fsop.Ops) error { return o.SetXattr(p, name, v) }
}

func mknod(p string, mode, major, minor uint32) step {
	return func(o fsop.Ops) error { return o.Mknod(p, mode, major, minor) }
}
func times(p string, t time.Time) step { return func(o fsop.Ops) error { return o.Times(p, t) } }

// form is a change of a container, and what Scan says of it if that is worth a
// look. renames says that directories are
// renamed, which only redirect_dir allows.
type form struct {
	name    string
	do      []step
	items   []string
	items1  []string // for the image of one layer only
	renames bool
}

// fileForms are changes of single files.
func fileForms() []form {
	const doc = "usr/share/doc"
	return []form{
		{name: "nothing", items: []string{}},
		{name: "create", do: []step{write("new", "new")}, items: []string{"A new"}},
		{name: "create empty", do: []step{write("etc/conf.d/new", "")}, items: []string{"C etc", "C etc/conf.d", "A etc/conf.d/new"}},
		{name: "overwrite", do: []step{write("etc/passwd", "me")}, items: []string{"C etc", "C etc/passwd"}},
		{name: "append", do: []step{add("usr/bin/tool", "more")}, items: []string{"C usr", "C usr/bin", "C usr/bin/tool"}},
		{name: "append to empty", do: []step{add("etc/empty", "more")}},
		{name: "truncate", do: []step{truncate("usr/lib/lib.so", 7)}},
		{name: "truncate to nothing", do: []step{truncate("usr/lib/lib.so", 0)}},
		{name: "sparse", do: []step{write("sparse", "begin"), truncate("sparse", 20<<20), add("sparse", "end")}},
		{name: "chmod", do: []step{chmod("usr/bin/tool", 0o4711)}},
		{name: "chmod, then write", do: []step{chmod("usr/bin/tool", 0o711), add("usr/bin/tool", "x")}},
		{name: "chown", do: []step{chown("usr/bin/tool", 1000, 33)}},
		{name: "chown of an empty file", do: []step{chown("etc/empty", 1000, 33)}},
		{name: "chown of a symbolic link", do: []step{chown("abs", 1000, 33)}},
		{name: "chown of a device", do: []step{chown("data/null", 1000, 33)}},
		{name: "setcap", do: []step{setcap("usr/bin/tool")}},
		{name: "chmod of a file with a capability", do: []step{chmod("usr/bin/cap", 0o700)}},
		{name: "removed capability", do: []step{func(o fsop.Ops) error { return o.RemoveXattr("usr/bin/cap", idshift.Capability) }}},
		{name: "setfacl", do: []step{setfacl("usr/bin/tool", idshift.ACLAccess)}},
		{name: "chmod of a file with an ACL", do: []step{chmod("data/acl", 0o600)}},
		{name: "default ACL", do: []step{setfacl("void", idshift.ACLDefault), write("void/inherits", "x"), mkdir("void/heir"), write("void/heir/ess", "")}},
		{name: "default ACL after children", do: []step{
			write("void/before", "x"), mkdir("void/dir"), write("void/dir/file", "x"), symlink("before", "void/link"),
			mknod("void/fifo", unix.S_IFIFO|0o600, 0, 0), setfacl("void", idshift.ACLDefault),
		}},
		{name: "default ACL on the image's directory", do: []step{setfacl("etc/conf.d", idshift.ACLDefault), chmod("etc/conf.d/a", 0o600), chown("etc/conf.d/deep", 33, 33)}},
		{name: "default ACL above a renamed directory", renames: true, do: []step{setfacl("usr", idshift.ACLDefault), rename("usr", "usr2"), setfacl("void", idshift.ACLDefault), rename("etc", "void/etc")}},
		{name: "xattr", do: []step{setxattr("etc/passwd", "user.x", "a\x00b"), setxattr("etc", "user.dir", "d")}},
		{name: "removed xattr", do: []step{func(o fsop.Ops) error { return o.RemoveXattr("data/xattr", "user.one") }, func(o fsop.Ops) error { return o.RemoveXattr("usr/share", "user.dir") }}},
		{name: "times", do: []step{times("etc/passwd", time.Unix(-5, 123456789)), times("usr/bin/tool", time.Unix(1<<33, 1)), times("abs", time.Unix(7, 7))}},
		{name: "rename a file", do: []step{rename("usr/bin/tool", "usr/bin/tool2")}, items: []string{"C usr", "C usr/bin", "D usr/bin/tool", "A usr/bin/tool2 (metadata)"}},
		{name: "rename a file to another directory", do: []step{rename("usr/bin/tool", "etc/conf.d/tool")}},
		{name: "rename an empty file", do: []step{rename("etc/empty", "empty")}},
		{name: "rename a file over another", do: []step{rename("usr/bin/tool", "etc/passwd")}},
		{name: "rename, chmod, write", do: []step{rename("usr/bin/tool", "t"), chmod("t", 0o600), add("t", "x")}},
		{name: "exchange names", do: []step{rename("etc/conf.d/a", "etc/conf.d/tmp"), rename("etc/conf.d/b", "etc/conf.d/a"), rename("etc/conf.d/tmp", "etc/conf.d/b")}},
		{name: "rename a symbolic link", do: []step{rename("abs", "etc/rel")}},
		{name: "hard link", do: []step{link("usr/bin/tool", "usr/bin/tool2")}},
		{name: "hard link elsewhere, then chmod", do: []step{link("usr/bin/tool", "a-tool"), chmod("a-tool", 0o4755)}},
		{name: "hard link of a setuid file and a capability", do: []step{link("usr/bin/suid", "a-suid"), link("usr/bin/cap", "z-cap")}},
		{name: "one of several hard links written", do: []step{add("links/two", "x")}},
		{name: "hard link of a hard link", do: []step{link("links/two", "four"), add("four", "x")}},
		{name: "hard links of new files", do: []step{write("x", "x"), link("x", "etc/x"), link("x", "y"), symlink("a", "s"), link("s", "s2"), mknod("f", unix.S_IFIFO|0o600, 0, 0), link("f", "g")}},
		{name: "hard link, first name removed", do: []step{write("x", "x"), link("x", "y"), remove("x")}},
		{name: "special files", do: []step{
			mknod("fifo", unix.S_IFIFO|0o642, 0, 0), mknod("chr", unix.S_IFCHR|0o642, 10, 200), mknod("blk", unix.S_IFBLK|0o2642, 259, 1048575),
			mknod("socket", unix.S_IFSOCK|0o600, 0, 0),
		}, items: []string{"A blk", "A chr", "A fifo"}},
		{name: "symbolic links", do: []step{symlink("x", "s"), symlink("/"+strings.Repeat("a/", 2000), "long"), symlink("../../..", "etc/up")}},
		{name: "remove a file", do: []step{remove("etc/passwd"), remove("data/fifo"), remove("data/null"), remove("abs")}, items: []string{"D abs", "C data", "D data/fifo", "D data/null", "C etc", "D etc/passwd"}},
		{name: "remove and make again", do: []step{remove("etc/passwd"), write("etc/passwd", "again")}, items: []string{"C etc", "C etc/passwd"}},
		{name: "made and removed", do: []step{write("x", "x"), remove("x"), mkdir("d"), write("d/x", "x"), remove("d")}, items: []string{}},
		{name: "odd names", do: []step{
			write("odd/sp ace", "1"), write("odd/new\nline", "2"), remove("odd/\xff\xfe"), write("odd/\xfd", "3"), rename("odd/"+strings.Repeat("n", 255), "odd/short"),
			write("odd/"+strings.Repeat("m", 255), ""), write("odd/wh.x", "4"), write("odd/.wh", ""), write("-x", "5"), write("odd/*", "6"), remove("odd/ü"), symlink("\xff\n", "odd/s"),
		}},
		{name: "directory attributes", do: []step{chmod(doc, 0o2770), chown(doc, 33, 1000), chmod("data/sticky", 0o755)}},
		{name: "root attributes", do: []step{chmod(".", 0o711), chown(".", 33, 33)}},
		{name: "root xattr", do: []step{setxattr(".", "user.root", "of the root")}},
		{name: "root default ACL", do: []step{write("before", "x"), mkdir("dir"), setfacl(".", idshift.ACLDefault), write("after", "x"), chmod("top", 0o600), chmod("etc", 0o700)}},
		{name: "root ACL", do: []step{setfacl(".", idshift.ACLAccess)}},
	}
}

// treeForms are changes of directories.
func treeForms() []form {
	return []form{
		{name: "mkdir", do: []step{mkdir("d"), mkdir("d/e"), write("d/e/f", "x"), chmod("d", 0o2750), chown("d/e", 33, 33)}, items: []string{"A d", "A d/e", "A d/e/f"}},
		{name: "remove a directory", do: []step{remove("etc"), remove("void")}, items: []string{"D etc", "D void"}},
		{name: "remove and make again", do: []step{remove("etc"), mkdir("etc"), write("etc/passwd", "new"), write("etc/new", "new")}, items1: []string{
			"C etc", "E etc gone: conf.d empty", "A etc/new", "C etc/passwd",
		}},
		{name: "remove and make again, empty", do: []step{remove("usr"), mkdir("usr")}},
		{name: "remove and make again, deep", do: []step{remove("usr"), mkdir("usr"), mkdir("usr/share"), mkdir("usr/share/doc"), write("usr/share/doc/x", "a file now"), write("usr/bin", "a file now")}, items1: []string{
			"C usr", "E usr gone: lib", "C usr/bin", "C usr/share", "E usr/share (implied)", "C usr/share/doc", "E usr/share/doc gone: y (implied)", "C usr/share/doc/x",
		}},
		{name: "file becomes directory", do: []step{remove("top"), mkdir("top"), write("top/x", "x")}},
		{name: "file becomes directory and file again", do: []step{remove("top"), mkdir("top"), write("top/x", "x"), remove("top"), write("top", "back")}},
		{name: "directory becomes file", do: []step{remove("etc"), write("etc", "a file")}},
		{name: "directory becomes file and directory again", do: []step{remove("etc"), write("etc", "a file"), remove("etc"), mkdir("etc"), write("etc/passwd", "back")}},
		{name: "directory becomes symbolic link", do: []step{remove("usr/lib"), symlink("share", "usr/lib")}},
		{name: "symbolic link becomes directory", do: []step{remove("abs"), mkdir("abs"), write("abs/x", "x")}},
		{name: "directory becomes fifo", do: []step{remove("etc"), mknod("etc", unix.S_IFIFO|0o600, 0, 0)}},
		{name: "rename", renames: true, do: []step{rename("usr", "usr2")}},
		{name: "rename in place", renames: true, do: []step{rename("usr/share/doc", "usr/share/docs")}},
		{name: "rename elsewhere", renames: true, do: []step{rename("usr/share/doc", "etc/doc")}},
		{name: "rename and changes below", renames: true, do: []step{
			rename("usr", "usr2"), add("usr2/bin/tool", "x"), chmod("usr2/bin/suid", 0o755), write("usr2/new", "x"), remove("usr2/lib/lib.so"), remove("usr2/share/doc/x"),
			rename("usr2/bin/cap", "usr2/lib/cap"), link("usr2/bin/tool", "usr2/tool"),
		}},
		{name: "changes below and rename", renames: true, do: []step{
			add("usr/bin/tool", "x"), chmod("usr/bin/suid", 0o755), write("usr/new", "x"), remove("usr/lib/lib.so"), remove("usr/share/doc/x"), chown("usr/share/doc", 33, 33),
			rename("usr", "usr2"),
		}},
		{name: "rename twice", renames: true, do: []step{rename("usr", "usr2"), rename("usr2", "etc/usr3")}},
		{name: "rename and back", renames: true, do: []step{rename("usr", "usr2"), rename("usr2", "usr")}},
		{name: "rename inside a renamed directory", renames: true, do: []step{rename("usr", "u"), rename("u/share", "u/s"), rename("u/s/doc", "u/d"), add("u/d/x/readme", "x"), remove("u/d/y/readme")}},
		{name: "rename inside, then outside", renames: true, do: []step{rename("usr/share/doc", "usr/d"), rename("usr", "u"), rename("u/d", "d")}},
		{name: "rename into a renamed directory", renames: true, do: []step{rename("usr", "u"), rename("etc/conf.d", "u/conf.d"), rename("u/conf.d/deep", "u/bin/deep"), remove("u/conf.d/a")}},
		{name: "rename, then a new one at the old name", renames: true, do: []step{rename("etc", "etc2"), mkdir("etc"), write("etc/passwd", "new")}},
		{name: "rename onto a removed one", renames: true, do: []step{remove("etc"), rename("usr", "etc"), write("etc/passwd", "x")}, items1: []string{
			"C etc", "E etc gone: conf.d empty", "A etc/bin", "A etc/bin/cap", "A etc/bin/suid", "A etc/bin/tool", "A etc/lib", "A etc/lib/lib.so", "C etc/passwd",
			"A etc/share", "A etc/share/doc", "A etc/share/doc/x", "A etc/share/doc/x/readme", "A etc/share/doc/y", "A etc/share/doc/y/readme", "D usr",
		}},
		{name: "rename onto an empty one", renames: true, do: []step{rename("usr", "void")}},
		{name: "rename onto one of the same children", renames: true, do: []step{remove("usr/share/doc/x"), rename("usr/share/doc/y", "usr/share/doc/x")}, items1: []string{
			"C usr", "C usr/share", "C usr/share/doc", "C usr/share/doc/x", "E usr/share/doc/x", "C usr/share/doc/x/readme", "D usr/share/doc/y",
		}},
		{name: "exchange directories", renames: true, do: []step{rename("etc", "tmp"), rename("usr", "etc"), rename("tmp", "usr"), write("usr/passwd", "x"), write("etc/bin/tool", "y")}},
		{name: "rename with hard links", renames: true, do: []step{rename("links", "etc/links"), link("etc/links/one", "etc/links/four"), remove("etc/links/two")}},
		{name: "rename of an opaque directory", renames: true, do: []step{remove("etc/conf.d"), mkdir("etc/conf.d"), write("etc/conf.d/a", "new"), rename("etc/conf.d", "etc/c"), rename("etc", "e")}},
		{name: "rename with a renamed file", renames: true, do: []step{rename("usr/bin/tool", "usr/bin/t"), rename("usr", "u"), rename("u/bin", "u/b"), rename("u/b/t", "u/t"), rename("top", "u/top")}},
		{name: "rename of a new directory with an old one", renames: true, do: []step{mkdir("new"), rename("usr", "new/usr"), rename("new", "new2"), remove("new2/usr/lib")}},
		{name: "remove a renamed directory", renames: true, do: []step{rename("usr", "u"), remove("u")}},
		{name: "directory over a file", renames: true, do: []step{remove("top"), rename("etc", "top")}},
		{name: "odd names", renames: true, do: []step{rename("odd", "od\nd"), rename("usr", "\xff"), add("\xff/bin/tool", "x"), rename("\xff/share", strings.Repeat("d", 255))}},
		{name: "many levels", renames: true, do: []step{func(o fsop.Ops) error {
			at := "etc"
			for i := range 12 {
				to := fmt.Sprintf("d%d", i)
				if err := fsop.All(func() error { return o.Mkdir(to) }, func() error { return o.Rename(at, to+"/x") }); err != nil {
					return err
				}
				at = to
			}
			return nil
		}}},
	}
}

// oneLayer and threeLayers are images with the same view but for the third's
// additions.
func oneLayer(o fsop.Ops) error { return fsop.MakeImage(o) }

// upperLayers makes what the layers of an image hold beside files: whiteouts,
// opaque directories, types that change.
func upperLayers() []func(o fsop.Ops) error {
	whiteout := func(o fsop.Ops, p string) func() error { return func() error { return o.Mknod(p, unix.S_IFCHR, 0, 0) } }
	opaque := func(o fsop.Ops, p string) func() error {
		return func() error { // whoever mounts it
			return fsop.All(
				func() error { return o.SetXattr(p, "trusted.overlay.opaque", "y") },
				func() error { return o.SetXattr(p, "user.overlay.opaque", "y") })
		}
	}
	do := func(s step, o fsop.Ops) func() error { return func() error { return s(o) } }
	return []func(o fsop.Ops) error{
		oneLayer,
		func(o fsop.Ops) error {
			return fsop.All(
				do(mkdir("usr"), o), do(mkdir("usr/share"), o), do(setxattr("usr/share", "user.dir", "again"), o), do(mkdir("usr/share/doc"), o), do(mkdir("usr/share/doc/z"), o),
				do(write("usr/share/doc/z/readme", "z"), o), do(mkdir("etc"), o), whiteout(o, "etc/empty"), do(mkdir("etc/conf.d"), o), opaque(o, "etc/conf.d"),
				do(write("etc/conf.d/a", "a of the second layer"), o), do(mkdir("etc/conf.d/deep"), o), do(write("etc/conf.d/deep/file", "deep"), o), whiteout(o, "void"),
			)
		},
		func(o fsop.Ops) error {
			return fsop.All(
				do(mkdir("void"), o), do(write("etc-file", "x"), o), do(mkdir("etc"), o), do(write("etc/empty", ""), o), do(mkdir("etc/conf.d"), o),
				do(write("etc/conf.d/b", "b of the third layer"), o), do(mkdir("etc/conf.d/deep"), o), do(mkdir("etc/conf.d/deep/er"), o), do(write("etc/conf.d/deep/er/file", "x"), o),
				do(mkdir("usr"), o), do(mkdir("usr/bin"), o), do(write("usr/bin/tool", "tool of the third layer"), o), do(chmod("usr/bin/tool", 0o755), o),
			)
		},
	}
}

// TestForms does every change in every variant, on an image of one layer and
// on one of three: the change, applied to the image, gives what the container
// saw.
func TestForms(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant, dir string) {
		for layers, lowers := range map[string][]string{
			"1 layer":  image(t, place(t, dir, "one"), oneLayer),
			"3 layers": image(t, place(t, dir, "three"), upperLayers()...),
		} {
			for kind, forms := range map[string][]form{"files": fileForms(), "trees": treeForms()} {
				for _, f := range forms {
					if f.renames && strings.Contains(v.options, "redirect_dir=nofollow") {
						continue // the kernel refuses: TestNoRedirects
					}
					t.Run(layers+"/"+kind+"/"+f.name, func(t *testing.T) {
						c := start(t, place(t, dir, layers+kind+f.name), v, lowers)
						for i, s := range f.do {
							require.NoError(t, s(c.ops), "step %d", i)
						}
						if layers == "1 layer" && f.items1 != nil {
							f.items = f.items1
						}
						if f.items != nil {
							got := items(t, c.layer())
							if v.name != "metacopy" {
								got, f.items = plain(got), plain(f.items)
							}
							assert.Equal(t, f.items, append([]string{}, got...))
						}
						c.check()
					})
				}
			}
		}
	})
}

// plain leaves out what depends on metacopy.
func plain(items []string) []string {
	out := make([]string, len(items))
	for i, s := range items {
		out[i] = strings.TrimSuffix(s, " (metadata)")
	}
	return out
}

// TestNoRedirects shows that leaving out renames without redirect_dir leaves
// out nothing that can happen.
func TestNoRedirects(t *testing.T) {
	eachVariant(t, func(t *testing.T, v variant, dir string) {
		if !strings.Contains(v.options, "redirect_dir=nofollow") {
			return
		}
		c := start(t, dir, v, image(t, place(t, dir, "image"), oneLayer))
		require.ErrorIs(t, c.ops.Rename("usr", "usr2"), unix.EXDEV)
		c.check()
	})
}
