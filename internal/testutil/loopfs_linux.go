package testutil

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mkfsArgs are the commands that make the file systems of LoopFS. ext4 gets a
// journal and an inode for every 4 KiB; nothing is left to be initialised
// later in the background, where it would disturb a measurement.
func mkfsArgs() map[string][]string {
	return map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F", "-b", "4096", "-i", "4096", "-I", "256", "-J", "size=16", "-E", "nodiscard"},
		"xfs":   {"mkfs.xfs", "-q", "-f", "-K"},
		"btrfs": {"mkfs.btrfs", "-q", "-f", "-K"},
	}
}

// LoopFS makes a file system of the given type ("ext4", "xfs" or "btrfs") and
// size in bytes in a sparse file, mounts it and returns the mount point, which
// everybody may enter. All of it is gone when the test ends. Where that cannot
// be done the test is skipped as by Skip. xfs needs 300 MiB, btrfs 128 MiB.
func LoopFS(t testing.TB, fstype string, size int64) string {
	t.Helper()
	RequireRoot(t)
	mkfs, ok := mkfsArgs()[fstype]
	if !ok {
		t.Fatalf("make a %s file system: unknown type", fstype)
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		Skip(t, "needs "+mkfs[0])
	}
	dir := t.TempDir()
	image, point := filepath.Join(dir, "image"), filepath.Join(dir, "fs")
	if err := sparseFile(image, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", mkfs[0], err, out)
	}
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", fstype, "-o", "loop", image, point).CombinedOutput(); err != nil {
		Skip(t, fmt.Sprintf("cannot mount a %s loop device: %v: %s", fstype, err, out))
	}
	t.Cleanup(func() {
		if err := unmount(point); err != nil {
			t.Errorf("unmount %s: %v", point, err)
		}
	})
	return point
}

func sparseFile(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// unmount waits a moment for whoever still has something open there, such as
// a child that is about to end; then it unmounts all the same and says so.
func unmount(point string) error {
	var err error
	for range 200 {
		if err = unix.Unmount(point, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(err, unix.Unmount(point, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH))
}
