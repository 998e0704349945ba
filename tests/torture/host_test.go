//go:build torture

package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// host is one world, and what is done to it from outside.
type host struct {
	t *testing.T
	a *area
	e engine
	// root is the world's folder; run is in it, or in one that nothing happens to.
	root, run string
}

// newHost makes a world in a folder.
func newHost(t *testing.T, a *area, e engine, root string) *host {
	t.Helper()
	h := &host{t: t, a: a, e: e, root: root}
	h.reboot(filepath.Join(root, "run"))
	return h
}

// reboot gives the world another run root, empty as after a start of the machine.
func (h *host) reboot(run string) {
	h.t.Helper()
	h.run = run
	require.NoError(h.t, os.MkdirAll(run, 0o755))
	require.NoError(h.t, os.WriteFile(filepath.Join(filepath.Dir(run), "shiftoverlay.conf"), []byte("[shiftoverlay]\n"+h.e.conf+"\n"), 0o600))
}

// outputPatience is how long the output of a dead process may stay open.
const outputPatience = 10 * time.Second

// child starts this program in the world.
func (h *host) child(name string, env []string, args ...string) *exec.Cmd {
	cmd := child(context.Background(), name, args...)
	cmd.Env = append(cmd.Env, worldEnv+"="+h.root, worldEnv+"_RUN="+h.run)
	if h.e.program != "" {
		cmd.Env = append(cmd.Env, programEnv+"="+h.e.program)
	}
	if h.e.noIdmap {
		cmd.Env = append(cmd.Env, "_CONTAINERS_OVERLAY_DISABLE_IDMAP=yes")
	}
	cmd.Env = append(cmd.Env, env...)
	// A process that it has left behind may hold its output: judge finds that.
	cmd.WaitDelay = outputPatience
	return cmd
}

// do runs a child to its end.
func (h *host) do(name string, args ...string) error {
	_, err := h.with(nil, name, args...)
	return err
}

// with is do with more variables in the child's environment. It returns what the
// child said.
func (h *host) with(env []string, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := h.child(name, env, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	h.a.operations.Add(int64(len(args)))
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.Bytes())
	}
	return out.String(), err
}

// steps does an operation and returns the names of its steps.
func (h *host) steps(op string) []string {
	h.t.Helper()
	log := filepath.Join(h.t.TempDir(), "steps")
	_, err := h.with([]string{"SHIFT_FAILPOINT_LOG=" + log}, "operate", op)
	require.NoError(h.t, err)
	text, err := os.ReadFile(log)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(h.t, err)
	return strings.Fields(string(text))
}

// judge looks whether something is lost; with end, it empties the store for that.
func (h *host) judge(what string, end bool) {
	h.t.Helper()
	args := []string{"A", "C"}
	if strings.Contains(what, "rm") || strings.Contains(what, "reset") {
		args = append(args, "removing")
	}
	rest := ""
	if end {
		rest = "end"
	}
	err := errors.Join(h.do("judge", args...), h.do("settle", rest))
	if err == nil {
		err = leftBehind(h.root, driverOf(h.e.program), end)
	}
	patience := 1
	if h.e.program != "" {
		patience = 50 // upkeep and keepers are nobody's children
	}
	for range patience {
		if err == nil || !strings.Contains(err.Error(), "left behind: process") {
			break
		}
		time.Sleep(100 * time.Millisecond) // it may be about to end
		err = leftBehind(h.root, driverOf(h.e.program), end)
	}
	if err != nil {
		h.a.loss("%s: %s: %v", h.e.name, what, err)
	}
}
