//go:build torture

package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containers/storage/pkg/reexec"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// children are what this program does in a process of its own, by name: an area
// adds its own in init. The arguments are those that child was given.
var children = map[string]func(args []string) error{}

// childEnv names the child that this program is.
const childEnv = "TORTURE_CHILD"

func TestMain(m *testing.M) {
	// The storage library unpacks layers in a child, which is this program.
	if reexec.Init() {
		return
	}
	if name := os.Getenv(childEnv); name != "" {
		do, ok := children[name]
		err := fmt.Errorf("no child %q", name)
		if ok {
			err = do(os.Args[1:])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testutil.Main(m))
}

// child is this program as another process.
func child(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	return cmd
}

// area counts what an area does.
type area struct {
	t    *testing.T
	name string
	// rand is what random choices come from.
	rand *rand.Rand
	end  time.Time

	operations, faults, losses atomic.Int64
}

// begin begins an area, and reports it when its test ends.
func begin(t *testing.T, name string) *area {
	t.Helper()
	testutil.RequireRoot(t)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("TORTURE_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "TORTURE_SEED")
	}
	seconds := 0
	if text := os.Getenv("TORTURE_SECONDS"); text != "" {
		var err error
		seconds, err = strconv.Atoi(text)
		require.NoError(t, err, "TORTURE_SECONDS")
	}
	a := &area{t: t, name: name, rand: rand.New(rand.NewPCG(seed, 0))}
	if seconds > 0 {
		a.end = time.Now().Add(time.Duration(seconds) * time.Second)
	}
	t.Logf("%s: TORTURE_SEED=%d TORTURE_SECONDS=%d", name, seed, seconds)
	t.Cleanup(a.report)
	return a
}

// short says whether the area has a limit of time.
func (a *area) short() bool { return !a.end.IsZero() }

// over says whether the time is up.
func (a *area) over() bool { return a.short() && time.Now().After(a.end) }

// part is how much longer the area may take, times a fraction; long if there is
// no limit.
func (a *area) part(fraction float64, long time.Duration) time.Duration {
	if !a.short() {
		return long
	}
	return time.Duration(float64(time.Until(a.end)) * fraction)
}

// loss notes that something was lost, and says what.
func (a *area) loss(format string, args ...any) {
	a.t.Helper()
	a.losses.Add(1)
	a.t.Errorf("LOST: "+format, args...)
}

// report writes the area's line.
func (a *area) report() {
	line := fmt.Sprintf("%s: %d operations, %d faults, %d losses", a.name, a.operations.Load(), a.faults.Load(), a.losses.Load())
	a.t.Log(line)
	file := os.Getenv("TORTURE_RESULTS")
	if file == "" {
		return
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, line)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		a.t.Errorf("report: %v", err)
	}
}
