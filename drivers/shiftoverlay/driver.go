package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/drivers/overlay"
	"github.com/containers/storage/pkg/idtools"
	"github.com/sirupsen/logrus"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// driverName is the name in storage.conf and of the folders in the store.
const driverName = "shiftoverlay"

// Driver is the graph driver. The embedded overlay driver is a concrete type,
// so that the optional interfaces that the storage library looks for stay.
// Like every graph driver it relies on the library's locks for calls that
// concern the same layer.
type Driver struct {
	*overlay.Driver
	site
	// mountOptions are those of storage.conf, with which overlay mounts unless
	// the caller of Get has others.
	mountOptions ovl.Options
	late         late
	// bootID and otherHomes, where overlay finds layers of other stores, are what a
	// process that trims the cache is told.
	bootID     string
	otherHomes []string
}

// What the storage library asks of drivers beyond graphdriver.Driver, kept by
// the embedded type or implemented here.
var (
	_ graphdriver.Driver                     = withDeferredRemove(nil, (*overlay.Driver).DeferredRemove)
	_ graphdriver.DriverWithDiffer           = withDeferredRemove(nil, (*overlay.Driver).DeferredRemove)
	_ graphdriver.DiffGetterDriver           = withDeferredRemove(nil, (*overlay.Driver).DeferredRemove)
	_ graphdriver.AdditionalLayerStoreDriver = withDeferredRemove(nil, (*overlay.Driver).DeferredRemove)
	_ graphdriver.LayerIDMapUpdater          = withDeferredRemove(nil, (*overlay.Driver).DeferredRemove)
)

func init() {
	graphdriver.MustRegister(driverName, Init)
}

// String implements graphdriver.Driver. The storage library names the store's
// folders after it.
func (d *Driver) String() string { return driverName }

// SupportsShifting implements graphdriver.LayerIDMapUpdater: true for every
// mapping that the kernel would take, since one engine works everywhere. The
// library then leaves layers as they are and hands the mapping to Get.
func (d *Driver) SupportsShifting(uids, gids []idtools.IDMap) bool {
	if d.shifts == nil {
		return d.Driver.SupportsShifting(uids, gids)
	}
	return true
}

// Get implements graphdriver.Driver. With a mapping the result shows the image
// with shifted owners and the mapping is recorded with the layer. A layer that
// has a record is mounted under it also when no mapping is given, and refused
// under a different one as long as its upper has content.
func (d *Driver) Get(id string, o graphdriver.MountOpts) (string, error) {
	if d.shifts == nil {
		return d.Driver.Get(id, o)
	}
	if len(o.Options) > 0 {
		o.Options = slices.DeleteFunc(slices.Clone(o.Options), isPrivate)
	}
	m, given, err := mappingOf(o)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	byCaller := given
	if err := d.endLate(id); err != nil {
		return "", err
	}
	p, err := d.paths(id)
	if err != nil {
		return "", err
	}
	foreign, err := p.ownsShiftedLower()
	if err != nil {
		return "", err
	}
	if foreign {
		o.DisableShifting = true
		return d.Driver.Get(id, o)
	}
	old, err := readRecord(p.dir)
	if err != nil {
		return "", err
	}
	if old != nil && old.Engine == engineOverlay {
		o.DisableShifting = true
		return d.Driver.Get(id, o)
	}
	if !given && old != nil {
		m, given = old.Mapping, true
	}
	if given && old != nil && !old.Mapping.Equal(m) {
		if err := p.mayChangeMapping(id, old.Mapping, m); err != nil {
			return "", err
		}
	}
	if !given || m.IsIdentity() {
		return d.getPlain(id, p, old, o)
	}
	o.UidMaps, o.GidMaps = idMaps(m.UIDs), idMaps(m.GIDs)
	return d.getShifted(id, p, m, old, o, byCaller)
}

// getPlain mounts a layer as overlay does. A mapping of IDs to themselves is
// no reason to shift: what it leaves out, the kernel shows as the overflow ID
// by itself.
func (d *Driver) getPlain(id string, p layerPaths, old *record, o graphdriver.MountOpts) (string, error) {
	if err := p.link(""); err != nil {
		return "", err
	}
	if old != nil {
		if err := os.Remove(filepath.Join(p.dir, recordName)); err != nil {
			return "", fmt.Errorf("remove mapping record: %w", err)
		}
		failpoint.Hit("record-removed")
		d.releaseOld(id, old, &record{})
	}
	o.DisableShifting = true
	return d.Driver.Get(id, o)
}

// getShifted mounts a layer under a mapping.
func (d *Driver) getShifted(id string, p layerPaths, m idshift.Mapping, old *record, o graphdriver.MountOpts, given bool) (_ string, err error) {
	if id != d.late.doing && mounted(p.merged) {
		if err := d.settleMount(id, p, m); err != nil {
			return "", fmt.Errorf("mount layer %s: %w", id, err)
		}
		// One more user of a mount that is as it is; overlay counts.
		o.DisableShifting = true
		return d.Driver.Get(id, o)
	}
	chain, err := p.chain()
	if err != nil {
		return "", err
	}
	lower, err := d.prepareSoon(id, chain, m, given)
	if errors.Is(err, errLate) {
		if merged, err := d.mountLater(id, p, o); err == nil {
			return merged, nil
		}
		lower, err = d.prepare(context.Background(), id, chain, m)
	}
	if err != nil {
		return "", err
	}
	defer lower.Close()
	root, err := p.rootOwner(m, old == nil || !old.Mapping.Equal(m))
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	if err := d.note(id, p.dir, old, newRecord(m, lower), o.Volatile); err != nil {
		return "", err
	}
	merged, err := d.mountLower(id, p, lower, root, o)
	if err != nil {
		return "", err
	}
	if lower.Ref != (cache.Ref{}) && d.late.doing == "" {
		d.trimSoon()
	}
	failpoint.Hit("shifted-mounted")
	if err := root.restore(merged, p.upper); err != nil {
		return "", errors.Join(err, d.Driver.Put(id))
	}
	return merged, nil
}

// mayChangeMapping refuses to mount an upper with content under a mapping that
// it was not written under: its files would belong to somebody else.
func (p layerPaths) mayChangeMapping(id string, from, to idshift.Mapping) error {
	entries, err := os.ReadDir(p.upper)
	if err != nil {
		return fmt.Errorf("mount layer %s: %w", id, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("mount layer %s: it was written under the mapping %s and cannot be mounted under %s: commit the container and start a new one from the image", id, from, to)
	}
	return nil
}

// Put implements graphdriver.Driver.
func (d *Driver) Put(id string) error {
	if d.shifts != nil {
		if err := d.endLate(id); err != nil {
			return err
		}
	}
	return d.Driver.Put(id)
}

// Remove implements graphdriver.Driver.
func (d *Driver) Remove(id string) error {
	forget, err := d.stageRemoval(id)
	failpoint.Hit("removal-staged")
	if err == nil {
		err = d.Driver.Remove(id)
	}
	return errors.Join(err, forget())
}

// stageRemoval makes the cache forget a layer: as a container, which needs an
// entry no more, and as an image, whose entries go. The files are deleted by
// the function that it returns, never nil, which takes no lock of the store.
func (d *Driver) stageRemoval(id string) (func() error, error) {
	none := func() error { return nil }
	if d.shifts == nil {
		return none, nil
	}
	if err := d.clearAttached(id); err != nil {
		return none, err
	}
	if p, err := d.paths(id); err == nil {
		if err := d.endLate(id); err != nil {
			return none, err
		}
		if err := p.link(""); err != nil {
			return none, err
		}
		if rec, err := readRecord(p.dir); err != nil {
			logrus.Debugf("shiftoverlay: remove layer %s: %v", id, err)
		} else {
			d.releaseOld(id, rec, &record{})
		}
	}
	cleanup, err := d.cache.StageLayerRemoval(id)
	if err != nil {
		return none, fmt.Errorf("remove shifted lowers of layer %s: %w", id, err)
	}
	return cleanup, nil
}

// Cleanup implements graphdriver.Driver.
func (d *Driver) Cleanup() error {
	d.trimCache()
	return d.Driver.Cleanup()
}
