// Plugin-test is a small host for the shiftoverlay graph driver: the driver is
// linked in, so that it can be tried, verified and measured without podman.
//
// It keeps images and containers in a containers/storage store of its own
// (--root), and does to them what an engine does: pull, mount with an ID
// mapping, run a command in a user namespace. Beyond that, verify compares a
// shifted mount with the kernel's own idmapped mount of the same layers, and
// bench measures what a fresh mapping costs.
//
// It is a tool for tests and for trying things out; it applies no seccomp
// filter, no cgroup and no SELinux label to what it runs. To run containers,
// use podman.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/containers/storage/pkg/reexec"
	"github.com/containers/storage/pkg/unshare"
	"golang.org/x/sys/unix"

	// Registers the driver.
	_ "github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
)

// exitOwnError is the exit code for errors of plugin-test itself, as podman's.
const exitOwnError = 125

func main() {
	os.Exit(start())
}

// start is main with an exit code. The storage library and the verb run start
// this program again under another name to do work in a process of its own.
func start() int {
	reexec.Register(runChildName, runChild)
	if reexec.Init() {
		return 0
	}
	if os.Geteuid() != 0 {
		// Become root of a user namespace with the user's IDs of /etc/subuid and
		// /etc/subgid, as rootless podman does; it does not return.
		unshare.MaybeReexecUsingUserNamespace(false)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	return execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	cmd := newRootCommand(a)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	err = afterwards(err, a.close())
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	return exitOwnError
}

// exitError ends the program with a code that is a result, not a failure of
// plugin-test: the exit code of the command that ran, or the differences that
// verify has already printed.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// afterwards joins the error of cleaning up to the result of what was done. A
// failure to clean up is not hidden behind an exit code.
func afterwards(result, cleanup error) error {
	var exit *exitError
	switch {
	case cleanup == nil:
		return result
	case errors.As(result, &exit):
		return cleanup
	}
	return errors.Join(result, cleanup)
}
