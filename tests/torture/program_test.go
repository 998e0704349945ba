//go:build torture

package torture

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
	a.eachEngine(t, list, func(h *host, share time.Duration) {
		// Each process that the library starts for an operation dies at the same of its steps.
		h.everyStep(time.Now().Add(share/2), programScenario(), func(env []string, op string) error {
			_, err := h.with(env, "operate", op)
			// Nothing is said of those that the program starts.
			if err != nil && !strings.Contains(err.Error(), "signal: killed") {
				h.a.loss("%s: %s, its program killed: %v", h.e.name, op, err)
			}
			return nil
		})
		h.randomly(time.Now().Add(share/4), programCircle(), h.killGroup)
	})
}

func programCircle() circle {
	return circle{
		first: []string{"pull", "start:n1:A", "start:n2:C", "start:n3:C", "start:n4:"},
		ops: []string{
			"start:n1:A", "write:n1", "commit:n1", "stop:n1", "start:n1:A", "stop:n1", "rm:n1", "age", "start:n2:C", "write:n2", "commit:n2",
			"stop:n2", "rm:n2", "trim", "start:n1:A", "start:n4:", "write:n4", "stop:n1", "start:n3:C", "commit:n3", "stop:n3", "rm:n3", "reset",
			"rmi:" + imageID, "trim", "pull", "start:n1:A", "start:n2:C", "start:n3:C", "start:n4:",
		},
		kills: 40,
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
