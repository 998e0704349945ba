package shiftoverlay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
)

// layerPaths is where a layer lives.
type layerPaths struct {
	dir    string   // the layer's own folder
	upper  string   // its "diff"
	work   string   // overlay's work folder
	merged string   // where it is mounted
	lowers []string // the "diff" of each layer below, uppermost first
}

// paths asks the embedded driver where a layer lives.
func (d *Driver) paths(id string) (layerPaths, error) {
	m, err := d.Driver.Metadata(id)
	if err != nil {
		// A power cut can leave a file without data, or with zeros in its place.
		if list, lerr := os.ReadFile(filepath.Join(d.home, id, lowerList)); lerr == nil && len(bytes.Trim(list, "\x00")) == 0 {
			return layerPaths{}, fmt.Errorf("layer %s is damaged, its list of layers is empty, as a power cut leaves it: remove the container or image that it belongs to, and make it again: %w", id, err)
		}
		return layerPaths{}, fmt.Errorf("find layer %s: %w", id, err)
	}
	return layerPaths{
		dir:    filepath.Dir(m["UpperDir"]),
		upper:  m["UpperDir"],
		work:   m["WorkDir"],
		merged: m["MergedDir"],
		lowers: ovl.SplitLowers(m["LowerDir"]),
	}, nil
}

// lowerList and linkName are overlay's files in a layer's folder: the short names
// of the layers below, and its own.
const (
	lowerList = "lower"
	linkName  = "link"
)

// shiftedLower is the name under which a shifted lower is put into a layer's
// folder for the time of the mount. overlay takes "diff1", "diff2"… of a
// layer as the uppermost lowers.
const shiftedLower = "diff1"

// folders lists the folders of a layer, uppermost first: its "diff", and
// "diff1", "diff2"… if there are any.
func folders(diff string) ([]string, error) {
	out := []string{diff}
	for n := 1; ; n++ {
		more := diff + strconv.Itoa(n)
		if _, err := os.Stat(more); errors.Is(err, os.ErrNotExist) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("list folders of layer: %w", err)
		}
		out = append(out, more)
	}
}

// chain lists the image below a layer with all folders that overlay would
// put into the mount.
func (p layerPaths) chain() ([]shifter.Layer, error) {
	out := make([]shifter.Layer, len(p.lowers))
	for i, diff := range p.lowers {
		id := filepath.Base(filepath.Dir(diff))
		if _, err := os.Stat(diff); err != nil {
			return nil, fmt.Errorf("layer %s of the image is damaged: %w: remove the image and pull it again", id, err)
		}
		dirs, err := folders(diff)
		if err != nil {
			return nil, err
		}
		out[i] = shifter.Layer{ID: id, Dirs: dirs}
	}
	return out, nil
}

// ownsShiftedLower tells whether the layer has a folder called diff1 that is
// not ours: overlay's own way of shifting left it, and the layer must be
// mounted as overlay would.
func (p layerPaths) ownsShiftedLower() (bool, error) {
	st, err := os.Lstat(filepath.Join(p.dir, shiftedLower))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for shifted lower: %w", err)
	}
	return st.Mode()&os.ModeSymlink == 0, nil
}

// link puts a shifted lower in place, or takes it away if lower is "". Both
// may be done again.
func (p layerPaths) link(lower string) error {
	name := filepath.Join(p.dir, shiftedLower)
	if st, err := os.Lstat(name); err == nil && st.Mode()&os.ModeSymlink != 0 {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("take away shifted lower: %w", err)
		}
		failpoint.Hit("link-removed")
	}
	if lower == "" {
		return nil
	}
	if err := os.Symlink(lower, name); err != nil {
		return fmt.Errorf("put shifted lower in place: %w", err)
	}
	failpoint.Hit("link-placed")
	return nil
}
