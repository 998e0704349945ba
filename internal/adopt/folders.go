package adopt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// shifted is what the driver and shiftoverlay-mount add to a driver's name for
// the folder of shifted lowers.
const shifted = "-shifted"

// The ends of the names of a store's folders, in the order in which they move:
// the layers themselves last.
var (
	graphSuffixes = []string{"-layers", "-images", "-containers", ""}
	runSuffixes   = []string{"-layers", "-containers"}
)

// hollow are the names of folders in a driver's home that hold no layer
// (drivers/overlay/overlay.go of containers/storage).
var hollow = []string{"l", "staging", "tempdirs", "tmp"}

// Store is a container store by its folders, without symbolic links in the paths.
type Store struct{ Graph, Run string }

// Open finds the store's folders. The run root need not exist.
func Open(graph, run string) (s Store, err error) {
	if s.Graph, err = filepath.EvalSymlinks(graph); err != nil {
		return s, fmt.Errorf("find the store: %w", err)
	}
	if s.Run, err = filepath.EvalSymlinks(run); errors.Is(err, os.ErrNotExist) {
		s.Run, err = filepath.Clean(run), nil
	}
	if err != nil {
		return s, fmt.Errorf("find the store's run root: %w", err)
	}
	return s, nil
}

// Has tells whether the store has anything of a driver: a layer, an image or a
// container.
func (s Store) Has(driver string) (bool, error) {
	for _, suffix := range graphSuffixes {
		empty, err := isHollow(filepath.Join(s.Graph, driver+suffix))
		if err != nil || !empty {
			return !empty, err
		}
	}
	return false, nil
}

// isHollow tells whether a folder of a store is as the library makes it for an
// empty store, or not there.
func isHollow(dir string) (bool, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for what a store holds: %w", err)
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir() && !slices.Contains(hollow, e.Name()):
			return false, nil
		case e.IsDir():
			inner, err := os.ReadDir(path)
			if err != nil {
				return false, fmt.Errorf("look for what a store holds: %w", err)
			}
			if len(inner) > 0 {
				return false, nil
			}
		case strings.HasSuffix(e.Name(), ".json"):
			if empty, err := isEmptyList(path); err != nil || !empty {
				return false, err
			}
		}
	}
	return true, nil
}

// isEmptyList tells whether a file has an empty list of the library's, or nothing.
func isEmptyList(path string) (bool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("look for what a store holds: %w", err)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return true, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return len(list) == 0, nil
}

// rename moves a folder. Where it is moved already nothing is done; an empty
// folder of the library's in its way is removed, and anything else is an error.
func rename(from, to string) error {
	if _, err := os.Lstat(from); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(to); err == nil {
		done, err := clear(from, to)
		if done || err != nil {
			return err
		}
	}
	for _, dir := range []string{from, to} {
		if err := unbind(dir); err != nil {
			return err
		}
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("move folder: %w", err)
	}
	return syncDir(filepath.Dir(to))
}

// clear removes whichever of two folders is an empty one of the library's. done
// says that it was from, so that nothing is left to move.
func clear(from, to string) (done bool, err error) {
	for _, dir := range []string{to, from} {
		empty, err := isHollow(dir)
		if err != nil {
			return false, err
		}
		if !empty {
			continue
		}
		if err := unbind(dir); err != nil {
			return false, err
		}
		if err := os.RemoveAll(dir); err != nil {
			return false, fmt.Errorf("remove an empty folder: %w", err)
		}
		return dir == from, syncDir(filepath.Dir(dir))
	}
	return false, &BothError{from, to}
}

// BothError says that two drivers have something in a store.
type BothError struct{ From, To string }

func (e *BothError) Error() string {
	return fmt.Sprintf("%s and %s both hold something, and a store can be one driver's only: save what is in one of them elsewhere (podman save, podman commit), and remove it with that driver", e.From, e.To)
}

// unbind takes away the mount of a folder onto itself that the overlay driver
// makes of its home. A file system of its own is an error: it cannot be renamed.
func unbind(dir string) error {
	for {
		mounted, err := mountinfo.Mounted(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for mounts: %w", err)
		}
		if !mounted {
			return nil
		}
		var here, above unix.Stat_t
		if err := errors.Join(unix.Stat(dir, &here), unix.Stat(filepath.Dir(dir), &above)); err != nil {
			return fmt.Errorf("look for mounts: %w", err)
		}
		if here.Dev != above.Dev {
			return fmt.Errorf("%s is a file system of its own, which cannot be renamed: mount it at %s instead, or make the whole graph root one file system", dir, filepath.Dir(dir))
		}
		if err := unix.Unmount(dir, 0); err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}
