package linux

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Futimes sets access and modification time of an open file in nanoseconds;
// name is used in the error only. It is utimensat(2) with a null path, which
// package unix does not offer.
func Futimes(fd int, name string, atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	return pathError("futimens", name, retry(func() error {
		_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	}))
}
