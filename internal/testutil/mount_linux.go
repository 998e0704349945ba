package testutil

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// UserNamespace makes a user namespace with a mapping, for idmapped mounts.
// It lasts until the test ends. Where there are none the test is skipped as
// by Skip.
func UserNamespace(t testing.TB, m idshift.Mapping) *os.File {
	t.Helper()
	holder := exec.CommandContext(t.Context(), "cat") // reads until its input is closed
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: m.UIDs.SysProcIDMaps(),
		GidMappings: m.GIDs.SysProcIDMaps(),
	}
	input, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		Skip(t, fmt.Sprintf("cannot make a user namespace: %v", err))
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	if err := errors.Join(err, input.Close(), holder.Wait()); err != nil {
		t.Fatalf("make a user namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// IdmapMount shows the folder source at point, an empty folder, through a
// mapping done by the kernel (mount_setattr(2), MOUNT_ATTR_IDMAP). It is
// unmounted when the test ends. Where the kernel or the file system cannot do
// it the test is skipped as by Skip.
func IdmapMount(t testing.TB, source, point string, m idshift.Mapping) {
	t.Helper()
	RequireRoot(t)
	ns := UserNamespace(t, m)
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		Skip(t, "the kernel has no open_tree")
	}
	if err != nil {
		t.Fatalf("open_tree %s: %v", source, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(ns.Fd())}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		Skip(t, fmt.Sprintf("no idmapped mounts of %s: %v", source, err))
	}
	if err != nil {
		t.Fatalf("mount_setattr %s: %v", source, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatalf("move_mount %s: %v", point, err)
	}
	unmountLater(t, point)
}

// Overlay mounts an overlay of lowers, uppermost first, at point, with more
// mount options such as "metacopy=on". It is unmounted when the test ends.
// The lowers' paths may be of any length and hold any byte. An error is that
// of mount(2).
func Overlay(t testing.TB, point string, lowers []string, options ...string) error {
	t.Helper()
	RequireRoot(t)
	var list []string
	for _, l := range lowers {
		fd, err := unix.Open(l, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatalf("open lower %s: %v", l, err)
		}
		defer unix.Close(fd)
		list = append(list, fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	all := append([]string{"lowerdir=" + strings.Join(list, ":")}, options...)
	if err := unix.Mount("overlay", point, "overlay", 0, strings.Join(all, ",")); err != nil {
		return &os.PathError{Op: "mount overlay", Path: point, Err: err}
	}
	unmountLater(t, point)
	return nil
}

func unmountLater(t testing.TB, point string) {
	t.Cleanup(func() {
		if err := unmount(point); err != nil {
			t.Errorf("unmount %s: %v", point, err)
		}
	})
}

// OpenFiles returns how many descriptors this process has open, without those
// of files that nothing refers to any more.
func OpenFiles(t testing.TB) int {
	t.Helper()
	runtime.GC()
	time.Sleep(10 * time.Millisecond) // cleanups run by themselves
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// NoMoreFiles checks that this process has no more descriptors open than before,
// as OpenFiles counted them. What works in the background, such as a driver that
// trims its cache, has five seconds to close its own.
func NoMoreFiles(t testing.TB, before int) {
	t.Helper()
	until := time.Now().Add(5 * time.Second)
	now := OpenFiles(t)
	for ; now > before && time.Now().Before(until); now = OpenFiles(t) {
		time.Sleep(20 * time.Millisecond)
	}
	if now <= before {
		return
	}
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil {
			t.Logf("%s: %s", filepath.Base(l), to)
		}
	}
	t.Errorf("%d descriptors are open, %d were before", now, before)
}
