package shiftoverlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/reexec"
	"github.com/containers/storage/pkg/unshare"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// The storage library holds the locks of the whole store while it calls Get.
// What Get cannot have within a short time is therefore made by another process,
// without the locks: Get mounts a trigger in the place of the container, at
// which everybody who opens the container waits, and returns. The process
// makes the shifted lower, mounts the container above the trigger as Get would have,
// and lets those who wait go on. It takes no lock of the library's: whoever mounts a
// container twice asks with the locks whether it is mounted, and waits there.

// errLate says that something takes longer than Get may.
var errLate = fmt.Errorf("takes longer than a mount may: %w", cache.ErrAbandoned)

// lateName is the name of the process that mounts late.
const lateName = "shiftoverlay-late"

func init() { reexec.Register(lateName, lateMain) }

// late is what a driver needs to know to mount late.
type late struct {
	// after is how long Get may take; 0: as long as it takes.
	after   time.Duration
	home    string
	options graphdriver.Options // as Init was given them
	// doing is the layer that this process mounts late.
	doing string
}

// lateJob is what the process is told.
type lateJob struct {
	Home    string
	Options graphdriver.Options
	ID      string
	Mount   graphdriver.MountOpts
}

// lateMark is a file that is there as long as there may be a trigger at a
// layer's mount point. It has the name of the process that mounts.
func (d *Driver) lateMark(id string) string { return filepath.Join(d.runHome, "late", id) }

// mayBeLate tells whether a mount may be made later. The caller of Get must be
// the storage library's Mount, which looks at nothing in the container before
// it has given back the locks: only that comes with a mapping.
func (d *Driver) mayBeLate(given bool) bool {
	return given && d.late.after > 0 && !d.managed && !unshare.IsRootless() && mounts.HasTriggers()
}

// prepareSoon is prepare, or errLate if that takes too long.
func (d *Driver) prepareSoon(id string, chain []shifter.Layer, m idshift.Mapping, given bool) (shifter.Lower, error) {
	if !d.mayBeLate(given) {
		return d.prepare(context.Background(), id, chain, m)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), d.late.after, errLate)
	defer cancel()
	lower, err := d.prepare(ctx, id, chain, m)
	if err != nil && errors.Is(context.Cause(ctx), errLate) {
		return lower, errLate
	}
	return lower, err
}

// mountLater leaves the mount to another process. If that cannot be begun, the
// error is errLate, and all is as it was.
func (d *Driver) mountLater(id string, p layerPaths, o graphdriver.MountOpts) (string, error) {
	cmd, job, requests, err := startLate()
	if err != nil {
		logrus.Debugf("shiftoverlay: mount layer %s later: %v", id, err)
		return "", errLate
	}
	defer requests.Close()
	root, err := d.trigger(id, p.merged, cmd.Process.Pid, requests)
	if err == nil {
		// podman, for one, opens the mount point in the way that does not set it off.
		if err = mounts.SetOff(p.merged, requests); err == nil {
			err = json.NewEncoder(job).Encode(lateJob{Home: d.late.home, Options: d.late.options, ID: id, Mount: o})
		}
		if err != nil {
			err = errors.Join(err, mounts.FailTrigger(root), root.Close(), mounts.Detach(p.merged))
		}
	}
	err = errors.Join(err, job.Close())
	if err != nil {
		_ = os.Remove(d.lateMark(id))
		logrus.Debugf("shiftoverlay: mount layer %s later: %v", id, errors.Join(err, cmd.Wait()))
		return "", errLate
	}
	logrus.Debugf("shiftoverlay: layer %s is mounted later, by process %d", id, cmd.Process.Pid)
	go func() {
		if err := cmd.Wait(); err != nil {
			// Killed, or it has let them fail already.
			logrus.Debugf("shiftoverlay: mount layer %s later: %v", id, errors.Join(err, mounts.FailTrigger(root)))
		}
		_ = root.Close()
	}()
	return p.merged, nil
}

// trigger mounts a trigger for a process group, and opens it.
func (d *Driver) trigger(id, merged string, group int, requests *os.File) (*os.File, error) {
	mark := d.lateMark(id)
	if err := os.MkdirAll(filepath.Dir(mark), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(mark, []byte(processName(group)), 0o600); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(merged, 0o700); err != nil {
		return nil, err
	}
	if err := mounts.AddTrigger(merged, group, requests); err != nil {
		return nil, err
	}
	root, err := mounts.OpenTrigger(merged)
	if err != nil {
		err = errors.Join(err, mounts.Detach(merged))
	}
	return root, err
}

// otherProcess is this program as a process that does what is registered under a
// name. It is an error in a program that has never called reexec.Init.
func otherProcess(name string) (cmd *exec.Cmd, err error) {
	defer func() {
		if r := recover(); r != nil { // of reexec
			err = fmt.Errorf("%v", r)
		}
	}()
	return reexec.Command(name), nil
}

// startLate starts the process. It waits for its job, and ends if there is none.
func startLate() (cmd *lateCommand, job, requests *os.File, err error) {
	if cmd, err = otherProcess(lateName); err != nil {
		return nil, nil, nil, err
	}
	read, requests, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer read.Close()
	stdin, job, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, errors.Join(err, requests.Close())
	}
	defer stdin.Close()
	cmd.Stdin, cmd.Stderr = stdin, os.Stderr
	cmd.ExtraFiles = []*os.File{read}
	// A group of its own: those in it do not wait at the trigger. And whoever
	// interrupts the start does not interrupt the build, which the next finds.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, nil, errors.Join(err, requests.Close(), job.Close())
	}
	return cmd, job, requests, nil
}

// pending tells whether a layer waits to be mounted, without looking at its mount
// point, for which one would have to wait.
func (d *Driver) pending(id, merged string) bool {
	if _, err := os.Lstat(d.lateMark(id)); err != nil {
		return false
	}
	_, top, _, err := mounts.Triggered(merged)
	return err == nil && top
}

// inUse tells whether a layer is mounted, or waits to be.
func (d *Driver) inUse(id, merged string) bool { return d.pending(id, merged) || mounted(merged) }

// endLate takes a trigger at a layer's mount point away: from below the mount
// that was made late, or with all who wait for one. The storage library's own
// code wants to find one mount.
func (d *Driver) endLate(id string) error {
	mark := d.lateMark(id)
	if _, err := os.Lstat(mark); err != nil || id == d.late.doing {
		return nil //nolint:nilerr // no mark, no trigger
	}
	p, err := d.paths(id)
	if err != nil {
		return err
	}
	_, top, _, err := mounts.Triggered(p.merged)
	if err == nil && top {
		err = giveUpLate(mark, p.merged)
	}
	if err == nil {
		err = endLateMount(mark, p.merged)
	}
	if err != nil {
		return fmt.Errorf("unmount layer %s: %w", id, err)
	}
	return nil
}

// endLateMount is endLate when nobody waits, and the process may have come to mount
// the container meanwhile.
func endLateMount(mark, merged string) error {
	release, err := lockMark(mark, "")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	if _, _, any, err := mounts.Triggered(merged); err != nil {
		return err
	} else if any {
		if err := uncover(merged); err != nil {
			return err
		}
	}
	return os.Remove(mark)
}

// lockMark locks a layer's mark, so that the process that mounts it late, which has
// none of the library's locks, is not mounting it just now. name is what the mark
// must have in it, "" for anything; else, and without a mark, the error is
// os.ErrNotExist.
func lockMark(mark, name string) (release func(), err error) {
	f, err := os.Open(mark)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) { //nolint:gosec // a descriptor
			break
		}
	}
	if err == nil && name != "" {
		var text []byte
		if text, err = os.ReadFile(mark); err == nil && string(text) != name {
			err = &os.PathError{Op: "lock", Path: mark, Err: os.ErrNotExist}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Closing alone would leave it to a child that is just being forked.
	return func() { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN); _ = f.Close() }, nil //nolint:gosec // a descriptor
}

// latePatience is how long a process that mounts late may take to give up.
const latePatience = 10 * time.Second

// giveUpLate has the process give up that mounts late, which takes the trigger
// away. If it is dead, this does, unless somebody waits whom it has left behind.
func giveUpLate(mark, merged string) error {
	name, err := os.ReadFile(mark)
	if err != nil {
		return err
	}
	pid, _, _ := strings.Cut(string(name), "-")
	n, err := strconv.Atoi(pid)
	done := make(chan error, 1)
	for end := time.Now().Add(latePatience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if _, top, _, terr := mounts.Triggered(merged); terr != nil || !top {
			return terr
		}
		if err == nil && processName(n) == string(name) {
			_ = syscall.Kill(n, syscall.SIGTERM)
			continue
		}
		go func() { done <- mounts.Detach(merged) }()
		select {
		case err := <-done:
			// The trigger may be made to fail just now, and with it who was about to
			// take it away; not the next one.
			if !errors.Is(err, os.ErrNotExist) {
				return err
			}
		case <-time.After(latePatience):
			return fmt.Errorf("process %s that was to mount it is dead, and others wait at %s: end them (fuser -m %[2]s)", name, merged)
		}
	}
	return fmt.Errorf("process %s does not give up mounting it", name)
}

// processName tells a process from others with its number.
func processName(pid int) string { return strings.TrimPrefix(warmName(pid), warmPrefix) }

// uncover takes the trigger away that is below a mount.
func uncover(merged string) error {
	container, err := mounts.Clone(merged)
	if err != nil {
		return err
	}
	if err := errors.Join(mounts.Detach(merged), mounts.Detach(merged)); err != nil {
		return errors.Join(err, container.Close())
	}
	return errors.Join(container.Attach(merged), container.Close())
}
