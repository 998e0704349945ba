package shiftoverlay

import (
	"context"
	"strconv"

	"github.com/docker/go-units"
	"github.com/sirupsen/logrus"
)

// Status implements graphdriver.Driver: overlay's rows, and which engine
// shifts and why, and what the cache holds.
func (d *Driver) Status() [][2]string {
	rows := d.Driver.Status()
	if d.shifts == nil {
		return append(rows, [2]string{"Shift engine", "mount_program"},
			[2]string{"Shift engine reason", "storage.conf or the store's history asks for a mount program"})
	}
	for i := range rows {
		switch rows[i][0] {
		case "Native Overlay Diff", "Supports shifting": // both done here, whatever the mount options
			rows[i][1] = "true"
		}
	}
	name, reason := d.shifts.Engine()
	rows = append(rows, [2]string{"Shift engine", name}, [2]string{"Shift engine reason", reason})
	entries, err := d.cache.List(context.Background())
	if err != nil {
		logrus.Debugf("shiftoverlay: list the cache: %v", err)
	}
	var size int64
	for _, e := range entries {
		size += e.Bytes
	}
	return append(rows,
		[2]string{"Shift cache entries", strconv.Itoa(len(entries))},
		[2]string{"Shift cache size", units.BytesSize(float64(size))},
		[2]string{"Shift cache path", d.home + cacheSuffix},
	)
}
