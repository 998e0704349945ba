//go:build torture

package failpoint

import (
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

var (
	count  atomic.Int64
	die, _ = strconv.ParseInt(os.Getenv("SHIFT_FAILPOINT"), 10, 64)
	log    = os.Getenv("SHIFT_FAILPOINT_LOG")
	// program is run in the place of dying.
	program = os.Getenv("SHIFT_FAILPOINT_RUN")
)

// Hit says that something has just been changed, or is about to be. name says
// what, for whoever reads the log.
func Hit(name string) {
	if die == 0 && log == "" {
		return
	}
	n := count.Add(1)
	if log != "" {
		note(name)
	}
	if n != die {
		return
	}
	if program != "" {
		if out, err := exec.Command(program).CombinedOutput(); err != nil {
			_, _ = os.Stderr.WriteString("failpoint: " + program + ": " + err.Error() + ": " + string(out) + "\n")
		}
		return
	}
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {} // until the signal has arrived
}

// note appends the name to the log, in one write.
func note(name string) {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(name + "\n")
	_ = f.Close()
}
