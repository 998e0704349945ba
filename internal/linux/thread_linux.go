package linux

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThreads runs fn on n operating system threads of their own and returns
// when all have ended, with the first error. The current directory, the
// umask (0 to begin with) and the file system user ID of such a thread are
// fn's to change: the thread ends with fn. unshare(2) of CLONE_FS needs no
// privilege.
func OnThreads(n int, fn func() error) error {
	errs := make(chan error, n)
	for range n {
		go func() { errs <- onThread(fn) }()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// onThread runs fn on a thread that ends with the calling goroutine.
func onThread(fn func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end: package runtime parks it with all its
		// state for the rest of the process's life, and a current directory
		// keeps a file system from being unmounted. While this goroutine
		// waits on it no other can run there.
		err := make(chan error)
		go func() { err <- onThread(fn) }()
		defer runtime.UnlockOSThread()
		return <-err
	}
	// Never unlocked: the thread is thrown away with its state.
	if err := retry(func() error { return unix.Unshare(unix.CLONE_FS) }); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	unix.Umask(0)
	err := fn()
	// The thread ends a moment later than this returns; until then it must
	// not keep a file system busy.
	_ = unix.Chdir("/")
	return err
}

// Fchdir is fchdir(2); name is used in the error only. See OnThreads.
func Fchdir(fd int, name string) error {
	return pathError("fchdir", name, retry(func() error { return unix.Fchdir(fd) }))
}

// SetFSOwner makes the calling thread create files as uid:gid (setfsuid(2)).
// A user ID other than 0 takes CAP_DAC_OVERRIDE, CAP_CHOWN, CAP_FOWNER,
// CAP_FSETID and CAP_MKNOD out of effect until the user ID is 0 again
// (capabilities(7), "Effect of user ID changes").
func SetFSOwner(uid, gid uint32) error {
	// The calls report no errors; asking with an invalid ID tells what is in
	// force. The group first: changing it needs CAP_SETGID, which stays.
	if err := unix.Setfsgid(int(gid)); err != nil {
		return os.NewSyscallError("setfsgid", err)
	}
	if err := unix.Setfsuid(int(uid)); err != nil {
		return os.NewSyscallError("setfsuid", err)
	}
	if got, _ := unix.SetfsgidRetGid(-1); uint32(got) != gid {
		return os.NewSyscallError("setfsgid", unix.EPERM)
	}
	if got, _ := unix.SetfsuidRetUid(-1); uint32(got) != uid {
		return os.NewSyscallError("setfsuid", unix.EPERM)
	}
	return nil
}
