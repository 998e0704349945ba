package linux

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// retry calls fn until it ends with something other than EINTR.
func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: err}
}

// Openat is openat(2). O_CLOEXEC is always added. The caller owns the
// descriptor.
func Openat(dirfd int, path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, path, flags|unix.O_CLOEXEC, mode)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, pathError("openat", path, err)
		}
	}
}

// OpenDir opens a directory for reading without following a symbolic link in
// the last component and, where that is allowed, without changing its access
// time.
func OpenDir(dirfd int, path string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := Openat(dirfd, path, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return Openat(dirfd, path, flags, 0)
	}
	return fd, err
}

// OpenBeneath opens something below a directory, by a path that leads through
// neither symbolic links nor mounts nor upwards (openat2(2)), as overlay looks up
// data. It needs Linux 5.6.
func OpenBeneath(dirfd int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat2(dirfd, path, &how)
		if errors.Is(err, unix.EAGAIN) { // something was renamed meanwhile
			err = unix.EINTR
		}
		return err
	})
	if err != nil {
		return -1, pathError("openat2", path, err)
	}
	return fd, nil
}

// Close closes a descriptor. It is not tried again on EINTR: Linux has given
// the descriptor back by then (close(2), NOTES).
func Close(fd int) error {
	if err := unix.Close(fd); err != nil && err != unix.EINTR {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// Lstatat is fstatat(2) without following a symbolic link in the last
// component.
func Lstatat(dirfd int, path string, st *unix.Stat_t) error {
	return pathError("lstatat", path, retry(func() error {
		return unix.Fstatat(dirfd, path, st, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

// Fstat is fstat(2); name is used in the error only.
func Fstat(fd int, name string, st *unix.Stat_t) error {
	return pathError("fstat", name, retry(func() error { return unix.Fstat(fd, st) }))
}

// Readlinkat returns the target of a symbolic link, which has size bytes
// according to lstat(2); 0 stands for unknown.
func Readlinkat(dirfd int, path string, size int64) (string, error) {
	if size <= 0 || size > unix.PathMax {
		size = unix.PathMax
	}
	for buf := make([]byte, size+1); ; buf = make([]byte, 2*len(buf)) {
		n := 0
		err := retry(func() (err error) {
			n, err = unix.Readlinkat(dirfd, path, buf)
			return err
		})
		if err != nil {
			return "", pathError("readlinkat", path, err)
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
	}
}

// Mkdirat is mkdirat(2).
func Mkdirat(dirfd int, path string, mode uint32) error {
	return pathError("mkdirat", path, retry(func() error { return unix.Mkdirat(dirfd, path, mode) }))
}

// Mknodat is mknodat(2); dev is in the kernel's 64-bit user-space encoding,
// as stat(2) gives it in st_rdev.
func Mknodat(dirfd int, path string, mode uint32, dev uint64) error {
	return pathError("mknodat", path, retry(func() error {
		return unix.Mknodat(dirfd, path, mode, int(dev)) //nolint:gosec // the encoding of st_rdev fits
	}))
}

// Symlinkat is symlinkat(2).
func Symlinkat(target string, dirfd int, path string) error {
	return pathError("symlinkat", path, retry(func() error { return unix.Symlinkat(target, dirfd, path) }))
}

// Linkat is linkat(2) without following symbolic links.
func Linkat(olddirfd int, oldpath string, newdirfd int, newpath string) error {
	return pathError("linkat", newpath, retry(func() error {
		return unix.Linkat(olddirfd, oldpath, newdirfd, newpath, 0)
	}))
}

// Lchownat is fchownat(2) without following a symbolic link.
func Lchownat(dirfd int, path string, uid, gid uint32) error {
	return pathError("lchownat", path, retry(func() error {
		return unix.Fchownat(dirfd, path, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	}))
}

// Fchown is fchown(2); name is used in the error only.
func Fchown(fd int, name string, uid, gid uint32) error {
	return pathError("fchown", name, retry(func() error { return unix.Fchown(fd, int(uid), int(gid)) }))
}

// Fchmod is fchmod(2); name is used in the error only.
func Fchmod(fd int, name string, mode uint32) error {
	return pathError("fchmod", name, retry(func() error { return unix.Fchmod(fd, mode) }))
}

// Fchmodat changes the mode of something that is not a symbolic link.
func Fchmodat(dirfd int, path string, mode uint32) error {
	return pathError("fchmodat", path, retry(func() error { return unix.Fchmodat(dirfd, path, mode, 0) }))
}

// Ftruncate is ftruncate(2); name is used in the error only.
func Ftruncate(fd int, name string, size int64) error {
	return pathError("ftruncate", name, retry(func() error { return unix.Ftruncate(fd, size) }))
}

// Lutimesat sets access and modification time in nanoseconds, of a symbolic
// link itself if path names one.
func Lutimesat(dirfd int, path string, atime, mtime unix.Timespec) error {
	return pathError("utimensat", path, retry(func() error {
		return unix.UtimesNanoAt(dirfd, path, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

// Syncfs writes everything that is dirty on the file system of fd to its
// disk.
func Syncfs(fd int, name string) error {
	return pathError("syncfs", name, retry(func() error { return unix.Syncfs(fd) }))
}

// CloneFile makes dst share the data of src (ioctl_ficlone(2)).
func CloneFile(dst, src int, name string) error {
	return pathError("ficlone", name, retry(func() error { return unix.IoctlFileClone(dst, src) }))
}
