// Package testutil decides whether a test that needs root or a kernel feature
// may be skipped. In continuous integration no test may vanish silently: a
// test that SHIFT_TEST_MUST_RUN names (comma separated, or "all") fails where
// it would otherwise be skipped.
package testutil

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// MustRunEnv is the environment variable that lists the tests that may not be
// skipped.
const MustRunEnv = "SHIFT_TEST_MUST_RUN"

// Skip skips the test with a reason, or fails it when it must run.
func Skip(t testing.TB, reason string) {
	t.Helper()
	list := strings.Split(os.Getenv(MustRunEnv), ",")
	name, _, _ := strings.Cut(t.Name(), "/")
	if slices.Contains(list, "all") || slices.Contains(list, name) || slices.Contains(list, t.Name()) {
		t.Fatalf("must run (%s), but: %s", MustRunEnv, reason)
	}
	t.Skip(reason)
}

// RequireRoot skips the test unless it runs with user ID 0.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root")
	}
}

// RequireKernel skips the test on a kernel before a version, which is the
// first that can do what the test is about.
func RequireKernel(t testing.TB, major, minor int) {
	t.Helper()
	if !KernelSince(t, major, minor) {
		Skip(t, fmt.Sprintf("needs Linux %d.%d", major, minor))
	}
}

// KernelSince tells whether the kernel is of a version or a newer one.
func KernelSince(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var have [2]int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatalf("kernel release %q: %v", release, err)
	}
	return slices.Compare(have[:], []int{major, minor}) >= 0
}
