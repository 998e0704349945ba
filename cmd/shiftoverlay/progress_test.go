package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// onTerminal runs a command line with a terminal as standard error, and returns
// standard output and what the terminal got.
func (w *world) onTerminal(args ...string) (out, shown string) {
	w.t.Helper()
	w.close()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(w.t, err)
	defer master.Close()
	require.NoError(w.t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(w.t, err)
	slave, err := os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(w.t, err)
	require.NoError(w.t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120}))
	cmd := exec.CommandContext(w.t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	cmd.Stderr = slave
	got := make(chan string)
	go func() {
		var all strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // EIO when nobody has the other end
			all.Write(buf[:n])
			if err != nil {
				got <- all.String()
				return
			}
		}
	}()
	text, err := cmd.Output()
	require.NoError(w.t, err)
	require.NoError(w.t, slave.Close())
	select {
	case shown = <-got:
	case <-time.After(10 * time.Second):
		require.Fail(w.t, "the terminal is still in use")
	}
	return string(text), shown
}

// TestProgress checks that a terminal sees what is going on, and others do not.
func TestProgress(t *testing.T) {
	w := newWorld(t, "metacopy")
	w.image("localhost/one:latest")
	out, shown := w.onTerminal("warm", "--uidmap", "0:300000:65536", "one")
	assert.Contains(t, shown, "Shifting one")
	assert.Contains(t, out, "built")
	assert.NotContains(t, out, "Shifting")
	r := w.try("", "warm", "--uidmap", "0:400000:65536", "one")
	assert.Zero(t, r.code)
	assert.Empty(t, r.errors)
	testutil.RequireKernel(t, 6, 8)
	out, shown = w.onTerminal("check")
	assert.Contains(t, shown, "Checking 1 of 2: ")
	assert.Contains(t, out, "2 entries checked, 0 findings")
	assert.Empty(t, w.try("", "check").errors)
}
