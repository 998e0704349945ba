package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containers/storage/pkg/idtools"
	"github.com/sirupsen/logrus"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// UpdateLayerIDMap implements graphdriver.LayerIDMapUpdater for layers that
// another driver wrote with shifted IDs; those of this driver never need it.
// The result is laid out as overlay does it, a new empty upper above a folder
// "diff1" with the shifted files, so that overlay can mount it too; but it is
// written by an engine, so that modes, file capabilities, ACLs and hard links
// survive. An ID without a mapping is an error. What no engine can read, layers
// with metadata-only files as overlay makes them when it chowns with
// metacopy=on, is left to overlay.
func (d *Driver) UpdateLayerIDMap(id string, toContainer, toHost *idtools.IDMappings, label string) error {
	if d.shifts == nil {
		return d.Driver.UpdateLayerIDMap(id, toContainer, toHost, label)
	}
	m, err := remapping(toContainer, toHost)
	if err == nil && m.IsIdentity() {
		return nil
	}
	var shift *idshift.Shift
	if err == nil {
		shift, err = idshift.NewShift(m, idshift.Refuse)
	}
	if err == nil {
		err = d.remap(id, m, shift)
	}
	if _, ok := errors.AsType[*idshift.LayerError](err); ok {
		logrus.Debugf("shiftoverlay: overlay changes the IDs of layer %s: %v", id, err)
		return d.Driver.UpdateLayerIDMap(id, toContainer, toHost, label)
	}
	if err != nil {
		return fmt.Errorf("change the IDs of layer %s: %w", id, err)
	}
	return nil
}

// remapping joins the way from the IDs on the disk to the container's with the
// way to those that are wanted.
func remapping(toContainer, toHost *idtools.IDMappings) (idshift.Mapping, error) {
	from, err := whole(toContainer)
	if err != nil {
		return idshift.Mapping{}, err
	}
	to, err := whole(toHost)
	if err != nil {
		return idshift.Mapping{}, err
	}
	return from.Invert().Then(to)
}

// whole reads the storage library's form of a mapping, in which nothing stands
// for every ID.
func whole(m *idtools.IDMappings) (idshift.Mapping, error) {
	if m == nil {
		m = &idtools.IDMappings{}
	}
	uids, err := extents(m.UIDs())
	if err != nil {
		return idshift.Mapping{}, err
	}
	gids, err := extents(m.GIDs())
	if err != nil {
		return idshift.Mapping{}, err
	}
	return idshift.NewMapping(uids, gids)
}

// remap makes the shifted folder aside and puts it in place.
func (d *Driver) remap(id string, m idshift.Mapping, shift *idshift.Shift) (err error) {
	p, err := d.paths(id)
	if err != nil {
		return err
	}
	own, err := folders(p.upper)
	if err != nil {
		return err
	}
	chain := own
	lower, err := p.chain()
	if err != nil {
		return err
	}
	for _, l := range lower {
		chain = append(chain, l.Dirs...)
	}
	aside, err := os.MkdirTemp(p.dir, "shifting-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(aside)) }()
	tree, err := d.shifts.BuildOnce(context.Background(), aside, chain, shift)
	if err != nil {
		return err
	}
	// From the last to the first, as overlay does it: whenever this ends, the
	// folders are a prefix of the old order.
	for n, folder := range slices.Backward(own) {
		if err := os.Rename(folder, filepath.Join(p.dir, "diff"+strconv.Itoa(n+2))); err != nil {
			return err
		}
	}
	if err := os.Rename(tree, filepath.Join(p.dir, shiftedLower)); err != nil {
		return err
	}
	return d.newUpper(p, m)
}

// newUpper makes an empty upper with owner and mode of the folder below it,
// and a work folder that knows nothing of the old one.
func (d *Driver) newUpper(p layerPaths, m idshift.Mapping) error {
	st, err := os.Stat(filepath.Join(p.dir, shiftedLower))
	if err != nil {
		return err
	}
	uid, gid, ok := m.ToHost(0, 0)
	if !ok {
		uid, gid = 0, 0
	}
	work := filepath.Join(p.dir, "work")
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	for dir, mode := range map[string]os.FileMode{p.upper: st.Mode().Perm(), work: 0o700} {
		if err := os.Mkdir(dir, mode); err != nil {
			return err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return nil
}
