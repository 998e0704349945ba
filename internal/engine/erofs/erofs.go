// Package erofs is the engine that makes one metadata-only EROFS image of a
// chain, whatever the number of mappings: overlay takes the image as the
// uppermost lower and finds the data of its files in the layers. Where the
// kernel can map the IDs of an EROFS mount, that is all there is to do for a
// mapping; elsewhere the image is copied and its owners are replaced.
//
// There is one gap: the kernel sets no POSIX ACL on a file of an EROFS lower
// before something else has copied it up (ovl_set_acl in fs/overlayfs/inode.c
// asks the lower's inode for set_acl, which EROFS does not have), so
// setfacl(1) on a file of the image fails with ENOTSUP.
package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
)

// Name is the engine's name.
const Name = "erofs"

// imageName is the image in the folder of a template or of a mapping.
const imageName = "image.erofs"

// Engine is the EROFS engine. The zero value uses the best way of everything.
type Engine struct {
	// Layout says where overlay finds the data. Images with a path that is too
	// long for erofs.DataOnly are made as erofs.Opaque.
	Layout erofs.Layout
	// Via says how images are mounted.
	Via mount.ErofsVia
	// Owners is true if each mapping needs an image with its own owners.
	Owners bool
}

var (
	_ engine.Imager = Engine{}
	_ engine.Noter  = Engine{}
)

// New returns the engine as it works best in env.
func New(env engine.Env) Engine {
	e := Engine{Layout: erofs.DataOnly, Via: mount.Auto, Owners: env.ErofsIdmap != ""}
	if env.ErofsData != "" {
		e.Layout = erofs.Opaque
	}
	if env.ErofsFile != "" {
		e.Via = mount.Loop
	}
	return e
}

// Name implements engine.Engine.
func (Engine) Name() string { return Name }

// Check implements engine.Engine.
func (Engine) Check(env engine.Env) error {
	if env.Erofs != "" {
		return errors.New(env.Erofs)
	}
	return nil
}

// Format implements engine.Imager.
func (Engine) Format() int { return 2 }

// Variant implements engine.Imager.
func (e Engine) Variant() string { return e.Layout.String() }

// String names the ways that are used, for debug messages.
func (e Engine) String() string {
	owners, via := "idmapped", "file"
	if e.Owners {
		owners = "patched"
	}
	if e.Via == mount.Loop {
		via = "loop"
	}
	return Name + " (" + e.Variant() + ", " + owners + ", " + via + ")"
}

// Note implements engine.Noter.
func (e Engine) Note() string {
	return e.String() + `; the kernel sets no POSIX ACL on a file of the image that was not changed before (ENOTSUP): engine = "metacopy" has no such limit`
}

// Template implements engine.Imager.
func (e Engine) Template(ctx context.Context, dir string, job engine.Job) error {
	return create(dir, func(f *os.File) error {
		o := erofs.Options{Layout: e.Layout, Workers: job.Workers, Done: job.Done}
		_, err := erofs.Build(ctx, f, job.Chain, o)
		unfit, ok := errors.AsType[*erofs.UnfitError](err)
		if ok && unfit.LongPath && o.Layout == erofs.DataOnly {
			if err := f.Truncate(0); err != nil {
				return fmt.Errorf("make EROFS image: %w", err)
			}
			o.Layout = erofs.Opaque
			_, err = erofs.Build(ctx, f, job.Chain, o)
		}
		if unfit, ok := errors.AsType[*erofs.UnfitError](err); ok {
			return &engine.UnfitError{Engine: Name, Reason: unfit.Error()}
		}
		return err
	})
}

// create makes the image in dir. It can be read only: nothing but its mode
// protects an image that is mounted from its file.
func create(dir string, fill func(f *os.File) error) error {
	f, err := os.OpenFile(filepath.Join(dir, imageName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return fmt.Errorf("make EROFS image: %w", err)
	}
	failpoint.Hit("erofs-file")
	err = fill(f)
	failpoint.Hit("erofs-filled")
	return errors.Join(err, f.Close())
}

// Unfit implements engine.Imager.
func (Engine) Unfit(dir string) (string, error) {
	info, err := imageInfo(dir)
	if err != nil {
		return "", err
	}
	if info.ACL {
		return "the image's files have POSIX ACLs, and the kernel sets no ACL on files of an EROFS lower", nil
	}
	return "", nil
}

// Patches implements engine.Imager.
func (e Engine) Patches() bool { return e.Owners }

// Patch implements engine.Imager.
func (Engine) Patch(ctx context.Context, dir, template string, job engine.Job) error {
	t, err := os.Open(filepath.Join(template, imageName))
	if err != nil {
		return damaged(fmt.Errorf("open EROFS image: %w", err))
	}
	defer t.Close()
	return create(dir, func(f *os.File) error { return damaged(erofs.Patch(ctx, f, t, job.Shift)) })
}

// damaged adds engine.ErrDamaged to an error that says so of an image.
func damaged(err error) error {
	for _, is := range []error{
		erofs.ErrDamaged, unix.ENOENT, unix.ENOTDIR, unix.EISDIR,
		// The kernel about superblocks and checksums, file systems about unreadable files.
		unix.EINVAL, unix.EBADMSG, unix.EUCLEAN, unix.EIO, unix.ENODATA,
	} {
		if errors.Is(err, is) {
			return errors.Join(engine.ErrDamaged, err)
		}
	}
	return err
}

// Mount implements engine.Imager.
func (e Engine) Mount(dir string, userns int) (*mount.Tree, error) {
	t, err := mount.Erofs(filepath.Join(dir, imageName), e.Via)
	if err != nil {
		return nil, damaged(err)
	}
	if userns >= 0 {
		if err := t.Idmap(userns); err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	return t, nil
}

// DataOnly implements engine.Imager. An image with a path that is too long for
// a data-only lower is above ordinary ones, whatever e.Layout says.
func (Engine) DataOnly(dir string) (bool, error) {
	info, err := imageInfo(dir)
	return info.Layout == erofs.DataOnly, err
}

func imageInfo(dir string) (erofs.Info, error) {
	f, err := os.Open(filepath.Join(dir, imageName))
	if err != nil {
		return erofs.Info{}, damaged(fmt.Errorf("open EROFS image: %w", err))
	}
	defer f.Close()
	info, err := erofs.TemplateInfo(f)
	return info, damaged(err)
}
