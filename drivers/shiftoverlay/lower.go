package shiftoverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/mount"
	"github.com/containers/storage/pkg/unshare"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
)

// mountLower mounts a layer with a shifted lower: data-only lowers and idmapped
// ones that are in no mount table by itself, everything else through overlay's own
// Get, for which a link or a mount point called diff1 is put into the layer's
// folder for the time of the call.
func (d *Driver) mountLower(id string, p layerPaths, l shifter.Lower, root rootOwner, o graphdriver.MountOpts) (merged string, err error) {
	switch {
	case len(l.Data) > 0:
		return p.merged, d.mountDataOnly(id, p, l, root, o)
	case len(l.Parts) > 0:
		if err = d.mountOverlay(id, p, mounts.Overlay{Parts: l.Parts}, root, o); err == nil {
			return p.merged, nil
		}
		logrus.Debugf("shiftoverlay: %v; overlay does it in its own way", err)
	case l.Tree != nil:
		// An image's inode numbers are not the layer's file system's: this
		// makes one number space of both (overlayfs.rst, section "xino").
		o.Options = addXino(d.optionsOf(o))
		err = d.attached(id, l.Tree, func(at string) (err error) {
			merged, err = d.getAbove(id, p, at, o)
			return err
		})
		return merged, err
	}
	return d.getAbove(id, p, l.Path, o)
}

// getAbove mounts a layer with a shifted lower that is a folder; "" for none.
func (d *Driver) getAbove(id string, p layerPaths, lower string, o graphdriver.MountOpts) (_ string, err error) {
	// Without a lower to put in place, this takes away what a crash has left.
	if err := p.link(lower); err != nil {
		return "", err
	}
	if lower != "" {
		// The owners are right already; overlay is to add nothing.
		o.DisableShifting = true
		defer func() { err = errors.Join(err, p.link("")) }()
	}
	merged, err := d.Driver.Get(id, o)
	failpoint.Hit("mounted")
	return merged, err
}

// attached shows a tree at a folder in the run root while do runs. The folder is
// removed only if it is empty: a mount may still be there.
func (s *site) attached(name string, t *mounts.Tree, do func(at string) error) (failed error) {
	at, err := s.attachPoint(name)
	if err != nil {
		return err
	}
	defer func() { failed = errors.Join(failed, os.Remove(at)) }()
	failpoint.Hit("attach-folder")
	if err := t.Attach(at); err != nil {
		return err
	}
	failpoint.Hit("attached")
	defer func() { failed = errors.Join(failed, t.Detach()) }()
	return do(at)
}

// show mounts an overlay at a folder. name is that of the folder for o.Attach.
func (s *site) show(o mounts.Overlay, name, target string) error {
	if o.Tree != nil {
		var err error
		if o.Attach, err = s.attachPoint(name); err != nil {
			return err
		}
		defer os.Remove(o.Attach)
	}
	t, err := o.Mount()
	if err != nil {
		return err
	}
	failpoint.Hit("overlay-made")
	err = t.Attach(target)
	failpoint.Hit("overlay-attached")
	return errors.Join(err, t.Close())
}

// attachFolder, in the run folder, has the folders of attachPoint.
const attachFolder = "attach"

// attachPoint makes the folder where an image is mounted for the time of a
// call. What a crash has left there goes.
func (s *site) attachPoint(id string) (string, error) {
	at := filepath.Join(s.runHome, attachFolder, id)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	if err := detachAll(at); err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	return at, nil
}

// detachAll takes away what is mounted at a folder, also what is of the same file
// system, of which mounted knows nothing.
func detachAll(at string) error {
	for {
		switch err := mounts.Detach(at); {
		case errors.Is(err, unix.EINVAL): // no mount point
			return nil
		case err != nil:
			return err
		}
	}
}

// removeAttached removes a folder with what is mounted there.
func removeAttached(at string) error {
	if err := detachAll(at); err != nil {
		return err
	}
	return os.Remove(at)
}

// clearAttached takes away the folder where an image is mounted for the time of
// a call, if a crash has left one for a layer.
func (s *site) clearAttached(id string) error {
	at := filepath.Join(s.runHome, attachFolder, id)
	if _, err := os.Lstat(at); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := removeAttached(at); err != nil {
		return fmt.Errorf("remove what a mount of layer %s has left: %w", id, err)
	}
	return nil
}

// mounted tells whether a file system of its own is mounted at a folder.
func mounted(dir string) bool {
	var here, above unix.Stat_t
	if unix.Lstat(dir, &here) != nil || unix.Lstat(filepath.Dir(dir), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// optionsOf returns the options of a mount as overlay's Get takes them: those
// of the caller in the place of those of storage.conf, but for metacopy=on,
// without which the kernel would not follow what was written with it.
func (d *Driver) optionsOf(o graphdriver.MountOpts) ovl.Options {
	if len(o.Options) == 0 {
		return slices.Clone(d.mountOptions)
	}
	out := ovl.Options(slices.Clone(o.Options))
	if v, ok := d.mountOptions.Value("metacopy"); ok && v == "on" && !slices.Contains(out, "metacopy=on") {
		out = append(out, "metacopy=on")
	}
	return out
}

// addXino asks for inode numbers that tell apart the files of an image and
// those of the upper, unless the options say something about that.
func addXino(o ovl.Options) ovl.Options {
	if _, ok := o.Value("xino"); ok {
		return o
	}
	return append(o, "xino=auto")
}

// mountDataOnly mounts a layer with an image, or a tree, above data-only lowers,
// which overlay's Get does not know.
func (d *Driver) mountDataOnly(id string, p layerPaths, l shifter.Lower, root rootOwner, o graphdriver.MountOpts) error {
	spec := mounts.Overlay{Tree: l.Tree, Data: l.Data, DataTrees: l.DataTrees}
	if l.Path != "" {
		spec.Above = []string{l.Path}
	}
	return d.mountOverlay(id, p, spec, root, o)
}

// mountOverlay mounts a layer with the lowers of spec. Everything else is as in
// overlay's Get; Put is overlay's.
func (d *Driver) mountOverlay(id string, p layerPaths, spec mounts.Overlay, root rootOwner, o graphdriver.MountOpts) error {
	if err := p.link(""); err != nil {
		return err
	}
	if err := root.own(p.upper); err != nil {
		return fmt.Errorf("mount layer %s: %w", id, err)
	}
	failpoint.Hit("upper-owned")
	if err := os.MkdirAll(p.merged, 0o700); err != nil {
		return fmt.Errorf("mount layer %s: %w", id, err)
	}
	options := d.optionsOf(o)
	if spec.Tree != nil {
		options = addXino(options)
	}
	if unshare.IsRootless() {
		options = append(options, "userxattr")
	}
	if o.Volatile && !slices.Contains(options, "volatile") {
		options = append(options, "volatile")
	}
	flags, data := mount.ParseOptions(options.String())
	spec.Label, spec.Flags = o.MountLabel, uintptr(flags)
	if data != "" {
		spec.Options = strings.Split(data, ",")
	}
	if flags&unix.MS_RDONLY != 0 {
		spec.Above = slices.Insert(spec.Above, 0, p.upper)
	} else {
		spec.Upper, spec.Work = p.upper, p.work
		// overlay refuses an upper that was mounted with "volatile" before; the
		// kernel repeats the folder's name (overlayfs.rst, "Volatile mount").
		if err := os.RemoveAll(filepath.Join(p.work, "work", "incompat", "volatile")); err != nil {
			return fmt.Errorf("mount layer %s: %w", id, err)
		}
	}
	if err := d.show(spec, id, p.merged); err != nil {
		return fmt.Errorf("mount layer %s: %w", id, err)
	}
	return nil
}
