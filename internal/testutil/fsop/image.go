package fsop

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// nameMax is the length of the longest file name, in bytes.
const nameMax = 255

// MakeImage fills an empty folder with a small image that has one of
// everything: the top level has the directories etc, usr, links, data and odd.
// Hard links are within one directory, because a renamed directory, written
// back, cannot share inodes with the layers below.
func MakeImage(o Ops) error {
	files := map[string]string{
		"etc/passwd": "root:x:0:0\n", "etc/empty": "", "etc/conf.d/a": "conf a", "etc/conf.d/b": "conf b",
		"etc/conf.d/deep/er/file": "deep", "usr/bin/tool": strings.Repeat("tool", 3000), "usr/bin/suid": "suid",
		"usr/bin/cap": "cap", "usr/lib/lib.so": strings.Repeat("lib", 5000), "usr/share/doc/x/readme": "read me",
		"usr/share/doc/y/readme": "read me too", "data/acl": "acl", "data/xattr": "xattr", "data/user": "user",
		"links/one": "linked", "odd/sp ace": "space", "odd/new\nline": "newline", "odd/\xff\xfe": "bytes",
		"odd/" + strings.Repeat("n", nameMax): "long", "odd/ü": "umlaut", "top": "top",
	}
	for _, d := range []string{
		"etc", "etc/conf.d", "etc/conf.d/deep", "etc/conf.d/deep/er", "usr", "usr/bin", "usr/lib",
		"usr/share", "usr/share/doc", "usr/share/doc/x", "usr/share/doc/y", "links", "data", "data/private", "data/sticky", "odd", "void",
	} {
		if err := o.Mkdir(d); err != nil {
			return err
		}
	}
	for _, f := range sortedKeys(files) {
		if err := o.Write(f, files[f]); err != nil {
			return err
		}
	}
	err := All(
		func() error { return o.Link("links/one", "links/two") },
		func() error { return o.Link("links/one", "links/three") },
		func() error { return o.Symlink("etc/passwd", "abs") },
		func() error { return o.Symlink("../nowhere", "links/dangling") },
		func() error { return o.Symlink("/usr/share", "data/tolink") },
		func() error { return o.Mknod("data/fifo", unix.S_IFIFO|0o640, 0, 0) },
		func() error { return o.Mknod("data/null", unix.S_IFCHR|0o666, 1, 3) },
		func() error { return o.Mknod("data/disk", unix.S_IFBLK|0o660, 7, 70000) },
		func() error { return o.Truncate("data/acl", 300000) },
		func() error { return o.Chown("data/user", 1000, 1000) },
		func() error { return o.Chown("data/private", 33, 33) },
		func() error { return o.Chown("links/dangling", 1000, 33) },
		func() error { return o.Chown("usr/bin/suid", 1000, 0) },
		func() error { return o.Chmod("usr/bin/suid", 0o4755) },
		func() error { return o.Chmod("usr/bin/tool", 0o755) },
		func() error { return o.Chmod("data/sticky", 0o1777) },
		func() error { return o.Chmod("data/private", 0o2700) },
		func() error { return o.SetCap("usr/bin/cap", 0x400) },
		func() error { return o.SetACL("data/acl", idshift.ACLAccess, 1000, 33) },
		func() error { return o.SetACL("usr/lib", idshift.ACLAccess, 33, 1000) },
		func() error { return o.SetXattr("data/xattr", "user.one", "1\x002") },
		func() error { return o.SetXattr("usr/share", "user.dir", "of a directory") },
	)
	if err != nil {
		return err
	}
	return oldTimes(o)
}

// oldTimes gives everything a time of its own in the past.
func oldTimes(o Ops) error {
	paths, err := Paths(o.Root)
	if err != nil {
		return err
	}
	slices.Reverse(paths)
	for i, p := range paths {
		if err := o.Times(p, time.Unix(1_000_000_000+int64(i)*1000, int64(i)*1_000_001)); err != nil {
			return err
		}
	}
	return nil
}

// Paths lists all paths below a folder, a directory before what is in it,
// names sorted.
func Paths(root string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("list tree: %w", err)
		}
		if p != root {
			out = append(out, strings.TrimPrefix(strings.TrimPrefix(p, root), "/"))
		}
		return nil
	})
	return out, err
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
