package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// ErofsVia says how the kernel gets at an EROFS image.
type ErofsVia int

const (
	// Auto mounts the file itself where the kernel can (Linux 6.12, an option
	// of its build) and takes a loop device elsewhere.
	Auto ErofsVia = iota
	// File mounts the file itself or fails.
	File
	// Loop takes a loop device.
	Loop
)

// Erofs mounts an EROFS image read-only. The caller closes the tree. A loop
// device goes with the last use of the file system.
func Erofs(file string, via ErofsVia) (*Tree, error) {
	if via == Loop {
		return erofsLoop(file)
	}
	t, err := erofsFile(file)
	if err == nil || via == File {
		return t, err
	}
	// Kernels that cannot do it say ENOTBLK. For whatever other reason it
	// failed, a loop device may work all the same (a file system without what
	// file-backed mounts need, a limit of stacked file systems).
	t, loopErr := erofsLoop(file)
	if loopErr != nil {
		return nil, errors.Join(err, loopErr)
	}
	return t, nil
}

// erofsFile mounts the file itself.
func erofsFile(file string) (*Tree, error) {
	source := file
	if len(source) >= maxValue {
		fd, err := linux.Openat(unix.AT_FDCWD, file, unix.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		defer linux.Close(fd)
		source = procFD(fd)
	}
	return image(source)
}

// maxValue is the size from which on fsconfig(2) takes no value.
const maxValue = 256

// image mounts a file or block device. Images hold nothing that may be run or
// opened by itself; what an overlay above allows is the overlay's business.
func image(source string) (*Tree, error) {
	return New("erofs", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "source="+source, "ro")
}

// erofsLoop mounts the image through a loop device.
func erofsLoop(file string) (*Tree, error) {
	dev, err := loopDevice(file)
	if err != nil {
		return nil, fmt.Errorf("mount erofs: loop device for %s: %w", file, err)
	}
	defer dev.Close()
	return image(dev.Name())
}

// loopTries bounds how often another process may take the free loop device
// before us.
const loopTries = 64

// loopDevice attaches the image to a free loop device, read-only, that is
// detached when nobody has it open any more (loop(4), LO_FLAGS_AUTOCLEAR). The
// caller closes the device.
func loopDevice(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("ioctl LOOP_CTL_GET_FREE", err)
		}
		dev, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
		if err != nil {
			return nil, err
		}
		if err = attachLoop(int(dev.Fd()), int(file.Fd())); err == nil {
			return dev, nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) || try == loopTries {
			return nil, err
		}
	}
}

// attachLoop gives the loop device dev its file.
func attachLoop(dev, file int) error {
	info := unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}
	err := unix.IoctlLoopConfigure(dev, &unix.LoopConfig{Fd: uint32(file), Info: info}) //nolint:gosec // a descriptor
	if !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
		return os.NewSyscallError("ioctl LOOP_CONFIGURE", err)
	}
	// Before Linux 5.8 it takes two steps. The device is ours from the first
	// on, and read-only because it and the file are open for reading only.
	if err := unix.IoctlSetInt(dev, unix.LOOP_SET_FD, file); err != nil {
		return os.NewSyscallError("ioctl LOOP_SET_FD", err)
	}
	if err := unix.IoctlLoopSetStatus64(dev, &info); err != nil {
		_ = unix.IoctlSetInt(dev, unix.LOOP_CLR_FD, 0)
		return os.NewSyscallError("ioctl LOOP_SET_STATUS64", err)
	}
	return nil
}
