package shiftoverlay

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/idtools"
	"golang.org/x/sys/unix"

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

// rootOwner is who owns the root of a container's file system. overlay gives
// the upper's root folder to the container's root user at every mount; the
// image, or the container, may have wanted somebody else.
type rootOwner struct {
	uid, gid         uint32 // wanted, host IDs
	rootUID, rootGID uint32 // what overlay sets
}

// rootOwner finds out who is to own the root folder. first says that the
// layer was never mounted under the mapping, so that its owner is the
// image's. A mapping without a root user is an error.
func (p layerPaths) rootOwner(m idshift.Mapping, first bool) (r rootOwner, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(p.upper, &st); err != nil {
		return r, &os.PathError{Op: "lstat", Path: p.upper, Err: err}
	}
	var ok bool
	if r.rootUID, r.rootGID, ok = m.ToHost(0, 0); !ok {
		return r, fmt.Errorf("the mapping %s has no root user: container ID 0 must have a host ID", m)
	}
	r.uid, r.gid = st.Uid, st.Gid
	if first {
		if r.uid, r.gid, ok = m.ToHost(st.Uid, st.Gid); !ok {
			r.uid, r.gid = r.rootUID, r.rootGID
		}
	}
	return r, nil
}

// own gives the upper to whom it belongs before it is mounted.
func (r rootOwner) own(upper string) error {
	return os.Lchown(upper, int(r.uid), int(r.gid))
}

// restore gives the root folder, mounted as merged, to whom it belongs. Of a
// read-only mount only the upper can be changed: the mount goes on showing the
// container's root user, the next one is right.
func (r rootOwner) restore(merged, upper string) error {
	if r.uid == r.rootUID && r.gid == r.rootGID {
		return nil
	}
	err := os.Lchown(merged, int(r.uid), int(r.gid))
	if errors.Is(err, unix.EROFS) {
		err = os.Lchown(upper, int(r.uid), int(r.gid))
	}
	return err
}
