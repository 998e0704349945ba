package referee

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
	"golang.org/x/sys/unix"
)

// Names of the attributes in a Difference. An extended attribute is
// AttrXattr, a space, and its name.
const (
	AttrPresence = "presence"
	AttrType     = "type"
	AttrMode     = "mode"
	AttrUID      = "uid"
	AttrGID      = "gid"
	AttrSize     = "size"
	AttrMtime    = "mtime"
	AttrTarget   = "target"
	AttrRdev     = "rdev"
	AttrNlink    = "nlink"
	AttrLinks    = "links"
	AttrXattr    = "xattr"
	AttrContent  = "content"
)

// Absent is the value of a path or an attribute that one tree does not have.
const Absent = "(absent)"

// Difference is one attribute of one path that two trees do not agree on. The
// values are text for people; their form may change.
type Difference struct {
	Path      string `json:"path"` // quoted as by strconv.Quote where it holds anything unprintable
	Attribute string `json:"attribute"`
	A         string `json:"a"`
	B         string `json:"b"`
}

// String gives the difference in one line.
func (d Difference) String() string {
	return fmt.Sprintf("%s: %s: %s != %s", d.Path, d.Attribute, d.A, d.B)
}

// Compare lists the differences of two trees, sorted by path, nil where there
// are none. It does not change the trees. The value of a POSIX ACL's user or
// group that the mapping of a mount does not have is shown as 4294967295 by
// the kernel, while a shifted tree stores the overflow id: both are one.
func Compare(a, b *Tree, o Options) []Difference {
	c := comparison{options: o}
	i, j := 0, 0
	for i < len(a.nodes) || j < len(b.nodes) {
		switch order := nextPath(a, b, i, j); {
		case order < 0:
			c.add(&a.nodes[i], AttrPresence, typeName(a.nodes[i].Mode), Absent)
			i++
		case order > 0:
			c.add(&b.nodes[j], AttrPresence, Absent, typeName(b.nodes[j].Mode))
			j++
		default:
			c.nodes(&a.nodes[i], &b.nodes[j])
			i++
			j++
		}
	}
	return c.found
}

func nextPath(a, b *Tree, i, j int) int {
	switch {
	case i == len(a.nodes):
		return 1
	case j == len(b.nodes):
		return -1
	}
	return cmp.Compare(a.nodes[i].Path, b.nodes[j].Path)
}

type comparison struct {
	options Options
	found   []Difference
}

func (c *comparison) add(n *Node, attribute, a, b string) {
	c.found = append(c.found, Difference{Path: quote(n.Path), Attribute: attribute, A: a, B: b})
}

// nodes compares one path of both trees.
func (c *comparison) nodes(a, b *Node) {
	typeA, typeB := a.Mode&unix.S_IFMT, b.Mode&unix.S_IFMT
	if typeA != typeB {
		c.add(a, AttrType, typeName(a.Mode), typeName(b.Mode))
	}
	if a.Mode&^unix.S_IFMT != b.Mode&^unix.S_IFMT {
		c.add(a, AttrMode, fmt.Sprintf("%04o", a.Mode&^unix.S_IFMT), fmt.Sprintf("%04o", b.Mode&^unix.S_IFMT))
	}
	number(c, a, AttrUID, a.UID, b.UID)
	number(c, a, AttrGID, a.GID, b.GID)
	if a.Mtime != b.Mtime && a.Path != RootPath {
		c.add(a, AttrMtime, timeText(a.Mtime), timeText(b.Mtime))
	}
	c.xattrs(a, b)
	if typeA != typeB {
		return
	}
	number(c, a, AttrSize, a.Size, b.Size)
	if a.Target != b.Target {
		c.add(a, AttrTarget, quote(a.Target), quote(b.Target))
	}
	if a.Rdev != b.Rdev {
		c.add(a, AttrRdev, deviceText(a.Rdev), deviceText(b.Rdev))
	}
	c.links(a, b)
	if c.options.Content && typeA == unix.S_IFREG {
		if x, y := contentText(a), contentText(b); x != y {
			c.add(a, AttrContent, x, y)
		}
	}
}

func number[T uint32 | int64 | uint64](c *comparison, n *Node, attribute string, a, b T) {
	if a != b {
		c.add(n, attribute, fmt.Sprint(a), fmt.Sprint(b))
	}
}

// links compares hard links: the count for each path, the set of paths once
// for each pair of groups, at its first common path.
func (c *comparison) links(a, b *Node) {
	if a.IsDir() {
		return
	}
	la, lb := a.Links(), b.Links()
	if c.options.MergedNlink {
		number(c, a, AttrNlink, uint64(len(la)), uint64(len(lb)))
	} else {
		number(c, a, AttrNlink, a.Nlink, b.Nlink)
	}
	if !slices.Equal(la, lb) && firstCommon(la, lb) == a.Path {
		c.add(a, AttrLinks, pathList(la), pathList(lb))
	}
}

// firstCommon finds the first path that is in both sorted lists.
func firstCommon(a, b []string) string {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			return a[i]
		case a[i] < b[j]:
			i++
		default:
			j++
		}
	}
	return ""
}

func (c *comparison) xattrs(a, b *Node) {
	for i, j := 0, 0; i < len(a.Xattrs) || j < len(b.Xattrs); {
		switch {
		case j == len(b.Xattrs) || i < len(a.Xattrs) && a.Xattrs[i].Name < b.Xattrs[j].Name:
			x := a.Xattrs[i]
			c.add(a, AttrXattr+" "+quote(x.Name), valueText(x.Value), Absent)
			i++
		case i == len(a.Xattrs) || a.Xattrs[i].Name > b.Xattrs[j].Name:
			x := b.Xattrs[j]
			c.add(b, AttrXattr+" "+quote(x.Name), Absent, valueText(x.Value))
			j++
		default:
			x, y := a.Xattrs[i], b.Xattrs[j]
			if !sameValue(x.Name, x.Value, y.Value) {
				c.add(a, AttrXattr+" "+quote(x.Name), valueText(x.Value), valueText(y.Value))
			}
			i++
			j++
		}
	}
}

func sameValue(name string, a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if name != "system.posix_acl_access" && name != "system.posix_acl_default" {
		return false
	}
	return bytes.Equal(overflowACL(a), overflowACL(b))
}

// overflowACL replaces the id -1 of named users and groups by the overflow
// id. Layout: include/uapi/linux/posix_acl_xattr.h.
func overflowACL(value []byte) []byte {
	const header, entry, tagUser, tagGroup = 4, 8, 2, 8
	out := bytes.Clone(value)
	for at := header; at+entry <= len(out); at += entry {
		tag := binary.LittleEndian.Uint16(out[at:])
		id := out[at+4 : at+entry]
		if (tag == tagUser || tag == tagGroup) && binary.LittleEndian.Uint32(id) == ^uint32(0) {
			binary.LittleEndian.PutUint32(id, idshift.OverflowID)
		}
	}
	return out
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("type %#o", mode&unix.S_IFMT)
}

func timeText(t unix.Timespec) string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

func deviceText(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

func contentText(n *Node) string {
	if n.Unknown {
		return "(not read)"
	}
	return "sha256 of the non-zero blocks " + hex.EncodeToString(n.Digest[:])
}

// valueText shows a value as text where it is text, and else in hexadecimal.
func valueText(v []byte) string {
	s := strconv.Quote(string(v))
	if strings.Contains(strings.TrimSuffix(s, `\x00"`), `\x`) || strings.Contains(s, `\u`) {
		s = "0x" + hex.EncodeToString(v)
	}
	const limit = 200
	if len(s) > limit {
		return fmt.Sprintf("%s... (%d bytes, sha256 %x)", s[:limit], len(v), sha256.Sum256(v))
	}
	return s
}

func quote(s string) string {
	if q := strconv.Quote(s); len(q) != len(s)+2 || s == "" {
		return q
	}
	return s
}

func pathList(paths []string) string {
	const limit = 20
	shown := make([]string, 0, limit)
	for _, p := range paths[:min(limit, len(paths))] {
		shown = append(shown, quote(p))
	}
	text := strings.Join(shown, " = ")
	if rest := len(paths) - len(shown); rest > 0 {
		text += fmt.Sprintf(" and %d more", rest)
	}
	return text
}
