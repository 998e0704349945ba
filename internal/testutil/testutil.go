// Package testutil decides whether a test that needs root or a kernel feature
// may be skipped. In continuous integration no test may vanish silently: a
// test that SHIFT_TEST_MUST_RUN names (comma separated, or "all") fails where
// it would otherwise be skipped.
package testutil

import (
	"os"
	"slices"
	"strings"
	"testing"
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
