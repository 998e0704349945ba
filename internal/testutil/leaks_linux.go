package testutil

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs a package's tests and returns what its TestMain exits with: 1 also if
// the tests have passed and left goroutines, descriptors or mounts behind. They get
// a TMPDIR of their own: other packages mount at the same time. Their children,
// which are built with the race detector if the tests are, do not linger for a
// second when they end.
func Main(m *testing.M) int {
	scratch, err := os.MkdirTemp("", "p")
	if err == nil {
		race := os.Getenv("GORACE") + " atexit_sleep_ms=0"
		err = errors.Join(os.Chmod(scratch, 0o777|os.ModeSticky), os.Setenv("TMPDIR", scratch), os.Setenv("GORACE", race)) //nolint:gosec // other users go through it, or are children that make their own
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "make a folder for the tests: %v\n", err)
		return 1
	}
	defer os.Remove(scratch)
	files := openFiles()
	code := m.Run()
	if code != 0 || slices.ContainsFunc(os.Args, func(arg string) bool { return strings.HasPrefix(arg, "-test.fuzz") }) {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintf(os.Stderr, "goroutines are left:\n%v\n", err)
		return 1
	}
	if left := added(files, openFiles); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "descriptors are left:\n%s\n", strings.Join(left, "\n"))
		return 1
	}
	if left := added(nil, func() []string { return mountsBelow(scratch) }); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "mounts are left:\n%s\n", strings.Join(left, "\n"))
		return 1
	}
	return 0
}

// added lists what there is more than before, once it does not become less.
func added(before []string, list func() []string) (left []string) {
	for range 40 {
		runtime.GC() // files that nothing refers to any more
		left = nil
		old := slices.Clone(before)
		for _, now := range list() {
			if i := slices.Index(old, now); i >= 0 {
				old = slices.Delete(old, i, i+1)
			} else {
				left = append(left, now)
			}
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return left
}

// openFiles lists what is open, without what the Go runtime and the test binary
// open for themselves and keep.
func openFiles() (out []string) {
	names, _ := os.ReadDir("/proc/self/fd")
	for _, n := range names {
		to, err := os.Readlink("/proc/self/fd/" + n.Name())
		if err != nil || to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]" || to == "anon_inode:[pidfd]" ||
			strings.HasPrefix(to, "/proc/") || strings.HasPrefix(to, "/dev/") {
			continue
		}
		out = append(out, to)
	}
	return out
}

// mountsBelow lists the mount points below a folder.
func mountsBelow(dir string) (out []string) {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}
