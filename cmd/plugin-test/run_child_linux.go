package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// runChildName is the name under which this program is started again as the
// first process of a container.
const runChildName = "plugin-test-run-child"

const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// runChild is the first process of a container: it makes the working folder
// its root and becomes the command of its only argument, a runRequest. It does
// not return.
func runChild() {
	code, err := becomeCommand(os.Args[1:])
	fmt.Fprintf(os.Stderr, "Error: %v\n", err)
	os.Exit(code)
}

func becomeCommand(args []string) (exitCode int, err error) {
	var request runRequest
	if len(args) != 1 {
		return exitOwnError, fmt.Errorf("start command: want one argument, have %d", len(args))
	}
	if err := json.Unmarshal([]byte(args[0]), &request); err != nil {
		return exitOwnError, fmt.Errorf("start command: %w", err)
	}
	if err := enterRoot(request.ReadOnly); err != nil {
		return exitOwnError, fmt.Errorf("start command: %w", err)
	}
	if err := unix.Sethostname([]byte(request.Hostname)); err != nil {
		return exitOwnError, fmt.Errorf("start command: set host name: %w", err)
	}
	environment := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "container=plugin-test", "TERM=" + os.Getenv("TERM"),
	}
	if err := os.Setenv("PATH", environment[0][len("PATH="):]); err != nil {
		return exitOwnError, fmt.Errorf("start command: %w", err)
	}
	// Nothing of the machine that the caller left open is to reach the command.
	if err := closeOnExec(); err != nil {
		return exitOwnError, fmt.Errorf("start command: close files: %w", err)
	}
	path, err := exec.LookPath(request.Command[0])
	if err == nil {
		err = &os.PathError{Op: "execute", Path: path, Err: unix.Exec(path, request.Command, environment)}
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitNotFound, fmt.Errorf("start command: %w", err)
	}
	return exitNotExecutable, fmt.Errorf("start command: %w", err)
}

// closeOnExec lets no open file but the first three reach the command. Before
// Linux 5.11 the kernel cannot do it in one call (EINVAL, or ENOSYS before 5.9).
func closeOnExec() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd) // of a file that is closed already: nothing
		}
	}
	return nil
}

// enterRoot makes the working folder the root of this mount namespace, with
// /proc and a small /dev. Where the machine's own root cannot be exchanged
// (an initramfs), it is left with chroot.
func enterRoot(readOnly bool) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, ".", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, ".", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if err := unix.Fchdir(tree); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := mountProc(readOnly); err != nil {
		return err
	}
	if err := mountDev(readOnly); err != nil {
		return err
	}
	err = unix.PivotRoot(".", ".")
	switch {
	case errors.Is(err, unix.EINVAL):
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("change root: %w", err)
		}
	case err != nil:
		return fmt.Errorf("exchange root: %w", err)
	default:
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("leave old root: %w", err)
		}
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return nil
}

// mountPoint makes a folder of the container's root unless it is there. It
// reports false where there can be none, in an image mounted read-only. A
// symbolic link in its place, which could lead anywhere, is an error.
func mountPoint(name string, readOnly bool) (bool, error) {
	err := os.Mkdir(name, 0o755)
	if err == nil || errors.Is(err, fs.ErrExist) || readOnly {
		st, err := os.Lstat(name)
		switch {
		case readOnly && errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("make mount point: %w", err)
		case !st.IsDir():
			return false, fmt.Errorf("mount on /%s: it is no folder in the image", name)
		}
		return true, nil
	}
	return false, fmt.Errorf("make mount point: %w", err)
}

// mountProc mounts the proc file system of the new PID namespace. It must run
// while the machine's own is still in sight: else the kernel refuses it in a
// user namespace.
func mountProc(readOnly bool) error {
	ok, err := mountPoint("proc", readOnly)
	if err != nil || !ok {
		return err
	}
	err = unix.Mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) { // parts of the machine's own are covered
		err = unix.Mount("/proc", "proc", "", unix.MS_BIND|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func mountDev(readOnly bool) error {
	ok, err := mountPoint("dev", readOnly)
	if err != nil || !ok {
		return err
	}
	if err := unix.Mount("tmpfs", "dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		target := filepath.Join("dev", name)
		if err := os.WriteFile(target, nil, 0o666); err != nil {
			return fmt.Errorf("make device: %w", err)
		}
		if err := unix.Mount("/dev/"+name, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind device /dev/%s: %w", name, err)
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join("dev", link)); err != nil {
			return fmt.Errorf("make device link: %w", err)
		}
	}
	return nil
}
