package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/drivers/overlay"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/pkg/mount"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/internal/writeback"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// engineOverlay in a record says that the storage library changed the owners of
// the layers below, as it does where overlay has no idmapped mounts: there is
// nothing to shift.
const engineOverlay = "overlay"

// AdoptedContainer is a container of a store that changes between overlay and
// this driver.
type AdoptedContainer struct {
	Name, Layer string
	// UIDs and GIDs are the container's mapping, empty for none.
	UIDs, GIDs []idtools.IDMap
	// Chowned says that the library gave the container's layer a mapping, which
	// it does where the driver does not shift.
	Chowned bool
}

// mapping is false for a container without one.
func (c AdoptedContainer) mapping() (m idshift.Mapping, ok bool, err error) {
	m, ok, err = mappingOf(graphdriver.MountOpts{UidMaps: c.UIDs, GidMaps: c.GIDs})
	if err != nil {
		return m, false, fmt.Errorf("container %s: %w", c.Name, err)
	}
	return m, ok && !m.IsIdentity(), nil
}

// CheckAdopt refuses what this driver could not go on with in a store of
// overlay's, whose home is given.
func CheckAdopt(home string, containers []AdoptedContainer) error {
	if (driverOptions{}).usesMountProgram(home) {
		return fmt.Errorf("the store was used with a mount_program, which may leave whiteouts of another form in it: run `shiftoverlay-mount --restore %s` first", filepath.Dir(home))
	}
	var failed error
	for _, c := range containers {
		_, err := c.record(home)
		failed = errors.Join(failed, err)
	}
	return failed
}

// RecordMappings notes the mappings of containers that overlay has mounted, so
// that this driver knows whose the files in their uppers are. It may be done again.
func RecordMappings(home string, containers []AdoptedContainer) error {
	for _, c := range containers {
		rec, err := c.record(home)
		if err == nil && rec != nil {
			err = writeRecord(filepath.Join(home, c.Layer), rec, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// record is what a container's layer lacks, nil for nothing.
func (c AdoptedContainer) record(home string) (*record, error) {
	m, mapped, err := c.mapping()
	if err != nil || !mapped {
		return nil, err
	}
	p := layerPaths{dir: filepath.Join(home, c.Layer), upper: filepath.Join(home, c.Layer, "diff")}
	old, err := readRecord(p.dir)
	if err != nil || old != nil {
		return nil, err
	}
	var root unix.Stat_t
	if err := unix.Lstat(p.upper, &root); errors.Is(err, unix.ENOENT) {
		return nil, nil //nolint:nilnil // its layer is gone, and so is what there is to record
	} else if err != nil {
		return nil, &os.PathError{Op: "lstat", Path: p.upper, Err: err}
	}
	if c.Chowned {
		return newRecord(m, shifter.Lower{Engine: engineOverlay}), nil
	}
	entries, err := os.ReadDir(p.upper)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(p.upper, e.Name()), &st); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		_, _, host := m.ToContainer(st.Uid, st.Gid)
		_, _, container := m.ToHost(st.Uid, st.Gid)
		if !host && container && st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return nil, fmt.Errorf("container %s has files with container IDs, as fuse-overlayfs writes them (%s): commit it with fuse-overlayfs, and remove it", c.Name, filepath.Join(p.upper, e.Name()))
		}
	}
	// overlay gives the upper to the container's root at the first mount.
	if _, _, host := m.ToContainer(root.Uid, root.Gid); !host && len(entries) == 0 {
		return nil, nil //nolint:nilnil // it was never mounted
	}
	return newRecord(m, shifter.Lower{Engine: "idmap"}), nil
}

// CheckBack refuses what overlay could not go on with in a store of this driver,
// whose home is given. options are those of storage.conf.
func CheckBack(ctx context.Context, home string, options []string, containers []AdoptedContainer) error {
	opts, err := parseDriverOptions(options)
	if err != nil {
		return err
	}
	var mapped, metadata []string
	for _, c := range containers {
		_, shifted, err := c.mapping()
		if err != nil {
			return err
		}
		if shifted && !c.Chowned {
			mapped = append(mapped, c.Name)
		}
		only, err := hasMetadataOnly(ctx, filepath.Join(home, c.Layer, "diff"))
		if err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		if only {
			metadata = append(metadata, c.Name)
		}
	}
	if len(metadata) > 0 && !followsMetacopy(opts) {
		err = fmt.Errorf(`the containers %s have changed the owner or mode of files of their images, and their layers hold only that: overlay needs mountopt = "nodev,metacopy=on" in storage.conf to show the content`, strings.Join(metadata, ", "))
	}
	if len(mapped) > 0 {
		shifts, shiftErr := overlayShifts(home, opts)
		if shiftErr == nil && !shifts {
			shiftErr = fmt.Errorf("overlay has no idmapped mounts here, so it could not start the containers with user namespaces %s: commit them and remove them", strings.Join(mapped, ", "))
		}
		err = errors.Join(err, shiftErr)
	}
	return err
}

// hasMetadataOnly tells whether an upper has files of which it holds no data.
func hasMetadataOnly(ctx context.Context, upper string) (bool, error) {
	found := errors.New("found")
	err := writeback.Scan(ctx, writeback.Layer{Upper: upper}, func(it *writeback.Item) error {
		if it.MetadataOnly {
			return found
		}
		return nil
	})
	if errors.Is(err, found) {
		return true, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return false, err
}

// followsMetacopy tells whether overlay mounts with metacopy=on, as it is told to or
// as the kernel does by itself.
func followsMetacopy(opts driverOptions) bool {
	if v, ok := opts.mount.Value("metacopy"); ok {
		return v == "on"
	}
	b, err := os.ReadFile("/sys/module/overlay/parameters/metacopy")
	return err == nil && strings.TrimSpace(string(b)) == "Y"
}

// overlayShifts tells whether the storage library's own driver can mount with a
// mapping here, by asking one that has an empty home on the same file system.
func overlayShifts(home string, opts driverOptions) (shifts bool, err error) {
	dir := filepath.Join(filepath.Dir(home), tryName)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return false, fmt.Errorf("try overlay: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	inner, err := initOverlay(filepath.Join(dir, "overlay"), graphdriver.Options{Root: dir, RunRoot: filepath.Join(dir, "run"), DriverOptions: opts.forOverlay(nil)})
	if err != nil {
		return false, fmt.Errorf("try overlay: %w", err)
	}
	o, ok := inner.(*overlay.Driver)
	if !ok {
		return false, errors.Join(fmt.Errorf("try overlay: the storage library's driver is a %T", inner), inner.Cleanup())
	}
	one := []idtools.IDMap{{ContainerID: 0, HostID: 1, Size: 1}}
	return o.SupportsShifting(one, one), o.Cleanup()
}

// tryName is the folder in the graph root where overlay is tried.
const tryName = ".shiftoverlay-adopt"

// RemoveTry removes what CheckBack leaves in a graph root when it is killed.
func RemoveTry(graph string) error {
	dir := filepath.Join(graph, tryName)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := mount.RecursiveUnmount(dir); err != nil {
		return fmt.Errorf("remove what a try of overlay has left: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove what a try of overlay has left: %w", err)
	}
	return nil
}

// RemoveLinks takes away what a crash has left of shifted lowers in the layers'
// folders.
func RemoveLinks(home string) error {
	list, err := os.ReadDir(home)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	for _, l := range list {
		if err := (layerPaths{dir: filepath.Join(home, l.Name())}).link(""); err != nil {
			return err
		}
	}
	return nil
}
