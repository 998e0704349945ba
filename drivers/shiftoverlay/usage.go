package shiftoverlay

import (
	"context"
	"fmt"

	"github.com/containers/storage/pkg/directory"

	"github.com/shiftoverlay/shiftoverlay/internal/writeback"
)

// ReadWriteDiskUsage implements graphdriver.Driver: what the layer's upper
// takes. A project quota of the file system knows; without one, the sizes of
// the files are added up, and a file of which the upper holds the metadata
// only counts as an inode without size.
func (d *Driver) ReadWriteDiskUsage(id string) (*directory.DiskUsage, error) {
	u, err := d.Driver.ReadWriteDiskUsage(id)
	if err != nil || d.shifts == nil {
		return u, err
	}
	p, err := d.paths(id)
	if err != nil {
		return nil, err
	}
	apparent, err := directory.Usage(p.upper)
	if err != nil {
		return nil, fmt.Errorf("disk usage of layer %s: %w", id, err)
	}
	if *u != *apparent {
		return u, nil // the quota's answer
	}
	err = writeback.Scan(context.Background(), writeback.Layer{Upper: p.upper}, func(it *writeback.Item) error {
		if it.MetadataOnly && it.LinkTo == "" {
			u.Size -= it.Entry.Stat.Size
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("disk usage of layer %s: %w", id, err)
	}
	return u, nil
}
