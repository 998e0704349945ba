//go:build torture

package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/storage"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// judge looks at a world in which something went wrong, as the next user of the
// store would: it starts new containers under the mappings that are given, and
// those that are there. The child fails with what is lost. With the argument
// "removing" there may be a container that has lost its layer.
func judge(args []string) error {
	w, err := openWorld()
	if err != nil {
		return err
	}
	ctx := context.Background()
	removing := slices.Contains(args, "removing")
	if err := w.do(ctx, "pull"); err != nil {
		return err
	}
	var failed error
	truth, err := w.truth(ctx)
	if err != nil {
		return err
	}
	for _, m := range args {
		if mappings[m] != "" {
			failed = errors.Join(failed, w.fresh(ctx, m, truth))
		}
	}
	names, err := w.containers()
	if err != nil {
		return err
	}
	for _, name := range names {
		err := w.old(ctx, name, truth)
		if removing && errors.Is(err, storage.ErrLayerUnknown) {
			err = w.remove(name) // again
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// settle does what an operator does, in another process than that which has
// started the containers, as engines do: it stops them, trims the cache and
// checks the store. With the argument "end" it removes everything then.
func settle(args []string) error {
	w, err := openWorld()
	if err != nil {
		return err
	}
	ctx := context.Background()
	failed := errors.Join(w.do(ctx, "stopall"), w.forgotten(), w.do(ctx, "trim"), w.check(ctx, "after the next start and trim"))
	if slices.Contains(args, "end") {
		failed = errors.Join(failed, w.finish(ctx))
	}
	return failed
}

// forgotten takes away mounts of an image's layers that an engine made to compare
// them with others, and that was killed: with a mount program the library leaves
// them, and cannot remove the image then.
func (w *world) forgotten() error {
	if w.program == "" {
		return nil
	}
	var failed error
	for _, l := range []string{lowerLayer, upperLayer, resultID} {
		merged := filepath.Join(w.root, "graph", driverOf(w.program), l, "merged")
		for failed == nil {
			if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
				if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
					failed = &os.PathError{Op: "unmount", Path: merged, Err: err}
				}
				break
			}
		}
	}
	return failed
}

func init() { children["judge"], children["settle"] = judge, settle }

var compared = referee.Options{Content: true, MergedNlink: true, OverlayXattrs: true}

// truth is what the image shows without a mapping.
func (w *world) truth(ctx context.Context) (*referee.Tree, error) {
	merged, err := w.store.MountImage(imageID, nil, "")
	if err != nil {
		return nil, fmt.Errorf("mount the image: %w", err)
	}
	t, err := referee.Scan(ctx, merged, compared)
	_, uerr := w.store.UnmountImage(imageID, true)
	if err = errors.Join(err, uerr); err != nil {
		return nil, err
	}
	if _, ok := t.Lookup("usr/bin/suid"); !ok || t.Len() < 50 {
		return nil, fmt.Errorf("the image has lost files: %d are left", t.Len())
	}
	return t, nil
}

// fresh starts a new container and compares what it sees with the image.
func (w *world) fresh(ctx context.Context, mapped string, truth *referee.Tree) error {
	name := "judge-" + mapped
	if err := w.start(name, mapped); err != nil {
		return fmt.Errorf("the next start under %s fails: %w", mapped, err)
	}
	shift, err := idshift.NewShift(mapping(mapped), idshift.Overflow)
	if err != nil {
		return err
	}
	want, err := truth.Shift(shift)
	if err != nil {
		return err
	}
	c, err := w.store.Container(name)
	if err != nil {
		return err
	}
	merged, err := w.store.Mount(c.ID, "")
	if err != nil {
		return err
	}
	got, err := referee.Scan(ctx, merged, compared)
	if err != nil {
		return fmt.Errorf("a new container under %s: %w", mapped, err)
	}
	return errors.Join(differences("a new container under "+mapped, want, got), w.remove(name))
}

// old starts a container that was there before and looks whether it sees the
// image and what it has written. It is left running.
func (w *world) old(ctx context.Context, name string, truth *referee.Tree) error {
	c, err := w.store.Container(name)
	if err != nil {
		return err
	}
	m, err := mappingOf(c)
	if err != nil {
		return err
	}
	merged, err := w.store.Mount(c.ID, "")
	if err == nil && w.rootLost(merged, m) {
		if err = w.stop(name); err == nil {
			merged, err = w.store.Mount(c.ID, "")
		}
	}
	if err != nil {
		return fmt.Errorf("start container %s again: %w", name, err)
	}
	got, err := referee.Scan(ctx, merged, compared)
	if err == nil && !m.IsZero() {
		var back *idshift.Shift
		if back, err = idshift.NewUnshift(m); err == nil {
			got, err = got.Shift(back)
		}
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", name, err)
	}
	return differences("container "+name, truth, got, written()...)
}

// rootLost tells whether a container that runs needs another start: the library
// gives its root folder to the host's root when it has it mounted to read the
// container's changes. The mount program undoes that, unless it is killed before.
func (w *world) rootLost(merged string, m idshift.Mapping) bool {
	var st unix.Stat_t
	return w.program != "" && !m.IsZero() && unix.Lstat(merged, &st) == nil && st.Uid == 0
}

// differences compares two trees but for some paths.
func differences(what string, want, got *referee.Tree, but ...string) error {
	var list []string
	for _, d := range referee.Compare(want, got, compared) {
		// A container has a root folder of its own, with times and attributes of its
		// own, but the image's owner and mode.
		if d.Path == referee.RootPath && d.Attribute != referee.AttrUID && d.Attribute != referee.AttrGID && d.Attribute != referee.AttrMode {
			continue
		}
		if !slices.Contains(but, d.Path) {
			list = append(list, d.String())
		}
	}
	if len(list) == 0 {
		return nil
	}
	return fmt.Errorf("%s: differences: %d: %s", what, len(list), strings.Join(list[:min(len(list), 5)], "; "))
}

// findings is what the operator's check finds.
func (w *world) findings(ctx context.Context) ([]shiftoverlay.Finding, error) {
	m, err := w.manager()
	if err != nil {
		return nil, err
	}
	list, err := w.store.Containers()
	if err != nil {
		return nil, err
	}
	owners := map[string]shiftoverlay.Owner{}
	for i := range list {
		o, err := mappingOf(&list[i])
		if err != nil {
			return nil, err
		}
		owners[list[i].LayerID] = shiftoverlay.Owner{Name: list[i].ID, Mapping: o}
	}
	return m.Check(ctx, shiftoverlay.CheckOptions{Containers: owners, Content: true})
}

// check is an error if the operator's check finds anything.
func (w *world) check(ctx context.Context, when string) error {
	if w.program != "" {
		return nil // it has no such thing
	}
	found, err := w.findings(ctx)
	for _, f := range found {
		err = errors.Join(err, fmt.Errorf("check %s: %s %s: %s", when, f.Kind, f.Subject, f.Problem))
		for _, d := range f.Differences {
			err = errors.Join(err, errors.New(d.String()))
		}
	}
	return err
}

// finish removes everything, and looks for what is left.
func (w *world) finish(ctx context.Context) error {
	for _, op := range []string{"reset", "rmi:" + imageID, "trim"} {
		if err := w.do(ctx, op); err != nil {
			return err
		}
	}
	err := w.check(ctx, "after the end")
	if _, serr := w.store.Shutdown(true); serr != nil {
		err = errors.Join(err, serr)
	}
	return errors.Join(err, leftFiles(filepath.Join(w.root, "graph"), w.run, driverOf(w.program)))
}

// leftFiles is an error that names what is below the roots of an empty store.
func leftFiles(graph, run, driver string) error {
	var left []string
	for _, pattern := range []string{
		graph + "/" + driver + "/*", graph + "/" + driver + "-shifted/*/*", graph + "/.shiftoverlay-probe-*",
		run + "/" + driverName + "/attach/*", run + "/" + driverName + "/check-*", run + "/" + driverName + "/.probe-*",
		"/run/" + driverName + "/*/attach/*", "/run/" + driverName + "/*/keep/*", "/run/" + driverName + "/*/.probe-*", // of mount programs
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			base := filepath.Base(name)
			// What a store has from its beginning: the folder of short names, the
			// library's staging, and locks that stay.
			if base == "l" || base == "staging" || base == "tempdirs" || base == ".has-mount-program" || base == "backingFsBlockDev" || strings.HasPrefix(base, "slot-") {
				continue
			}
			left = append(left, name)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("left in an empty store: %s", strings.Join(left, ", "))
}

// leftBehind is an error that names mounts and loop devices of a world, and
// processes that still run for it. With all, the store's own mount, which driver
// has made, counts.
func leftBehind(root, driver string, all bool) error {
	var left []string
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		at := strings.Fields(line)[4]
		if strings.HasPrefix(at, root+"/") && (all || at != filepath.Join(root, "graph", driver)) {
			left = append(left, "mount "+at)
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, name := range loops {
		if file, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(file), root+"/") {
			left = append(left, name+" of "+strings.TrimSpace(string(file)))
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return err
	}
	for _, name := range procs {
		env, err := os.ReadFile(name)
		if err == nil && strings.Contains(string(env), worldEnv+"="+root+"\x00") && !zombie(filepath.Dir(name)) {
			cmd, _ := os.ReadFile(filepath.Dir(name) + "/cmdline")
			left = append(left, fmt.Sprintf("process %s %q", filepath.Base(filepath.Dir(name)), cmd))
		}
	}
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
}

// zombie says whether a process has ended, and only waits for its parent.
func zombie(proc string) bool {
	stat, err := os.ReadFile(proc + "/stat")
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}
