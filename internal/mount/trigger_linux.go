package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// A trigger is a mount of the kernel's automounter (autofs, "direct"): whoever
// walks through it waits until the process group that it belongs to has mounted
// something above it, or given up (Documentation/filesystems/autofs.rst).

// The numbers of include/uapi/linux/auto_fs.h.
const (
	triggerMagic  = 0x0187
	triggerReady  = 0x9360 // _IO(0x93, 0x60): somebody may go on
	triggerGiveUp = 0x9362 // _IO(0x93, 0x62), "catatonic": nobody is to wait any more
	triggerToken  = 8      // where a request has its number, 32 bits
)

// HasTriggers says whether the kernel knows triggers.
func HasTriggers() bool {
	b, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(b), "\tautofs\n")
}

// AddTrigger mounts a trigger at a folder, for a process group that lives. It
// finds who waits in requests, a pipe to which the kernel writes; its end means
// that the trigger is gone.
func AddTrigger(dir string, group int, requests *os.File) error {
	options := fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", requests.Fd(), group)
	if err := unix.Mount("shiftoverlay", dir, "autofs", 0, options); err != nil {
		return &os.PathError{Op: "mount autofs", Path: dir, Err: err}
	}
	return nil
}

// Triggered tells whether the uppermost mount at a folder is a trigger, and the
// number of its device, and whether any is. It walks nowhere: as long as somebody
// waits, whoever so much as looks at the folder waits, too.
func Triggered(dir string) (dev uint64, top, any bool, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, false, false, err
	}
	at := " " + mountinfoName(dir) + " "
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, at) {
			continue
		}
		f := strings.Fields(line) // proc_pid_mountinfo(5)
		dash := slices.Index(f, "-")
		if len(f) < 7 || dash < 0 || dash+1 >= len(f) || f[4] != mountinfoName(dir) {
			continue
		}
		if top = f[dash+1] == "autofs"; top {
			var major, minor uint32
			if _, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err != nil {
				return 0, false, false, fmt.Errorf("read mountinfo %q: %w", line, err)
			}
			dev, any = unix.Mkdev(major, minor), true
		}
	}
	return dev, top, any, nil
}

// mountinfoName is how /proc/self/mountinfo writes a path.
func mountinfoName(path string) string {
	return strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(path)
}

// OpenTrigger opens a trigger at which nobody waits yet. As long as it is open,
// FailTrigger works, whoever waits.
func OpenTrigger(dir string) (*os.File, error) {
	// A path that ends at the mount point does not set it off, and neither does
	// the name of an open file.
	path, err := linux.Openat(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer linux.Close(path)
	fd, err := linux.Openat(unix.AT_FDCWD, procFD(path), unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil //nolint:gosec // a descriptor
}

// setOffPatience is how long the kernel may take to send a request.
const setOffPatience = 10 * time.Second

// SetOff has a thread of this process wait at a trigger, and returns when it does.
// The kernel lets those walk into the trigger itself who only name it (O_PATH,
// lstat(2), chown(2)) as long as nobody waits; from then on they wait, too
// (autofs_d_manage, fs/autofs/root.c), as long as this process lives. requests is
// that of AddTrigger, from which nobody reads yet.
func SetOff(dir string, requests *os.File) error {
	over := make(chan error, 1)
	go func() {
		fd, err := linux.Openat(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			err = linux.Close(fd)
		}
		over <- err
	}()
	for end := time.Now().Add(setOffPatience); time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		select {
		case err := <-over:
			return fmt.Errorf("nobody waits at %s: %w", dir, errors.Join(err, unix.EINVAL))
		default:
		}
		n, err := unix.IoctlGetInt(int(requests.Fd()), unix.TIOCINQ) //nolint:gosec // a descriptor
		if err != nil {
			return os.NewSyscallError("ioctl FIONREAD", err)
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("nobody waits at %s: %w", dir, unix.ETIMEDOUT)
}

// FailTrigger lets everybody fail who waits at a trigger, or will (ENOENT).
func FailTrigger(root *os.File) error {
	return os.NewSyscallError("ioctl AUTOFS_IOC_CATATONIC", unix.IoctlSetInt(int(root.Fd()), triggerGiveUp, 0)) //nolint:gosec // a descriptor
}

// Waiters are those who wait at a trigger, as its process group sees them. It is
// safe for concurrent use.
type Waiters struct {
	lock   sync.Mutex
	tokens []uint32
	root   *os.File
	open   bool // the way
}

// Listen reads requests until there will be none, and then calls gone.
func (w *Waiters) Listen(requests io.Reader, gone func()) {
	defer gone()
	buf := make([]byte, 4096)
	for {
		n, err := requests.Read(buf) // one at a time: the kernel makes it a pipe of packets
		if err != nil || n < triggerToken+4 {
			return
		}
		w.lock.Lock()
		w.tokens = append(w.tokens, binary.NativeEndian.Uint32(buf[triggerToken:]))
		w.release()
		w.lock.Unlock()
	}
}

// Hold opens the trigger at a folder, which stays until Close.
func (w *Waiters) Hold(dir string) error {
	root, err := OpenTrigger(dir)
	w.lock.Lock()
	defer w.lock.Unlock()
	w.root = root
	return err
}

// Release lets everybody go on who waits, or will: something is mounted above the
// trigger.
func (w *Waiters) Release() {
	w.lock.Lock()
	defer w.lock.Unlock()
	w.open = true
	w.release()
}

// Released tells whether Release was called.
func (w *Waiters) Released() bool {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.open
}

// Fail lets everybody fail who waits, or will (ENOENT).
func (w *Waiters) Fail() error {
	w.lock.Lock()
	defer w.lock.Unlock()
	if w.root == nil {
		return nil
	}
	return FailTrigger(w.root)
}

// Close ends Hold.
func (w *Waiters) Close() {
	w.lock.Lock()
	defer w.lock.Unlock()
	if w.root != nil {
		_ = w.root.Close()
		w.root = nil
	}
}

// release lets those go on who are known, once the way is open.
func (w *Waiters) release() {
	if w.root == nil || !w.open {
		return
	}
	for _, t := range w.tokens {
		// Who has been killed meanwhile does not wait any more.
		_ = unix.IoctlSetInt(int(w.root.Fd()), triggerReady, int(t)) //nolint:gosec // a descriptor
	}
	w.tokens = nil
}
