package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// probeData is what a probe writes to a file and expects to read elsewhere.
const probeData = "probe"

// trustedXattr tries to set one of overlay's own attributes.
func trustedXattr(dir string) error {
	f := filepath.Join(dir, "xattr")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Lsetxattr(f, ovl.Metacopy, nil, 0); err != nil {
		return fmt.Errorf("extended attributes trusted.* cannot be set here: %w", err)
	}
	return nil
}

// metacopy puts a hand-made metadata-only file above the file with its data
// and reads it through an overlay.
func metacopy(dir string) error {
	data, meta := filepath.Join(dir, "data"), filepath.Join(dir, "meta")
	for _, d := range []string{data, meta} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(data, "f"), []byte(probeData), 0o600); err != nil {
		return err
	}
	f := filepath.Join(meta, "f")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(f, int64(len(probeData))); err != nil {
		return err
	}
	if err := unix.Lsetxattr(f, ovl.Metacopy, nil, 0); err != nil {
		return os.NewSyscallError("setxattr "+ovl.Metacopy, err)
	}
	mnt, err := overlayOf(meta, data)
	if err != nil {
		return fmt.Errorf("overlay with metacopy=on: %w", err)
	}
	defer mnt.Close()
	return readProbe(mnt)
}

// userMetacopy does so with attributes that need no privilege, a data-only lower
// and an upper, in folders of their own.
func userMetacopy(dir string) error {
	dir = filepath.Join(dir, "user")
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"", "data", "data/below", "meta", "upper", "work"} {
		if err := os.Mkdir(at(d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(at("data/below/f"), []byte(probeData), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(at("meta/f"), nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(at("meta/f"), int64(len(probeData))); err != nil {
		return err
	}
	for name, value := range map[string]string{"metacopy": "", "redirect": "/below/f"} {
		name = idshift.UserOverlay.Attribute(name)
		if err := unix.Lsetxattr(at("meta/f"), name, []byte(value), 0); err != nil {
			return fmt.Errorf("extended attributes user.* cannot be set here: %w", err)
		}
	}
	mnt, err := mount.Overlay{
		Above: []string{at("meta")}, Data: []string{at("data")}, Upper: at("upper"), Work: at("work"), Options: []string{"userxattr"},
	}.Mount()
	if err != nil {
		return fmt.Errorf("overlay with userxattr and data-only lowers (since Linux 6.16 or so): %w", err)
	}
	defer mnt.Close()
	if err := readProbe(mnt); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(mnt.Path(), "new"), nil, 0o600); err != nil {
		return fmt.Errorf("overlay with userxattr and data-only lowers cannot be written to: %w", err)
	}
	return nil
}

// overlayOf mounts a read-only overlay of folders, uppermost first, with
// metacopy=on, that no mount table shows.
func overlayOf(dirs ...string) (*mount.Tree, error) {
	// By descriptor: fsconfig(2) takes strings of less than 256 bytes, and a
	// path may contain a colon.
	lowers := make([]string, 0, len(dirs))
	for _, d := range dirs {
		fd, err := linux.Openat(unix.AT_FDCWD, d, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer linux.Close(fd)
		lowers = append(lowers, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	return mount.New("overlay", 0, "lowerdir="+strings.Join(lowers, ":"), "metacopy=on")
}

// readProbe reads the file "f" of a mount, a metadata-only file whose data is
// elsewhere.
func readProbe(t *mount.Tree) error {
	r, err := os.DirFS(t.Path()).Open("f") // errors name just that
	if err != nil {
		return fmt.Errorf("overlay does not follow a metadata-only file: %w", err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != probeData {
		return fmt.Errorf("overlay reads %q through a metadata-only file (%w)", b, errors.Join(err, unix.EIO))
	}
	return nil
}

// reflink tries to make one file share the data of another.
func reflink(dir string) error {
	src, err := os.Create(filepath.Join(dir, "reflink-src")) //nolint:forbidigo // a fresh folder of our own
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.WriteString(probeData); err != nil {
		return err
	}
	dst, err := os.Create(filepath.Join(dir, "reflink-dst")) //nolint:forbidigo // a fresh folder of our own
	if err != nil {
		return err
	}
	defer dst.Close()
	return linux.CloneFile(int(dst.Fd()), int(src.Fd()), "file data")
}

// UserNS is for Options: any mapping does that changes an ID.
func UserNS() (int, error) {
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1, Size: 1}}
	return linux.UserNS(one, one)
}

// openUserNS makes a user namespace, -1 with an error.
func (o Options) openUserNS() (int, error) {
	if o.UserNS == nil {
		return -1, errors.New("not tried")
	}
	ns, err := o.UserNS()
	if err != nil {
		return -1, fmt.Errorf("make a user namespace: %w", err)
	}
	return ns, nil
}

// idmapMount tries to make an idmapped, detached mount of dir.
func idmapMount(dir string, userns int) error {
	tree, err := mount.Clone(dir)
	if err != nil {
		return err
	}
	defer tree.Close()
	return tree.Idmap(userns)
}

// idmapDetached puts two folders of an idmapped mount that no mount table shows
// below a writable overlay.
func idmapDetached(dir string, userns int) error {
	dir = filepath.Join(dir, "detached")
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"", "layers", "layers/1", "layers/2", "upper", "work"} {
		if err := os.Mkdir(at(d), 0o700); err != nil {
			return err
		}
	}
	f := at("layers/2/f")
	if err := os.WriteFile(f, []byte(probeData), 0o600); err != nil {
		return err
	}
	var below, above unix.Stat_t
	if err := unix.Lstat(f, &below); err != nil {
		return &os.PathError{Op: "lstat", Path: "f", Err: err}
	}
	tree, err := mount.CloneOne(at("layers"))
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.Idmap(userns); err != nil {
		return err
	}
	mnt, err := mount.Overlay{Parts: []mount.Part{{Tree: tree, Path: "1"}, {Tree: tree, Path: "2"}}, Upper: at("upper"), Work: at("work")}.Mount()
	if err != nil {
		return fmt.Errorf("overlay above an idmapped mount that no mount table shows (since Linux 6.15 or so): %w", err)
	}
	defer mnt.Close()
	if err := unix.Lstat(filepath.Join(mnt.Path(), "f"), &above); err != nil {
		return &os.PathError{Op: "lstat", Path: "f", Err: err}
	}
	if above.Uid == below.Uid {
		return fmt.Errorf("overlay shows the IDs of an idmapped mount that no mount table shows unmapped: %w", unix.EOPNOTSUPP)
	}
	return nil
}
