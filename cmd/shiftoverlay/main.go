// Shiftoverlay is the operator's tool for stores of the shiftoverlay graph
// driver: it shows what this machine can do and what the cache of shifted lowers
// holds, builds shifted lowers before the first start needs them, removes those
// that nobody needs, and checks all of them against the images' layers. It works
// beside a running podman, on the same store.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/containers/storage/pkg/reexec"
	"golang.org/x/sys/unix"
)

// The exit codes besides 0, as podman's.
const (
	exitOwnError = 125
	exitFindings = 1
)

func main() {
	os.Exit(start())
}

// start is main with an exit code. The storage library starts this program
// again under another name to do work in a process of its own.
func start() int {
	if reexec.Init() {
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	return execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	cmd := newRootCommand(a)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	closing := a.close()
	var exit *exitError
	if closing == nil && errors.As(err, &exit) {
		return exit.code
	}
	if err = errors.Join(err, closing); err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	return exitOwnError
}

// exitError ends the program with a code that is a result, not a failure: the
// findings of check have been printed.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }
