package writeback

import (
	"bytes"
	"context"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Compare is Scan against any other layer than the one directly below: it
// reads all that both layers show, so its cost follows the size of the images.
// Deleted paths come last. Two files are the same if they are one inode, or
// agree in everything but their content and inode number, as everywhere in
// this field.
func Compare(ctx context.Context, l, old Layer, yield func(*Item) error) error {
	c := comparison{old: make(map[string]known), need: make(map[string]bool)}
	old.Whole, l.Whole = true, true
	err := Scan(ctx, old, func(it *Item) error {
		c.old[it.Path] = known{Entry: it.Entry, layer: folder(old, it)}
		return nil
	})
	if err != nil {
		return err
	}
	here := make(map[string]bool) // true for directories
	err = Scan(ctx, l, func(it *Item) error {
		here[it.Path] = it.Entry.IsDir()
		if o, ok := c.old[it.Path]; !ok || !o.same(known{Entry: it.Entry, layer: folder(l, it)}) {
			c.mark(it.Path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	gone := c.gone(here)
	err = scanSome(ctx, l, func(p string) bool { return c.need[p] }, func(it *Item) error {
		if _, ok := c.old[it.Path]; ok {
			it.Kind = Modified
		}
		return yield(it)
	})
	for _, p := range gone {
		if err != nil {
			break
		}
		err = yield(&Item{Kind: Deleted, Path: p})
	}
	return err
}

// folder returns the layer's folder that an item is from.
func folder(l Layer, it *Item) string {
	if it.InUpper {
		return l.Upper
	}
	return l.Lowers[it.Entry.Layer]
}

// known is what is remembered of a path.
type known struct {
	idshift.Entry
	layer string
}

// same tells whether two inodes are taken for the same.
func (a known) same(b known) bool {
	s, t := &a.Stat, &b.Stat
	if a.layer == b.layer && s.Dev == t.Dev && s.Ino == t.Ino {
		return true
	}
	if s.Mode != t.Mode || s.Uid != t.Uid || s.Gid != t.Gid || s.Rdev != t.Rdev || a.Target != b.Target {
		return false
	}
	if s.Mode&unix.S_IFMT != unix.S_IFDIR && (s.Size != t.Size || s.Mtim != t.Mtim) {
		return false
	}
	byName := func(x, y idshift.Xattr) int { return strings.Compare(x.Name, y.Name) }
	return slices.EqualFunc(slices.SortedFunc(slices.Values(a.Xattrs), byName), slices.SortedFunc(slices.Values(b.Xattrs), byName),
		func(x, y idshift.Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) })
}

// comparison is the state of one Compare.
type comparison struct {
	old  map[string]known
	need map[string]bool // what is to be yielded: changes and the directories above them
}

// mark notes a change and the directories above it.
func (c *comparison) mark(p string) {
	for ; p != "." && !c.need[p]; p = path.Dir(p) {
		c.need[p] = true
	}
}

// gone lists, sorted, what is there no more, without what is in a directory
// that is gone itself or has become something else.
func (c *comparison) gone(here map[string]bool) []string {
	var out []string
	for p := range c.old {
		if _, ok := here[p]; ok || p == "." {
			continue
		}
		parent := path.Dir(p)
		if isDir, ok := here[parent]; parent != "." && (!ok || !isDir) {
			continue
		}
		c.mark(parent)
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}
