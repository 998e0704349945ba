package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// aclName is a file of user 0 whose ACL names user 0.
const aclName = "acl"

// probeACL is user::rw-, user:0:r--, group::---, mask::r--, other::--- in the
// form of the attribute (posix_acl_xattr.h).
const probeACL = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" +
	"\x02\x00\x04\x00\x00\x00\x00\x00" +
	"\x04\x00\x00\x00\xff\xff\xff\xff" +
	"\x10\x00\x04\x00\xff\xff\xff\xff" +
	"\x20\x00\x00\x00\xff\xff\xff\xff"

// writeACL makes the file aclName, without an ACL where the file system has
// none.
func writeACL(dir string) error {
	f := filepath.Join(dir, aclName)
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		return err
	}
	err := unix.Lsetxattr(f, idshift.ACLAccess, []byte(probeACL), 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return os.NewSyscallError("setxattr "+idshift.ACLAccess, err)
	}
	return nil
}

// readACL checks that a mount with mapped IDs shows the user of the ACL as it
// shows the owner of the file.
func readACL(mnt *mount.Tree) error {
	f := filepath.Join(mnt.Path(), aclName)
	var st unix.Stat_t
	if err := unix.Lstat(f, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: aclName, Err: err}
	}
	var buf linux.XattrBuffer
	acl, err := buf.Lget(f, idshift.ACLAccess)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = idshift.ShiftACL(acl, func(id uint32) (uint32, error) {
		if id != st.Uid {
			return 0, fmt.Errorf("overlay shows the users of POSIX ACLs on an idmapped mount unmapped (before Linux 6.2): %w", unix.EOPNOTSUPP)
		}
		return id, nil
	}, func(id uint32) (uint32, error) { return id, nil })
	return err
}

// idmapACL tries whether overlay maps the IDs in ACLs of idmapped layers.
func idmapACL(dir string, userns int) (err error) {
	layer, below, attach := filepath.Join(dir, "acl-layer"), filepath.Join(dir, "acl-below"), filepath.Join(dir, "acl-attach")
	for _, d := range []string{layer, below, attach} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := writeACL(layer); err != nil {
		return err
	}
	tree, err := mount.Clone(layer)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.Idmap(userns); err != nil {
		return err
	}
	if err := tree.Attach(attach); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Detach()) }()
	mnt, err := overlayOf(attach, below)
	if err != nil {
		return fmt.Errorf("overlay above an idmapped mount: %w", err)
	}
	defer mnt.Close()
	return readACL(mnt)
}
