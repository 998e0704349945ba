//go:build torture

package torture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// scenario is what a container goes through. Each operation is killed at each of
// its steps, in a world in which those before it have been done.
// Containers have names that are no hexadecimal numbers: the storage library takes
// "c1" for another container whose ID begins so.
func scenario() []string {
	return []string{
		"start:n1:A", "write:n1", "commit:n1", "durable", "stop:n1", "start:n1:A", "stop:n1", "rm:n1",
		"age", "start:n2:B", "stop:n2", "rm:n2", "trim", "warm:A", "start:n3:B", "stop:n3", "rm:n3", "rmi:" + imageID,
	}
}

// TestDeath kills processes at each of their steps, and at random times.
func TestDeath(t *testing.T) {
	a := begin(t, "death")
	useArchives(t)
	a.eachEngine(t, engines(), func(h *host, share time.Duration) {
		h.progress()
		h.everyStep(time.Now().Add(share/2), scenario(), func(env []string, op string) error {
			cmd := h.child("operate", env, op)
			out, err := cmd.CombinedOutput()
			if killed(err) || err == nil { // steps in several threads come by in another order each time
				return nil
			}
			return fmt.Errorf("%w: %s", err, out)
		})
		h.randomly(time.Now().Add(share/4), deathCircle(), func(ops []string) string {
			return "killed during " + h.killAfter(time.Duration(h.a.rand.Int64N(int64(400*time.Millisecond))), ops)
		})
	})
}

// eachEngine has something done in a world of each engine, in any order, and judges
// what came of it. share is the time that the engine has.
func (a *area) eachEngine(t *testing.T, list []engine, do func(h *host, share time.Duration)) {
	t.Helper()
	a.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for i, e := range list {
		if a.over() {
			break
		}
		t.Run(e.name, func(t *testing.T) {
			share := a.part(1/float64(len(list)-i), 0)
			h := newHost(t, a, e, filepath.Join(t.TempDir(), "world"))
			do(h, share)
			h.judge("at the end", true)
		})
	}
}

// everyStep has each operation of a scenario killed at each of its steps; where there
// is a limit of time, at some of them. kill does an operation with the environment
// that kills it, and fails if anything else went wrong.
func (h *host) everyStep(until time.Time, scenario []string, kill func(env []string, op string) error) {
	done := []string{"pull", "reset"}
	for _, op := range scenario {
		require.NoError(h.t, h.do("operate", done...))
		steps := h.steps(op)
		for i, step := range steps {
			if h.a.short() && time.Now().After(until) {
				return
			}
			if h.a.short() && h.a.rand.IntN(10) > 0 {
				continue
			}
			require.NoError(h.t, h.do("operate", done...))
			what := fmt.Sprintf("%s killed at step %d, %s", op, i+1, step)
			require.NoError(h.t, kill([]string{fmt.Sprint("SHIFT_FAILPOINT=", i+1)}, op), what)
			h.a.faults.Add(1)
			end := i%5 == 4
			h.judge(what, end)
			// Somebody tries again, with what there is.
			again := []string{"pull", op}
			if end {
				again = append(slices.Clone(done), op)
			}
			if err := h.do("operate", again...); err != nil {
				h.a.loss("%s: %s: again: %v", h.e.name, what, err)
			}
		}
		h.t.Logf("%s: %d steps of %s", h.e.name, len(steps), op)
		done = append(done, op)
	}
}

// progress kills a start again and again before it can have come to its end, had it
// to begin anew each time.
func (h *host) progress() {
	if h.e.name != "metacopy" && h.e.name != "copyup" {
		return // an image is made in one go, in microseconds for each file
	}
	require.NoError(h.t, h.do("operate", "pull", "reset"))
	steps := h.steps("start:n1:A")
	require.NoError(h.t, h.do("operate", "reset"))
	env := []string{fmt.Sprint("SHIFT_FAILPOINT=", len(steps)*2/3)}
	tries, dead := 0, true
	for ; dead && tries < 20; tries++ {
		require.NoError(h.t, h.do("operate", "rm:n1"))
		_, err := h.with(env, "operate", "start:n1:A")
		if dead = strings.Contains(fmt.Sprint(err), "signal: killed"); !dead {
			require.NoError(h.t, err)
		}
		h.a.faults.Add(1)
		if tries == 0 {
			require.True(h.t, dead, "the first try is killed")
		}
	}
	if dead {
		h.a.loss("%s: %d starts, each killed after %d steps, make no progress", h.e.name, tries, len(steps)*2/3)
	}
	h.t.Logf("%s: the build came to its end after %d starts that were killed", h.e.name, tries-1)
	h.judge("a start that was killed again and again", true)
}

// killed says whether a process was ended by SIGKILL.
func killed(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// circle is what children do, one operation after the other, from any of them on.
type circle struct {
	// first is done before, so that all of ops can be.
	first, ops []string
	kills      int // of each engine
}

func deathCircle() circle {
	return circle{
		first: []string{"pull", "start:n1:A", "start:n2:B"},
		ops: []string{
			"start:n1:A", "write:n1", "commit:n1", "stop:n1", "start:n1:A", "stop:n1", "durable", "rm:n1", "age", "start:n2:B", "write:n2",
			"stop:n2", "rm:n2", "trim", "warm:C", "start:n1:A", "stop:n1", "start:n3:C", "stop:n3", "rm:n3", "reset", "rmi:" + imageID, "pull", "start:n1:A", "start:n2:B",
		},
		kills: 170, // more than 1000 with all engines
	}
}

// randomly has children killed that go round. kill does operations, and tells what it
// killed.
func (h *host) randomly(until time.Time, c circle, kill func(ops []string) string) {
	for i := range c.kills {
		if h.a.short() && time.Now().After(until) {
			return
		}
		first := h.a.rand.IntN(len(c.ops))
		if strings.HasPrefix(c.ops[first], "rmi:") {
			first++ // the image is in use
		}
		var list []string
		for j := range 200 {
			list = append(list, c.ops[(first+j)%len(c.ops)])
		}
		require.NoError(h.t, h.do("operate", c.first...))
		what := kill(list)
		h.a.faults.Add(1)
		h.judge(what+" (rm before, perhaps)", i%20 == 19)
	}
}

// killAfter starts a child and kills it some time after it has begun its first
// operation. It returns what it was at.
func (h *host) killAfter(d time.Duration, ops []string) string {
	cmd := h.child("operate", nil, ops...)
	out, err := cmd.StdoutPipe()
	require.NoError(h.t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(h.t, cmd.Start())
	lines := bufio.NewScanner(out)
	last := "opening the store"
	if lines.Scan() {
		last = lines.Text()
		time.AfterFunc(d, func() {
			_ = cmd.Process.Kill()
			_ = out.(*os.File).SetReadDeadline(time.Now().Add(outputPatience)) //nolint:forcetypeassert // what StdoutPipe makes
		})
	}
	for lines.Scan() {
		last = lines.Text()
		h.a.operations.Add(1)
	}
	if errors.Is(lines.Err(), os.ErrDeadlineExceeded) {
		h.t.Logf("%s: %s: killed, and its output is still open", h.e.name, last)
	}
	if err := cmd.Wait(); !killed(err) {
		h.a.loss("%s: %s: %v: %s", h.e.name, last, err, stderr.Bytes())
	}
	return last
}
