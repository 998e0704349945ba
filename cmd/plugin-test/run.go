package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/lockfile"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

const (
	usernsAuto = "auto"
	usernsHost = "host"

	defaultAutoSize = 65536
)

// runFlags are the flags of the verb run.
type runFlags struct {
	userns   string
	maps     mappingFlags
	autoSize uint32
	readOnly bool
}

func newRunCommand(a *app) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] NAME -- CMD [ARG...]",
		Short: "Run a command in a new container of an image, then delete the container",
		Long: "Run a command as root of a new user namespace, with the image as its root folder and with mount,\n" +
			"PID, IPC and UTS namespaces of its own. The exit code is the command's; 126: it cannot be run; 127: it is\n" +
			"not there; 128+N: signal N ended it; 125: plugin-test failed.",
		Example: "  plugin-test run --userns auto debian -- cat /proc/self/uid_map",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), &f, args[0], args[1:])
		},
	}
	f.maps.register(cmd.Flags())
	cmd.Flags().StringVar(&f.userns, "userns", "", "user namespace `mode`: auto (a free range) or host (none); default: auto, or as --uidmap says")
	cmd.Flags().Uint32Var(&f.autoSize, "auto-size", defaultAutoSize, "`number` of IDs of an automatic user namespace")
	cmd.Flags().BoolVar(&f.readOnly, "read-only", false, "mount the image read-only")
	return cmd
}

func (f *runFlags) check() error {
	switch {
	case f.userns != "" && f.userns != usernsAuto && f.userns != usernsHost:
		return fmt.Errorf("unknown user namespace mode %q: use auto or host", f.userns)
	case f.userns != "" && f.maps.given():
		return errors.New("--userns and --uidmap exclude each other: give one of them")
	}
	return nil
}

func (a *app) run(ctx context.Context, f *runFlags, name string, command []string) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	var mapping idshift.Mapping
	if f.maps.given() {
		if mapping, err = f.maps.mapping(); err != nil {
			return err
		}
		if _, _, ok := mapping.ToHost(0, 0); !ok {
			return fmt.Errorf("mapping %s does not map container ID 0: the command runs as root of its user namespace", mapping)
		}
	}
	store, image, err := a.openImage(name)
	if err != nil {
		return err
	}
	request := containerRequest{mapping: mapping, readOnly: f.readOnly, volatile: true}
	container, err := createRunContainer(store, image, request, f)
	if err != nil {
		return err
	}
	defer func() { err = afterwards(err, deleteContainer(store, container.ID)) }()
	root, err := mountContainer(store, container, "")
	if err != nil {
		return err
	}
	if mapping, err = containerMapping(container); err != nil {
		return err
	}
	code, err := a.runCommand(ctx, root, mapping, runRequest{
		Hostname: shortID(container.ID), Command: command, ReadOnly: f.readOnly,
	})
	if err == nil && code != 0 {
		return &exitError{code}
	}
	return err
}

// createRunContainer makes the container; with an automatic user namespace
// under a lock, so that no two processes pick the same range.
func createRunContainer(store storage.Store, image *storage.Image, request containerRequest, f *runFlags) (*storage.Container, error) {
	if f.userns == usernsHost || f.maps.given() {
		return createContainer(store, image, request)
	}
	lock, err := lockfile.GetLockFile(filepath.Join(store.RunRoot(), "plugin-test-userns.lock"))
	if err != nil {
		return nil, fmt.Errorf("lock ID ranges: %w", err)
	}
	lock.Lock()
	defer lock.Unlock()
	if request.mapping, err = autoMapping(store, f.autoSize); err != nil {
		return nil, fmt.Errorf("pick a user namespace: %w", err)
	}
	return createContainer(store, image, request)
}

// runRequest is what the child must know.
type runRequest struct {
	Hostname string
	Command  []string
	ReadOnly bool // the root is, so that no folder can be made in it
}

// runCommand runs a command with root as its root folder and returns its exit
// code. The child finds the root as its working folder: a path would need
// search permission, as the mapped root, on every folder above it.
func (a *app) runCommand(ctx context.Context, root string, mapping idshift.Mapping, request runRequest) (code int, err error) {
	before, err := os.Getwd()
	if err != nil {
		return 0, fmt.Errorf("run command: %w", err)
	}
	if err := os.Chdir(root); err != nil {
		return 0, fmt.Errorf("run command: %w", err)
	}
	defer func() { err = errors.Join(err, os.Chdir(before)) }()
	encoded, err := json.Marshal(request)
	if err != nil {
		return 0, fmt.Errorf("run command: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{runChildName, string(encoded)}
	cmd.Stdin, cmd.Stdout = os.Stdin, a.stdout
	cmd.Stderr = a.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if !mapping.IsZero() {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = mapping.UIDs.SysProcIDMaps()
		cmd.SysProcAttr.GidMappings = mapping.GIDs.SysProcIDMaps()
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case ctx.Err() != nil:
		return 0, fmt.Errorf("run command: %w", context.Cause(ctx))
	case errors.As(err, &exit):
		status, _ := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, fmt.Errorf("run command: %w", err)
}
