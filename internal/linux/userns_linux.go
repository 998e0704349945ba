package linux

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UserNS makes a user namespace (user_namespaces(7)) with mappings, as in
// /proc/PID/uid_map and gid_map, and returns a descriptor of it, for
// mount_setattr(2). The namespace lasts as long as something uses it; the
// process that it takes to make it has ended when UserNS returns, and ends by
// itself if the calling process is killed before that, whenever that is.
func UserNS(uids, gids []syscall.SysProcIDMap) (ns int, err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return -1, os.NewSyscallError("pipe2", err)
	}
	defer func() { _ = Close(pipe[0]) }()
	pid, err := cloneUserNS(pipe[0], pipe[1])
	if err != nil {
		return -1, errors.Join(err, Close(pipe[1]))
	}
	// Who is killed by somebody else, or waited for, is of no further interest.
	defer func() {
		_ = Close(pipe[1])
		_ = unix.Kill(pid, unix.SIGKILL)
		_ = retry(func() error { _, err := unix.Wait4(pid, nil, 0, nil); return err })
	}()
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	for _, m := range []struct {
		name string
		ids  []syscall.SysProcIDMap
	}{{"uid_map", uids}, {"gid_map", gids}} {
		var text strings.Builder
		for _, id := range m.ids {
			fmt.Fprintln(&text, id.ContainerID, id.HostID, id.Size)
		}
		if err := os.WriteFile(proc+m.name, []byte(text.String()), 0); err != nil {
			return -1, err
		}
	}
	return Openat(unix.AT_FDCWD, proc+"ns/user", unix.O_RDONLY, 0)
}

// cloneUserNS makes a process in a user namespace of its own that does nothing
// and ends when the last descriptor of the pipe's end write is closed.
func cloneUserNS(read, write int) (pid int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The process inherits what is blocked; it could handle no signal.
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return -1, os.NewSyscallError("rt_sigprocmask", err)
	}
	pid, errno := rawClone(unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), uintptr(read), uintptr(write)) //nolint:gosec // descriptors
	err = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	if errno != 0 {
		return -1, os.NewSyscallError("clone", errno)
	}
	return pid, os.NewSyscallError("rt_sigprocmask", err)
}

// rawClone is cloneUserNS's system call, and what the process does.
//
// The process is a copy of this one with one thread, in which nothing of the
// runtime works: as in package syscall between fork and exec, there are raw
// system calls only, and nothing that grows the stack. It closes what it
// inherits, so as not to keep somebody's lock or the other end of a pipe.
//
//go:noinline
//go:norace
//go:nosplit
func rawClone(flags, read, write uintptr) (pid int, errno syscall.Errno) {
	var child uintptr
	if runtime.GOARCH == "s390x" { // clone(2), "C library/kernel differences"
		child, _, errno = unix.RawSyscall6(unix.SYS_CLONE, 0, flags, 0, 0, 0, 0)
	} else {
		child, _, errno = unix.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	}
	if errno != 0 || child != 0 {
		return int(child), errno //nolint:gosec // a process ID
	}
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, write, 0, 0)
	if read > 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, 0, read-1, 0)
	}
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, read+1, uintptr(^uint32(0)), 0)
	var buf [1]byte
	for {
		if _, _, e := unix.RawSyscall(unix.SYS_READ, read, uintptr(unsafe.Pointer(&buf)), 1); e != unix.EINTR {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}
