// Shiftoverlay-mount is a mount_program (containers-storage.conf(5)) that gives an
// unmodified podman, buildah, skopeo or CRI-O, with driver = "overlay", the shifted
// lowers of the shiftoverlay driver: the kernel's overlay, the same engines and
// the same kind of cache.
//
// What it cannot do, such as mounts of ordinary users, it hands over to
// fuse-overlayfs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containers/storage/pkg/reexec"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/version"
)

const usage = `Usage: shiftoverlay-mount -o OPTIONS TARGET
       shiftoverlay-mount --upkeep GRAPHROOT
       shiftoverlay-mount --restore GRAPHROOT
       shiftoverlay-mount --version

For storage.conf, where the library calls it itself:

  [storage]
  driver = "overlay"
  [storage.options.overlay]
  mount_program = "/usr/bin/shiftoverlay-mount"

--upkeep applies the limits of the cache and removes what belongs to images that are
gone; mounting does that now and then. --restore makes a store ready for the overlay driver without a mount_program.
shiftoverlay-mount(1) says more.
`

// exitOwnError is the exit code for errors of our own, as podman's.
const exitOwnError = 125

// fuseOverlayfs is who takes over.
const fuseOverlayfs = "fuse-overlayfs"

// upkeepFlag makes this program do upkeep of the store whose folder follows.
const upkeepFlag = "--upkeep"

// keepFlag makes this program keep the mount that is its descriptor 3, for the
// process that is its descriptor 4, while a mount program has the other end of 5;
// for itself only.
const keepFlag = "--keep"

func main() { os.Exit(start()) }

// start is main with an exit code. The storage library starts this program
// again under another name to do work in a process of its own.
func start() int {
	if reexec.Init() {
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if level, err := logrus.ParseLevel(os.Getenv("SHIFTOVERLAY_LOG_LEVEL")); err == nil {
		logrus.SetLevel(level)
	}
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		return exitOwnError
	}
	return 0
}

// run runs one command line.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	switch {
	case slices.Contains(args, "--version"):
		// The first line is what `podman info` shows.
		_, err := fmt.Fprintf(stdout, "shiftoverlay-mount: version %s\n", version.String())
		return err
	case len(args) == 2 && args[0] == "--restore":
		return restore(args[1], stdout)
	case len(args) == 2 && args[0] == upkeepFlag:
		home, err := overlayHome(args[1])
		if err != nil {
			return err
		}
		p, err := shiftoverlay.OpenProgram(home)
		if err != nil {
			return err
		}
		return p.Upkeep(ctx)
	case len(args) == 3 && args[0] == keepFlag:
		inode, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return fmt.Errorf("read inode number: %w", err)
		}
		return shiftoverlay.Keep(ctx, os.NewFile(3, "mount"), os.NewFile(4, "caller"), os.NewFile(5, "program"), shiftoverlay.MountPoint{Path: args[1], Inode: inode})
	case len(args) == 1 && (args[0] == "--help" || args[0] == "-h"):
		_, err := io.WriteString(stdout, usage)
		return err
	case len(args) == 3 && args[0] == "-o":
		return mount(ctx, args)
	}
	return fmt.Errorf("cannot read the command line %q\n%s", strings.Join(args, " "), usage)
}

// mount mounts, or hands over to fuse-overlayfs.
func mount(ctx context.Context, args []string) error {
	home, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the layers' folder: %w", err)
	}
	err = mountHere(ctx, home, args[1], args[2])
	var over *shiftoverlay.HandOverError
	if !errors.As(err, &over) {
		return err
	}
	program, lookErr := exec.LookPath(fuseOverlayfs)
	if lookErr != nil {
		return fmt.Errorf("%w; %s could do it, but is not installed", over, fuseOverlayfs)
	}
	logrus.Debugf("shiftoverlay-mount: %v: handing over to %s", over, program)
	return fmt.Errorf("start %s: %w", program, unix.Exec(program, append([]string{program}, args...), os.Environ()))
}

func mountHere(ctx context.Context, home, options, target string) error {
	call, err := shiftoverlay.ParseProgramCall(home, options, target)
	if err != nil {
		return err
	}
	if !call.OfLayer() {
		return call.MountFolders()
	}
	p, err := shiftoverlay.OpenProgram(home)
	if err != nil {
		return err
	}
	if err := p.Mount(ctx, call, startKeeper); err != nil {
		return err
	}
	if p.NeedsUpkeep() {
		if err := startUpkeep(home); err != nil {
			logrus.Debugf("shiftoverlay-mount: %v", err)
		}
	}
	return nil
}

// startUpkeep starts the upkeep of a store.
func startUpkeep(home string) error { return startOther(nil, upkeepFlag, filepath.Dir(home)) }

// startKeeper is a Keeper.
func startKeeper(tree, caller, program, lock *os.File, point shiftoverlay.MountPoint) error {
	return startOther([]*os.File{tree, caller, program, lock}, keepFlag, point.Path, strconv.FormatUint(point.Inode, 10))
}

// startOther starts this program again as a process for which nobody waits. It
// has none of our standard streams: the library reads them to their end.
func startOther(files []*os.File, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s %s: %w", self, args[0], err)
	}
	return cmd.Process.Release()
}

// restore makes a store one for overlay alone.
func restore(graphroot string, stdout io.Writer) error {
	home, err := overlayHome(graphroot)
	if err != nil {
		return err
	}
	r, err := shiftoverlay.RestoreStore(home)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%d layers in %s have the kernel's whiteouts; take mount_program out of storage.conf, and see that mountopt there has metacopy=on\n", r.Layers, home)
	if r.InUse {
		text += "The cache stays, because containers run; stop them and do this again to have it removed\n"
	}
	_, err = io.WriteString(stdout, text)
	return err
}

// overlayHome is where the overlay driver of a store has its layers.
func overlayHome(graphroot string) (string, error) {
	home, err := filepath.Abs(filepath.Join(graphroot, "overlay"))
	if err == nil {
		_, err = os.Stat(home)
	}
	if err != nil {
		return "", fmt.Errorf("find the layers of the store %s: %w", graphroot, err)
	}
	return home, nil
}
