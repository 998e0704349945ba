package main

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/types"
	"github.com/spf13/pflag"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// mappingFlags are --uidmap and --gidmap.
type mappingFlags struct {
	uidmap, gidmap []string
}

func (f *mappingFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.uidmap, "uidmap", nil, "map user IDs: `CONTAINER:HOST:SIZE` (repeatable)")
	flags.StringArrayVar(&f.gidmap, "gidmap", nil, "map group IDs: `CONTAINER:HOST:SIZE` (repeatable; default: as --uidmap)")
}

// given reports whether any mapping was given.
func (f *mappingFlags) given() bool { return len(f.uidmap)+len(f.gidmap) > 0 }

// mapping parses the flags. Group IDs are mapped as user IDs unless they have
// a mapping of their own.
func (f *mappingFlags) mapping() (idshift.Mapping, error) {
	if len(f.uidmap) == 0 {
		return idshift.Mapping{}, errors.New("no --uidmap given: use for example --uidmap 0:100000:65536")
	}
	uids, err := idshift.ParseExtents(strings.Join(f.uidmap, ","))
	if err != nil {
		return idshift.Mapping{}, fmt.Errorf("parse --uidmap: %w", err)
	}
	gids := uids
	if len(f.gidmap) > 0 {
		if gids, err = idshift.ParseExtents(strings.Join(f.gidmap, ",")); err != nil {
			return idshift.Mapping{}, fmt.Errorf("parse --gidmap: %w", err)
		}
	}
	return idshift.NewMapping(uids, gids)
}

// storeMaps are a mapping's extents in the storage library's type.
func storeMaps(extents idshift.Extents) []idtools.IDMap {
	maps := make([]idtools.IDMap, 0, len(extents))
	for _, e := range extents {
		maps = append(maps, idtools.IDMap{ContainerID: int(e.ContainerID), HostID: int(e.HostID), Size: int(e.Size)})
	}
	return maps
}

// storeMapping is the storage library's form of a mapping; the zero Mapping
// is the host's.
func storeMapping(m idshift.Mapping) types.IDMappingOptions {
	if m.IsZero() {
		return types.IDMappingOptions{HostUIDMapping: true, HostGIDMapping: true}
	}
	return types.IDMappingOptions{UIDMap: storeMaps(m.UIDs), GIDMap: storeMaps(m.GIDs)}
}

// containerMapping is the mapping of a container, zero if it has none.
func containerMapping(c *storage.Container) (m idshift.Mapping, err error) {
	if len(c.UIDMap)+len(c.GIDMap) == 0 {
		return m, nil
	}
	if m.UIDs, err = fromStoreMaps(c.UIDMap); err == nil {
		m.GIDs, err = fromStoreMaps(c.GIDMap)
	}
	if err != nil {
		return idshift.Mapping{}, fmt.Errorf("read mapping of container %s: %w", shortID(c.ID), err)
	}
	return m, nil
}

// fromStoreMaps is the reverse of storeMaps.
func fromStoreMaps(maps []idtools.IDMap) (idshift.Extents, error) {
	extents := make(idshift.Extents, 0, len(maps))
	for _, m := range maps {
		for _, n := range []int{m.ContainerID, m.HostID, m.Size} {
			if n < 0 || int64(n) > math.MaxUint32 {
				return nil, fmt.Errorf("extent %d:%d:%d is out of range", m.ContainerID, m.HostID, m.Size)
			}
		}
		extents = append(extents, idshift.Extent{ContainerID: uint32(m.ContainerID), HostID: uint32(m.HostID), Size: uint32(m.Size)})
	}
	return extents.Normalize()
}
