package erofs

import (
	"context"
	"fmt"
	"os"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Build writes the template of a chain of layer folders, uppermost first, to
// f, an empty file open for reading and writing: the tree that overlay would
// show (idshift.Walk), with the owners that it has. No data of regular files
// is read.
//
// All extended attributes are kept but those that a shift always drops
// (idshift.Shift.Xattr); an attribute that several inodes have is written
// once. Names with the same idshift.LinkKey are one inode, whose number of
// links is that of its names in the merged tree.
//
// The result depends on nothing but the chain's content and the layout. What
// cannot be represented is an *UnfitError; the errors of the walk are those of
// idshift.Walk, and a cancelled ctx ends Build with context.Cause(ctx). After
// an error f holds nothing of worth. Memory grows with the number of names,
// about 100 bytes each besides their attributes.
func Build(ctx context.Context, f *os.File, chain []string, o Options) (Info, error) {
	if o.Layout != DataOnly && o.Layout != Opaque {
		return Info{}, fmt.Errorf("build EROFS image: unknown layout %s", o.Layout)
	}
	c, err := newCollector(o.Layout)
	if err != nil {
		return Info{}, err
	}
	if err := idshift.Walk(ctx, chain, idshift.WalkOptions{Workers: o.Workers, Done: o.Done}, c); err != nil {
		return Info{}, fmt.Errorf("build EROFS image: %w", err)
	}
	p, err := c.place(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("build EROFS image: %w", err)
	}
	return p.write(ctx, f)
}
