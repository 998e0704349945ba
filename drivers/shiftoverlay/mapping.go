package shiftoverlay

import (
	"fmt"
	"math"
	"strings"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/idtools"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// everyID maps all IDs to themselves; 4294967295 is no ID.
var everyID = idshift.Extents{{ContainerID: 0, HostID: 0, Size: math.MaxUint32}}

// mappingOf reads the mapping of a mount, if one is given. A side without
// extents maps every ID to itself.
func mappingOf(o graphdriver.MountOpts) (m idshift.Mapping, given bool, err error) {
	if len(o.UidMaps) == 0 && len(o.GidMaps) == 0 {
		return idshift.Mapping{}, false, nil
	}
	uids, err := extents(o.UidMaps)
	if err != nil {
		return idshift.Mapping{}, false, err
	}
	gids, err := extents(o.GidMaps)
	if err != nil {
		return idshift.Mapping{}, false, err
	}
	m, err = idshift.NewMapping(uids, gids)
	return m, true, err
}

// extents translates the storage library's form of one side of a mapping.
func extents(maps []idtools.IDMap) (idshift.Extents, error) {
	if len(maps) == 0 {
		return everyID, nil
	}
	out := make(idshift.Extents, len(maps))
	for i, m := range maps {
		for _, n := range []int{m.ContainerID, m.HostID, m.Size} {
			if n < 0 || n > math.MaxUint32 {
				return nil, fmt.Errorf("mapping %d:%d:%d: %d is no 32-bit ID", m.ContainerID, m.HostID, m.Size, n)
			}
		}
		out[i] = idshift.Extent{ContainerID: uint32(m.ContainerID), HostID: uint32(m.HostID), Size: uint32(m.Size)}
	}
	return out, nil
}

// idMaps is the way back.
func idMaps(e idshift.Extents) []idtools.IDMap {
	out := make([]idtools.IDMap, len(e))
	for i, x := range e {
		out[i] = idtools.IDMap{ContainerID: int(x.ContainerID), HostID: int(x.HostID), Size: int(x.Size)}
	}
	return out
}

// isPrivate tells whether a mount option is for this driver.
func isPrivate(option string) bool { return strings.HasPrefix(option, privatePrefix) }
