// Package fstree writes directory trees that tests give as data:
//
//	fstree.Apply(t, dir,
//		fstree.Dir("bin", fstree.Mode(0o1777)),
//		fstree.File("bin/su", "content", fstree.Owner(0, 5), fstree.Mode(0o4755)),
//		fstree.Link("bin/link", "bin/su"),
//	)
//
// Paths are relative to the folder, of any length and any bytes. Each path
// gets a modification time of its own, the same in every run, so that times
// that end up on the wrong file are seen.
package fstree

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Node is one path of a tree, made by one of the functions below.
type Node struct {
	path  string
	make  func(root int, at string) error
	attrs []Attr
	meta  bool // owner, mode, attributes and times are set
}

// Attr changes something of a Node.
type Attr func(*meta)

// meta is what is set after all nodes have been made.
type meta struct {
	uid, gid int
	mode     uint32
	modeSet  bool
	time     unix.Timespec
	xattrs   []xattr
}

type xattr struct {
	name  string
	value []byte
}

// Owner sets user and group. The default is 0:0.
func Owner(uid, gid int) Attr { return func(m *meta) { m.uid, m.gid = uid, gid } }

// Mode sets the permission bits with setuid, setgid and sticky. The default
// is 0755 for directories and 0644 for the rest.
func Mode(mode uint32) Attr { return func(m *meta) { m.mode, m.modeSet = mode, true } }

// Time sets the modification time, in seconds and nanoseconds of Unix time.
func Time(sec, nsec int64) Attr {
	return func(m *meta) { m.time = unix.Timespec{Sec: sec, Nsec: nsec} }
}

// Xattr sets an extended attribute.
func Xattr(name, value string) Attr {
	return func(m *meta) { m.xattrs = append(m.xattrs, xattr{name, []byte(value)}) }
}

// Dir is a directory; one that exists gets the attributes. "." is the root.
func Dir(p string, attrs ...Attr) Node {
	return node(p, attrs, func(_ int, at string) error {
		if err := unix.Mkdir(at, 0o755); err != unix.EEXIST {
			return err
		}
		return nil
	})
}

// File is a regular file.
func File(p, content string, attrs ...Attr) Node {
	return Sparse(p, int64(len(content)), []Data{{0, content}}, attrs...)
}

// Data is a part of a sparse file.
type Data struct {
	Offset  int64
	Content string
}

// Sparse is a regular file of a size in bytes with data at some places.
func Sparse(p string, size int64, data []Data, attrs ...Attr) Node {
	return node(p, attrs, func(_ int, at string) error {
		fd, err := unix.Open(at, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Ftruncate(fd, size); err != nil {
			return err
		}
		for _, d := range data {
			if n, err := unix.Pwrite(fd, []byte(d.Content), d.Offset); err != nil || n != len(d.Content) {
				return fmt.Errorf("write %d bytes: wrote %d: %w", len(d.Content), n, err)
			}
		}
		return nil
	})
}

// Symlink is a symbolic link.
func Symlink(p, target string, attrs ...Attr) Node {
	return node(p, attrs, func(_ int, at string) error { return unix.Symlink(target, at) })
}

// Device is a character (unix.S_IFCHR) or block (unix.S_IFBLK) device.
func Device(p string, typ, major, minor uint32, attrs ...Attr) Node {
	return node(p, attrs, func(_ int, at string) error {
		return unix.Mknod(at, typ|0o644, int(unix.Mkdev(major, minor)))
	})
}

// Fifo is a named pipe.
func Fifo(p string, attrs ...Attr) Node {
	return node(p, attrs, func(_ int, at string) error { return unix.Mknod(at, unix.S_IFIFO|0o644, 0) })
}

// Socket is a socket.
func Socket(p string, attrs ...Attr) Node {
	return node(p, attrs, func(_ int, at string) error { return unix.Mknod(at, unix.S_IFSOCK|0o644, 0) })
}

// Link is a hard link to another path of the tree, which comes before it.
func Link(p, old string) Node {
	return Node{path: p, make: func(root int, at string) error {
		return within(root, old, func(from string) error { return unix.Link(from, at) })
	}}
}

// LinkFrom is a hard link to a path outside of the tree, on the same file
// system.
func LinkFrom(p, file string) Node {
	return Node{path: p, make: func(_ int, at string) error { return unix.Link(file, at) }}
}

// Whiteout is overlay's mark of a deleted name: a character device 0/0
// (overlayfs.rst, section "Whiteouts and opaque directories").
func Whiteout(p string) Node { return Device(p, unix.S_IFCHR, 0, 0) }

// XattrWhiteout is the other form of a whiteout, an empty file with an
// attribute, for directories made with XattrWhiteouts.
func XattrWhiteout(p string) Node { return File(p, "", Xattr("trusted.overlay.whiteout", "")) }

// XattrWhiteouts marks a directory that holds whiteouts of the attribute form.
func XattrWhiteouts() Attr { return Xattr("trusted.overlay.opaque", "x") }

// Opaque marks a directory below which nothing of the lower layers shows.
func Opaque() Attr { return Xattr("trusted.overlay.opaque", "y") }

func node(p string, attrs []Attr, create func(int, string) error) Node {
	return Node{path: p, make: create, attrs: attrs, meta: true}
}

// Apply makes the nodes below root, an existing folder, in the order given;
// missing parents are made. Then it sets owners, modes, attributes and, last,
// times.
func Apply(t testing.TB, root string, nodes ...Node) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("write tree: open %s: %v", root, err)
	}
	defer unix.Close(fd)
	for i, step := range []func(int, *Node) error{
		func(_ int, n *Node) error {
			return within(fd, n.path, func(at string) error { return n.make(fd, at) })
		},
		func(_ int, n *Node) error {
			return within(fd, n.path, func(at string) error { return settle(at, n.resolved(0)) })
		},
		func(j int, n *Node) error {
			return within(fd, n.path, func(at string) error {
				ts := n.resolved(j).time
				return unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
			})
		},
	} {
		for j := range nodes {
			if i > 0 && !nodes[j].meta {
				continue
			}
			if err := step(j, &nodes[j]); err != nil {
				t.Fatalf("write tree %s: step %d of %.300q: %v", root, i+1, nodes[j].path, err)
			}
		}
	}
}

// resolved applies the attributes of the i-th node.
func (n *Node) resolved(i int) meta {
	m := meta{time: unix.Timespec{Sec: 981173106 + int64(i), Nsec: int64(i) * 123456789 % 1e9}}
	for _, a := range n.attrs {
		a(&m)
	}
	return m
}

// settle sets the owner before what giving away would clear, and ACLs, which
// hold a part of the mode, after it.
func settle(at string, m meta) error {
	if err := unix.Lchown(at, m.uid, m.gid); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if m.modeSet {
		if err := unix.Fchmodat(unix.AT_FDCWD, at, m.mode, 0); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	for _, x := range m.xattrs {
		if err := unix.Lsetxattr(at, x.name, x.value, 0); err != nil {
			return fmt.Errorf("setxattr %s: %w", x.name, err)
		}
	}
	return nil
}

// within calls do with a short path to p below the folder root, whatever the
// length of p. The parents of p are made.
func within(root int, p string, do func(at string) error) error {
	fd, err := unix.Openat(root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(fd) }()
	dir, name := path.Split(p)
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if part == "" {
			continue
		}
		if err := unix.Mkdirat(fd, part, 0o755); err != nil && err != unix.EEXIST {
			return err
		}
		next, err := unix.Openat(fd, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_ = unix.Close(fd)
		fd = next
	}
	return do(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
}

// ACL is the value of a POSIX ACL that names users and groups
// (include/uapi/linux/posix_acl_xattr.h).
func ACL(uids, gids []uint32) string {
	const none = ^uint32(0)
	b := binary.LittleEndian.AppendUint32(nil, 2)
	entry := func(tag, perm uint16, ids ...uint32) {
		slices.Sort(ids)
		for _, id := range ids {
			b = binary.LittleEndian.AppendUint16(b, tag)
			b = binary.LittleEndian.AppendUint16(b, perm)
			b = binary.LittleEndian.AppendUint32(b, id)
		}
	}
	entry(0x01, 7, none)
	entry(0x02, 6, slices.Clone(uids)...)
	entry(0x04, 5, none)
	entry(0x08, 4, slices.Clone(gids)...)
	entry(0x10, 7, none)
	entry(0x20, 4, none)
	return string(b)
}

// CapV2 is the value of a file capability without a root user
// (include/uapi/linux/capability.h).
func CapV2() string { return words(0x02000001, 1<<10, 0, 0, 0) }

// CapV3 is the value of a file capability for the namespace whose root is the
// user root.
func CapV3(root uint32) string { return words(0x03000001, 1<<10, 0, 0, 0, root) }

func words(list ...uint32) string {
	var b []byte
	for _, w := range list {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return string(b)
}
