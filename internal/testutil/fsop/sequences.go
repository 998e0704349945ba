package fsop

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// The environment variables of tests with random sequences.
const (
	// EnvN is how many sequences a test runs.
	EnvN = "SHIFT_ROUNDTRIP_N"
	// EnvSeed is the seed of the first one; the others count on from it.
	EnvSeed = "SHIFT_ROUNDTRIP_SEED"
)

// Sequences returns the first seed and the number of random sequences that a
// test is to run: what the environment says, or a new seed, and n. It logs the
// seed, so that a failure can be repeated.
func Sequences(t testing.TB, n int) (seed uint64, count int) {
	t.Helper()
	seed, count = uint64(time.Now().Unix())*1000, n //nolint:gosec // a date after 1970
	if s := os.Getenv(EnvSeed); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", EnvSeed, err)
		}
		seed = v
	}
	if s := os.Getenv(EnvN); s != "" {
		v, err := strconv.Atoi(s)
		if err != nil || v < 1 {
			t.Fatalf("%s: %q is no positive number", EnvN, s)
		}
		count = v
	}
	t.Logf("%s=%d %s=%d", EnvSeed, seed, EnvN, count)
	return seed, count
}
