//go:build torture

package torture

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// programScenario is what a container goes through with the mount program. It is
// committed while it runs, for which the library mounts it again. Mapping B is not
// among those: the library itself changes the owners for it.
func programScenario() []string {
	return []string{
		"start:n1:A", "write:n1", "commit:n1", "stop:n1", "commit:n1", "start:n1:A", "stop:n1", "rm:n1",
		"age", "start:n2:C", "stop:n2", "rm:n2", "trim", "start:n3:C", "start:n4:", "write:n4", "rm:n4", "rm:n3", "rmi:" + imageID, "trim",
	}
}

// TestProgram kills shiftoverlay-mount, and the processes that it starts, at each of
// their steps, and at random times, with and without the engine that called it.
func TestProgram(t *testing.T) {
	a := begin(t, "program")
	useArchives(t)
	program := os.Getenv("TORTURE_PROGRAM")
	require.NotEmpty(t, program, "TORTURE_PROGRAM, a shiftoverlay-mount with the build tag torture")
	var list []engine
	for _, e := range engines() {
		if e.noIdmap {
			continue // without them it shows no container to be committed
		}
		e.program = program
		list = append(list, e)
	}
	a.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for i, e := range list {
		if a.over() {
			break
		}
		t.Run(e.name, func(t *testing.T) {
			share := a.part(1/float64(len(list)-i), 0)
			h := newHost(t, a, e, filepath.Join(t.TempDir(), "world"))
			h.everyProgramStep(time.Now().Add(share / 2))
			h.programRandomly(time.Now().Add(share / 4))
			h.judge("at the end", true)
		})
	}
}

// everyProgramStep is everyStep: each process that the library starts for an
// operation dies at the same of its steps.
func (h *host) everyProgramStep(until time.Time) {
	done := []string{"pull", "reset"}
	for _, op := range programScenario() {
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
			// The library says that its program was killed, or does not notice, if it
			// was one of those that the program starts.
			_, err := h.with([]string{fmt.Sprint("SHIFT_FAILPOINT=", i+1)}, "operate", op)
			h.a.faults.Add(1)
			if err != nil && !strings.Contains(err.Error(), "signal: killed") {
				h.a.loss("%s: %s, its program killed at step %d, %s: %v", h.e.name, op, i+1, step, err)
			}
			end := i%5 == 4
			h.judge(fmt.Sprintf("program of %s killed at step %d, %s", op, i+1, step), end)
			again := []string{"pull", op}
			if end {
				again = append(slices.Clone(done), op)
			}
			if err := h.do("operate", again...); err != nil {
				h.a.loss("%s: %s, its program killed at step %d, %s: again: %v", h.e.name, op, i+1, step, err)
			}
		}
		h.t.Logf("%s: %d steps of %s", h.e.name, len(steps), op)
		done = append(done, op)
	}
}

// programRandomly kills a child that does one operation after the other, its mount
// program, or both.
func (h *host) programRandomly(until time.Time) {
	const kills = 40
	ops := []string{
		"start:n1:A", "write:n1", "commit:n1", "stop:n1", "start:n1:A", "stop:n1", "rm:n1", "age", "start:n2:C", "write:n2", "commit:n2",
		"stop:n2", "rm:n2", "trim", "start:n1:A", "start:n4:", "write:n4", "stop:n1", "start:n3:C", "commit:n3", "stop:n3", "rm:n3", "reset",
		"rmi:" + imageID, "trim", "pull", "start:n1:A", "start:n2:C", "start:n3:C", "start:n4:",
	}
	for i := range kills {
		if h.a.short() && time.Now().After(until) {
			return
		}
		first := h.a.rand.IntN(len(ops))
		if strings.HasPrefix(ops[first], "rmi:") {
			first++ // the image is in use
		}
		var list []string
		for j := range 200 {
			list = append(list, ops[(first+j)%len(ops)])
		}
		require.NoError(h.t, h.do("operate", "pull", "start:n1:A", "start:n2:C", "start:n3:C", "start:n4:"))
		what := h.killGroup(list)
		h.a.faults.Add(1)
		h.judge(what+" (rm before, perhaps)", i%20 == 19)
	}
}

// killGroup starts a child, and kills, some time after it has begun, the child
// alone, it and the mount programs that it waits for, or only those.
func (h *host) killGroup(ops []string) (what string) {
	cmd := h.child("operate", nil, ops...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(h.t, cmd.Start())
	var err error
	ended := make(chan struct{})
	go func() {
		err = cmd.Wait()
		close(ended)
	}()
	time.Sleep(50*time.Millisecond + time.Duration(h.a.rand.Int64N(int64(400*time.Millisecond))))
	group := cmd.Process.Pid
	switch h.a.rand.IntN(3) {
	case 0:
		what = "the engine alone killed"
		_ = cmd.Process.Kill()
	case 1:
		what = "engine and program killed"
		_ = syscall.Kill(-group, syscall.SIGKILL)
	default:
		what = "the program killed"
		for !over(ended) && !h.killPrograms(group) {
			time.Sleep(time.Millisecond)
		}
	}
	<-ended
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	h.a.operations.Add(int64(len(lines)))
	if err != nil && !killed(err) && !strings.Contains(out.String(), "signal: killed") {
		h.a.loss("%s: %s: %v: %s", h.e.name, what, err, out.Bytes())
	}
	return fmt.Sprintf("%s during %.200s", what, lines[len(lines)-1])
}

// over says whether a channel is closed.
func over(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// killPrograms kills the mount programs of a process group, if there are any.
func (h *host) killPrograms(group int) (any bool) {
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(h.t, err)
	for _, name := range all {
		var pid int
		if exe, err := os.Readlink(name); err != nil || exe != h.e.program {
			continue
		}
		if _, err := fmt.Sscanf(name, "/proc/%d/exe", &pid); err != nil {
			continue
		}
		if its, err := syscall.Getpgid(pid); err == nil && its == group {
			any = syscall.Kill(pid, syscall.SIGKILL) == nil || any
		}
	}
	return any
}
