package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// erofsProbe tries an image of one file as overlay's uppermost lower.
type erofsProbe struct {
	dir    string // of the probe
	data   string // the layer: a folder with the file "f"
	attach string // an empty folder
}

// probeErofs fills in what concerns EROFS images. userns is a user namespace, or
// -1 if there is none, which r.IdmapMount then explains.
func (r *Report) probeErofs(dir string, userns int) {
	p := erofsProbe{dir: dir, data: filepath.Join(dir, "layer"), attach: filepath.Join(dir, "attach")}
	if err := p.prepare(); err != nil {
		r.Erofs = result(err)
	} else {
		r.ErofsFile = result(p.ordinary(mount.File))
		r.Erofs = r.ErofsFile
		if !r.ErofsFile.OK() {
			r.Erofs = result(p.ordinary(mount.Loop))
		}
	}
	if !r.Erofs.OK() {
		r.ErofsFile, r.ErofsData, r.ErofsIdmap = r.Erofs, r.Erofs, r.Erofs
		return
	}
	via := mount.File
	if !r.ErofsFile.OK() {
		via = mount.Loop
	}
	r.ErofsData = result(p.dataOnly(via))
	r.ErofsIdmap = r.IdmapMount
	if userns >= 0 {
		r.ErofsIdmap = result(p.idmapped(via, userns))
	}
}

// prepare makes the layer and both kinds of images.
func (p erofsProbe) prepare() error {
	for _, d := range []string{p.data, p.attach} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(p.data, "f"), []byte(probeData), 0o600); err != nil {
		return err
	}
	if err := writeACL(p.data); err != nil {
		return err
	}
	// cap_chown=ep, version 2 (capabilities(7)); not every file system keeps it.
	capability := "\x01\x00\x00\x02\x01\x00\x00\x00" + strings.Repeat("\x00", 12)
	_ = unix.Lsetxattr(filepath.Join(p.data, aclName), idshift.Capability, []byte(capability), 0)
	for name, layout := range map[string]erofs.Layout{"opaque": erofs.Opaque, "data-only": erofs.DataOnly} {
		f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = erofs.Build(context.Background(), f, []string{p.data}, erofs.Options{Layout: layout, Workers: 1})
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// ordinary puts an image above the layer as an ordinary lower, the way of
// kernels without data-only lowers.
func (p erofsProbe) ordinary(via mount.ErofsVia) (err error) {
	t, err := mount.Erofs(filepath.Join(p.dir, "opaque"), via)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.Attach(p.attach); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Detach()) }()
	mnt, err := overlayOf(p.attach, p.data)
	if err != nil {
		return err
	}
	defer mnt.Close()
	return errors.Join(readProbe(mnt), p.attributes(mnt))
}

// attributes checks that an image shows what its layer has: ACLs and
// capabilities are options of EROFS's build.
func (p erofsProbe) attributes(mnt *mount.Tree) error {
	var buf linux.XattrBuffer
	for _, name := range []string{idshift.ACLAccess, idshift.Capability} {
		if _, err := buf.Lget(filepath.Join(p.data, aclName), name); err != nil {
			continue // not even the layer has it
		}
		if _, err := buf.Lget(filepath.Join(mnt.Path(), aclName), name); err != nil {
			return fmt.Errorf("EROFS does not show what the layer has: %w", err)
		}
	}
	return nil
}

// dataOnly puts an image above the layer as a data-only lower.
func (p erofsProbe) dataOnly(via mount.ErofsVia) error {
	t, err := mount.Erofs(filepath.Join(p.dir, "data-only"), via)
	if err != nil {
		return err
	}
	defer t.Close()
	o := mount.Overlay{Tree: t, Data: []string{p.data}, Options: []string{"metacopy=on", "xino=auto"}, Attach: p.attach}
	mnt, err := o.Mount()
	if err != nil {
		return err
	}
	defer mnt.Close()
	return readProbe(mnt)
}

// idmapped maps the IDs of an image and looks at it through an overlay.
func (p erofsProbe) idmapped(via mount.ErofsVia, userns int) (err error) {
	t, err := mount.Erofs(filepath.Join(p.dir, "opaque"), via)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.Idmap(userns); err != nil {
		return err
	}
	if err := t.Attach(p.attach); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Detach()) }()
	mnt, err := overlayOf(p.attach, p.data)
	if err != nil {
		return err
	}
	defer mnt.Close()
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(mnt.Path(), "f"), &st); err != nil {
		return err
	}
	if st.Uid == 0 {
		return fmt.Errorf("overlay does not show the IDs of an idmapped EROFS mount: %w", unix.EOPNOTSUPP)
	}
	if err := readACL(mnt); err != nil {
		return err
	}
	return readProbe(mnt)
}
