package shiftoverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// linkStores makes additional image stores usable whichever driver wrote
// them. The storage library looks for their images and layers under this
// driver's name, the embedded driver for layers under the name "overlay", and
// a store has them under one name only; so each store is shown through a
// folder of symbolic links, in the run root, that has all names. It returns
// those folders in the order of the stores, without stores that are empty and
// can only be read.
func (d *Driver) linkStores(stores []string) ([]string, error) {
	var out []string
	for _, store := range stores {
		store = filepath.Clean(store)
		if !filepath.IsAbs(store) {
			return nil, fmt.Errorf("additional image store %q: the path must be absolute", store)
		}
		st, err := os.Stat(store)
		if err != nil {
			return nil, fmt.Errorf("additional image store: %w", err)
		}
		if !st.IsDir() {
			return nil, fmt.Errorf("additional image store %q is not a folder", store)
		}
		// The library makes these where they are missing, but not through a link.
		err = nil
		for _, suffix := range []string{"-images", "-layers"} {
			err = errors.Join(err, os.MkdirAll(writtenBy(store, suffix), 0o700))
		}
		if errors.Is(err, unix.EROFS) {
			logrus.Debugf("shiftoverlay: nothing in the additional image store %q: %v", store, err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("additional image store %q: %w", store, err)
		}
		dir, err := d.linkStore(store)
		if err != nil {
			return nil, fmt.Errorf("additional image store %q: %w", store, err)
		}
		out = append(out, dir)
	}
	return out, nil
}

// linkStore makes the folder of symbolic links for one store.
func (d *Driver) linkStore(store string) (string, error) {
	dir := filepath.Join(d.runHome, "stores", nameOfPath(store))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for _, suffix := range []string{"", "-images", "-layers", "-containers"} {
		target := writtenBy(store, suffix)
		for _, name := range []string{driverName, "overlay"} {
			if err := symlink(target, filepath.Join(dir, name+suffix)); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
}

// linkImageStore does the same for the one store that images are written to
// instead of the graph root (imagestore in storage.conf), if there is one.
func (d *Driver) linkImageStore(store string) (string, error) {
	if store == "" {
		return "", nil
	}
	if err := os.MkdirAll(filepath.Join(store, driverName), 0o755); err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	dir, err := d.linkStore(filepath.Clean(store))
	if err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	return dir, nil
}

// writtenBy returns the folder that a store has: this driver's if there is
// one, else overlay's. Where there is neither, who wrote the layers decides.
func writtenBy(store, suffix string) string {
	own, overlays := filepath.Join(store, driverName+suffix), filepath.Join(store, "overlay"+suffix)
	if isDir(own) || !isDir(overlays) && isDir(filepath.Join(store, driverName)) {
		return own
	}
	return overlays
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// symlink makes name point at target, in one step if it points elsewhere.
func symlink(target, name string) error {
	if got, err := os.Readlink(name); err == nil && got == target {
		return nil
	}
	tmp := name + ".new"
	if err := os.Symlink(target, tmp); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Rename(tmp, name)
}
