package erofs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// drawer draws trees. Names are few, so that layers meet.
type drawer struct {
	*rapid.T
	nodes  []fstree.Node
	linked []string // what hard links may lead to
	left   int      // how many nodes there may still be
}

var (
	drawNames = []string{
		"a", "b", "c", "d", "!", "..x", "\xff", "new\nline", strings.Repeat("n", nameMax), strings.Repeat("m", 200), "e", "f", "g", "h", "i", "j",
	}
	drawIDs    = []int{0, 0, 0, 1, 99, 999, 1000, 65534, 65535, 70000, 1 << 31, 1<<32 - 2}
	drawXattrs = []fstree.Attr{
		fstree.Xattr(label, "system_u:object_r:bin_t:s0\x00"), fstree.Xattr(label, "system_u:object_r:etc_t:s0\x00"), fstree.Xattr(fileCap, fstree.CapV2()),
		fstree.Xattr(fileCap, fstree.CapV3(500)), fstree.Xattr(fileCap, fstree.CapV3(5000)), fstree.Xattr(acl, fstree.ACL([]uint32{1, 70000}, []uint32{2})),
		fstree.Xattr(acl, fstree.ACL(nil, []uint32{1000})), fstree.Xattr("trusted.t", strings.Repeat("t", 700)), fstree.Xattr("trusted.overlay.origin", "o"),
		fstree.Xattr("trusted.overlay.overlay.opaque", "y"), fstree.Xattr("security.ima", "\x03"), fstree.Xattr("trusted.overlay.no", ""),
	}
	drawUserXattrs = []fstree.Attr{fstree.Xattr("user.u", ""), fstree.Xattr("user.overlay.opaque", "y"), fstree.Xattr("user.long", strings.Repeat("u", 1500))}
)

// attrs draws owner, mode, time and attributes.
func (d *drawer) attrs(plain bool) []fstree.Attr {
	id := func() int { return rapid.SampledFrom(drawIDs).Draw(d.T, "id") }
	out := []fstree.Attr{fstree.Owner(id(), id())}
	if plain {
		out = append(out, fstree.Mode(uint32(rapid.SampledFrom([]int{0o644, 0o755, 0, 0o7777, 0o4755, 0o2711, 0o1777}).Draw(d.T, "mode"))))
	}
	if rapid.IntRange(0, 4).Draw(d.T, "time") == 0 {
		out = append(out, fstree.Time(rapid.Int64Range(-1<<31, 1<<33).Draw(d.T, "seconds"), rapid.Int64Range(0, 999999999).Draw(d.T, "ns")))
	}
	from := drawXattrs
	if plain {
		from = slices.Concat(from, drawUserXattrs)
	}
	return append(out, rapid.SliceOfN(rapid.SampledFrom(from), 0, 3).Draw(d.T, "attributes")...)
}

// directory draws what is in a directory; prefix is its path with a slash.
func (d *drawer) directory(prefix string, depth, layer int) {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom(drawNames), 0, 9, rapid.ID[string]).Draw(d.T, "names")
	for _, n := range names {
		if d.left--; d.left < 0 {
			return
		}
		p := prefix + n
		switch rapid.SampledFrom([]string{"file", "file", "file", "dir", "dir", "empty", "link", "hard", "dev", "fifo", "whiteout", "opaque", "sparse"}).Draw(d.T, "type") {
		case "file":
			d.add(p, fstree.File(p, p, d.attrs(true)...))
		case "empty":
			d.add(p, fstree.File(p, "", d.attrs(true)...))
		case "sparse":
			d.add(p, fstree.Sparse(p, rapid.Int64Range(1, 1<<41).Draw(d.T, "size"), nil, d.attrs(true)...))
		case "link":
			target := strings.Repeat("t", rapid.SampledFrom([]int{1, 50, 3900, 3990, 4030, 4032, 4095}).Draw(d.T, "target"))
			d.nodes = append(d.nodes, fstree.Symlink(p, target, symlinkAttrs(d.attrs(false))...))
		case "dev":
			major, minor := rapid.Uint32Range(0, 1<<12-1).Draw(d.T, "major"), rapid.Uint32Range(1, 1<<20-1).Draw(d.T, "minor")
			d.add(p, fstree.Device(p, uint32(rapid.SampledFrom([]int{unix.S_IFCHR, unix.S_IFBLK}).Draw(d.T, "kind")), major, minor, symlinkAttrs(d.attrs(false))...))
		case "fifo":
			d.add(p, fstree.Fifo(p, symlinkAttrs(d.attrs(false))...))
		case "hard":
			if len(d.linked) > 0 {
				d.nodes = append(d.nodes, fstree.Link(p, rapid.SampledFrom(d.linked).Draw(d.T, "link")))
			}
		case "whiteout":
			d.nodes = append(d.nodes, fstree.Whiteout(p))
		case "dir", "opaque":
			attrs := d.attrs(true)
			if rapid.Bool().Draw(d.T, "default ACL") {
				attrs = append(attrs, fstree.Xattr(aclDef, fstree.ACL([]uint32{7}, nil)))
			}
			if layer > 0 && rapid.Bool().Draw(d.T, "opaque") {
				attrs = append(attrs, fstree.Opaque())
			}
			d.nodes = append(d.nodes, fstree.Dir(p, attrs...))
			if depth > 0 {
				d.directory(p+"/", depth-1, layer)
			}
		}
	}
}

func (d *drawer) add(p string, n fstree.Node) {
	d.nodes = append(d.nodes, n)
	d.linked = append(d.linked, p)
}

// symlinkAttrs is what is allowed on everything.
func symlinkAttrs(list []fstree.Attr) []fstree.Attr { return list[:1] }

// TestRandomTrees has all judges look at the images of random chains under
// random mappings.
func TestRandomTrees(t *testing.T) {
	testutil.RequireRoot(t)
	needFsck(t)
	place := testutil.LoopFS(t, "ext4", 512<<20)
	mappings := []string{"0:2147483647:65536", "0:100000:1000", "0:1:1000,1000:0:1,1001:1001:64535", "1:200000:70000", "0:0:4294967295", "5:0:1,0:70000:5"}
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		var trees [][]fstree.Node
		for layer := range rapid.IntRange(1, 3).Draw(rt, "layers") {
			d := drawer{T: rt, left: 60}
			d.nodes = []fstree.Node{fstree.Dir(".", d.attrs(true)...)}
			d.directory("", 3, layer)
			trees = append(trees, d.nodes)
		}
		s := newShift(t, rapid.SampledFrom(mappings).Draw(rt, "mapping"), rapid.SampledFrom([]idshift.Unmapped{idshift.Overflow, idshift.Refuse}).Draw(rt, "policy"))
		n++
		dir := filepath.Join(place, fmt.Sprint(n))
		require.NoError(rt, os.Mkdir(dir, 0o755))
		judge(rt, dir, layersOf(t, dir, trees), s)
		require.NoError(rt, os.RemoveAll(dir))
	})
}
