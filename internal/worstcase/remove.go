package worstcase

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// Remove deletes a folder with all that is in it, like os.RemoveAll, but also
// what is immutable or can only be appended to.
func Remove(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	fd, err := linux.OpenDir(unix.AT_FDCWD, dir)
	if err != nil {
		return err
	}
	if err := errors.Join(release(fd), linux.Close(fd)); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// release takes the inode flags away that keep what is in a directory from
// being deleted, at any depth.
func release(fd int) error {
	var names []string
	var buf linux.DirBuffer
	err := buf.Read(fd, "", func(name string, _ uint8) error {
		names = append(names, name)
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range append(names, ".") {
		var st unix.Statx_t
		if err := unix.Statx(fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st); err != nil {
			return &os.PathError{Op: "statx", Path: name, Err: err}
		}
		if st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
			if err := changeFlags(fd, name, 0); err != nil {
				return err
			}
		}
		if name == "." || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := linux.OpenDir(fd, name)
		if err != nil {
			return err
		}
		if err := errors.Join(release(sub), linux.Close(sub)); err != nil {
			return err
		}
	}
	return nil
}
