package shiftoverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// rootOwner is who owns the root of a container's file system. overlay gives
// the upper's root folder to the container's root user at every mount; the
// image, or the container, may have wanted somebody else.
type rootOwner struct {
	uid, gid         uint32 // wanted, host IDs
	rootUID, rootGID uint32 // what overlay sets
	// mark is the file that keeps who is wanted while the folder may belong to
	// somebody else; "" if it is not needed, or was there before.
	mark string
}

// rootOwnerMark is a symbolic link in a layer's folder, to "UID:GID": whom the
// root folder is to belong to when a mount has ended that began. It is there from
// before the record, or overlay, changes anything: who dies in between would leave
// a folder of which nobody knows any more whose it was to be.
const rootOwnerMark = "shiftoverlay.root"

// rootOwner finds out who is to own the root folder. first says that the
// layer was never mounted under the mapping, so that its owner is the
// image's. A mapping without a root user is an error.
func (p layerPaths) rootOwner(m idshift.Mapping, first bool) (r rootOwner, err error) {
	var ok bool
	if r.rootUID, r.rootGID, ok = m.ToHost(0, 0); !ok {
		return r, fmt.Errorf("the mapping %s has no root user: container ID 0 must have a host ID", m)
	}
	r.mark = filepath.Join(p.dir, rootOwnerMark)
	if !first { // a mark of another mapping says nothing
		switch unfinished, err := readRootMark(r.mark); {
		case err != nil:
			return r, err
		case unfinished != nil:
			r.uid, r.gid = unfinished[0], unfinished[1]
			return r, nil
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(p.upper, &st); err != nil {
		return r, &os.PathError{Op: "lstat", Path: p.upper, Err: err}
	}
	r.uid, r.gid = st.Uid, st.Gid
	if first {
		if r.uid, r.gid, ok = m.ToHost(st.Uid, st.Gid); !ok {
			r.uid, r.gid = r.rootUID, r.rootGID
		}
	} else if r.uid == r.rootUID && r.gid == r.rootGID {
		r.mark = "" // whatever happens, it stays so
	}
	return r, r.note()
}

// note writes the mark.
func (r rootOwner) note() error {
	if r.mark == "" {
		return nil
	}
	if err := os.Remove(r.mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("note owner of the root folder: %w", err)
	}
	if err := os.Symlink(fmt.Sprintf("%d:%d", r.uid, r.gid), r.mark); err != nil {
		return fmt.Errorf("note owner of the root folder: %w", err)
	}
	failpoint.Hit("root-noted")
	return nil
}

// readRootMark reads a mark; nil if there is none.
func readRootMark(name string) (*[2]uint32, error) {
	text, err := os.Readlink(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no mark is a normal answer
	}
	var owner [2]uint32
	if err == nil {
		_, err = fmt.Sscanf(text, "%d:%d", &owner[0], &owner[1])
	}
	if err != nil {
		return nil, fmt.Errorf("read owner of the root folder from %s: %w", name, err)
	}
	return &owner, nil
}

// own gives the upper to whom it belongs before it is mounted.
func (r rootOwner) own(upper string) error {
	return os.Lchown(upper, int(r.uid), int(r.gid))
}

// restore gives the root folder, mounted as merged, to whom it belongs. Of a
// read-only mount only the upper can be changed: the mount goes on showing the
// container's root user, the next one is right.
func (r rootOwner) restore(merged, upper string) error {
	if r.uid != r.rootUID || r.gid != r.rootGID {
		err := os.Lchown(merged, int(r.uid), int(r.gid))
		if errors.Is(err, unix.EROFS) {
			err = os.Lchown(upper, int(r.uid), int(r.gid))
		}
		if err != nil {
			return err
		}
	}
	failpoint.Hit("root-restored")
	if r.mark != "" {
		if err := os.Remove(r.mark); err != nil {
			return fmt.Errorf("note owner of the root folder: %w", err)
		}
		failpoint.Hit("root-settled")
	}
	return nil
}

// settleMount ends what a mount began whose maker died when the layer was
// mounted already.
func (d *Driver) settleMount(id string, p layerPaths, m idshift.Mapping) error {
	if err := d.clearAttached(id); err != nil {
		return err
	}
	if err := p.link(""); err != nil {
		return err
	}
	if unfinished, err := readRootMark(filepath.Join(p.dir, rootOwnerMark)); unfinished == nil {
		return err
	}
	root, err := p.rootOwner(m, false)
	if err != nil {
		return err
	}
	return root.restore(p.merged, p.upper)
}
