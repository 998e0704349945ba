//go:build torture

package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
)

// cuts is how often the power is cut for each setup.
const cuts = 12

// TestPowerCut has a disk log what is written while containers come and go, cuts the
// power at random places of the log, and looks at what the next start finds. What
// was not flushed is lost, or some of it is and some is not.
func TestPowerCut(t *testing.T) {
	a := begin(t, "power cut")
	useArchives(t)
	type setup struct {
		fstype string
		e      engine
		synced bool
	}
	var setups []setup
	for _, fstype := range []string{"ext4", "xfs"} {
		for _, e := range engines() {
			for _, synced := range []bool{true, false} {
				setups = append(setups, setup{fstype, e, synced})
			}
		}
	}
	a.rand.Shuffle(len(setups), func(i, j int) { setups[i], setups[j] = setups[j], setups[i] })
	trusted := 0
	for _, s := range setups {
		if a.over() {
			break
		}
		t.Run(fmt.Sprintf("%s/%s/synced=%t", s.fstype, s.e.name, s.synced), func(t *testing.T) {
			m := newMachine(t, a, s.fstype, s.e, s.synced)
			m.run()
			trusted += m.trusted
		})
	}
	t.Logf("%d entries were believed after the power was cut", trusted)
	if a.faults.Load() > 20 && trusted == 0 {
		t.Error("no entry was ever believed: nothing was tried")
	}
}

// machine is one of which the power is cut.
type machine struct {
	*host
	d *disk
	// synced says that the image is written out when it has been pulled, as the
	// storage library does it with the option sync = "filesystem".
	synced bool
	dir    string
	// trusted counts the entries that were believed after the power was cut.
	trusted int
	// image is what the layers show when they have been pulled.
	image *referee.Tree
}

func newMachine(t *testing.T, a *area, fstype string, e engine, synced bool) *machine {
	t.Helper()
	d := newDisk(t, fstype)
	m := &machine{host: newHost(t, a, e, filepath.Join(d.at, "world")), d: d, synced: synced, dir: t.TempDir()}
	m.reboot(filepath.Join(m.dir, "run", "0"))
	return m
}

// life are the operations that the power is cut at.
func life() []string {
	return []string{
		"start:n1:A", "write:n1", "durable", "commit:n1", "stop:n1", "start:n1:A", "stop:n1", "start:n2:B", "write:n2", "stop:n2", "rm:n1",
		"age", "start:n3:C", "write:n3", "durable", "stop:n3", "rm:n2", "trim", "warm:A", "start:n1:A", "stop:n1", "rm:n3",
	}
}

// run lives through everything once, and then through its end at several places.
func (m *machine) run() {
	pull := []string{"pull"}
	if m.synced {
		pull = append(pull, "sync")
	}
	require.NoError(m.t, m.do("operate", pull...))
	var err error
	m.image, err = showLayers(m.root)
	require.NoError(m.t, err)
	first, err := strconv.Atoi(m.d.tell("writes"))
	require.NoError(m.t, err)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	seed := m.a.rand.Uint64()
	go func() {
		defer close(stopped)
		m.nudge(rand.New(rand.NewPCG(seed, 1)), stop)
	}()
	begun := map[string]int{}
	for i, op := range life() {
		n, err := strconv.Atoi(m.d.tell("writes"))
		require.NoError(m.t, err)
		begun[fmt.Sprintf("%d %s", i, op)] = n
		require.NoError(m.t, m.do("operate", op))
	}
	close(stop)
	<-stopped
	last, err := strconv.Atoi(m.d.tell("writes"))
	require.NoError(m.t, err)
	m.d.unmount()
	records := m.d.records()
	m.t.Logf("%s: %d records, %d of the pull, seed %d", m.t.Name(), last, first, seed)

	var places []int
	for range cuts {
		places = append(places, first+m.a.rand.IntN(last-first+1))
	}
	slices.Sort(places)
	done, flushed := 0, filepath.Join(m.dir, "flushed")
	shell(m.t, "cp --sparse=always "+m.d.base+" "+flushed)
	for i, place := range places {
		if m.a.over() {
			return
		}
		flush := place
		for flush > done && records[flush-1].data != nil {
			flush--
		}
		replay(m.t, flushed, records[done:flush])
		done = flush
		var some []record
		if i%2 == 1 {
			for _, x := range records[flush:place] {
				if m.a.rand.IntN(2) == 0 {
					some = append(some, x)
				}
			}
		}
		at := "" // of several that began at the same write the last
		for i, op := range life() {
			if name := fmt.Sprintf("%d %s", i, op); begun[name] <= place {
				at = name
			}
		}
		_, op, _ := strings.Cut(at, " ")
		m.cut(i+1, flushed, some, op, fmt.Sprintf("%s: power cut at write %d during %s, %d of %d unflushed writes kept", m.t.Name(), place, at, len(some), place-flush))
	}
}

// nudge writes some of what is dirty to the disk at random times, as the kernel does
// by itself when half a minute has passed.
func (m *machine) nudge(r *rand.Rand, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(r.IntN(60)) * time.Millisecond):
		}
		name := anyFile(&area{rand: r}, m.root)
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if r.IntN(3) == 0 {
			_ = f.Sync() // the journal, too
		} else {
			_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		}
		_ = f.Close()
	}
}

// cut starts the machine again with the disk as it was then.
// At is the operation that was under way.
func (m *machine) cut(n int, flushed string, some []record, at, what string) {
	m.a.faults.Add(1)
	image := filepath.Join(m.dir, "cut")
	shell(m.t, "cp --sparse=always "+flushed+" "+image)
	replay(m.t, image, some)
	m.d.mount(image)
	defer m.d.unmount()
	m.start(n)
	after, err := showLayers(m.root)
	if m.synced {
		if err == nil {
			err = differences("the image", m.image, after)
		}
		if err != nil {
			m.a.loss("%s: %v", what, err)
		}
	}
	args := []string{"whole", "synced"}
	if !m.synced {
		args = args[:1]
	}
	if !m.synced && (err != nil || differences("the image", m.image, after) != nil) {
		m.t.Logf("%s: the image that was not synced is damaged", what)
		args = nil
	}
	said, err := m.with(nil, "wake", args...)
	if err := errors.Join(err, leftBehind(m.root, driverName, true)); err != nil {
		m.a.loss("%s: %v", what, err)
	}
	for line := range strings.Lines(said) {
		if text, ok := strings.CutPrefix(line, "trusted: "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(text))
			m.trusted += n
		}
		text, ok := strings.CutPrefix(line, "damaged: ")
		if !ok {
			continue
		}
		m.t.Logf("%s: %s", what, line)
		name, _, _ := strings.Cut(text, " ")
		if m.synced && !strings.HasPrefix(at, "start:"+name+":") {
			m.a.loss("%s: a container that had started: %s", what, line)
		}
	}
}

// start starts the machine for the n-th time: the kernel has another boot ID.
func (m *machine) start(n int) {
	m.t.Helper()
	m.reboot(filepath.Join(m.dir, "run", strconv.Itoa(n)))
	const kernels = "/proc/sys/kernel/random/boot_id"
	id := filepath.Join(m.dir, "boot_id")
	_, err := os.Stat(id)
	require.NoError(m.t, os.WriteFile(id, fmt.Appendf(nil, "00000000-0000-4000-8000-%012d\n", n), 0o600))
	if err != nil {
		require.NoError(m.t, unix.Mount(id, kernels, "", unix.MS_BIND, ""))
		m.t.Cleanup(func() { require.NoError(m.t, unix.Unmount(kernels, unix.MNT_DETACH)) })
	}
}

// showLayers reads the image's layers, without the driver.
func showLayers(root string) (*referee.Tree, error) {
	var dirs []string
	for _, id := range []string{upperLayer, lowerLayer} {
		dirs = append(dirs, filepath.Join(root, "graph", driverName, id, "diff"))
	}
	base, err := mount.Clone(dirs[0])
	if err != nil {
		return nil, err
	}
	defer base.Close()
	t, err := mount.Overlay{Tree: base, Below: dirs[1:], Flags: unix.MS_RDONLY}.Mount()
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return referee.Scan(context.Background(), t.Path(), compared)
}

// wake is the child that uses a store for the first time after a power cut. With the
// argument "whole" the image is whole, and everything must work, with "synced" it
// was even synced.
func wake(args []string) error {
	whole, synced := slices.Contains(args, "whole"), slices.Contains(args, "synced")
	w, err := openWorld()
	if err != nil {
		return err
	}
	ctx := context.Background()
	trusted, failed := w.notes(ctx)
	fmt.Println("trusted:", trusted)
	if whole {
		err := w.useImage(ctx)
		if err != nil && !synced && strings.Contains(err.Error(), "is damaged") {
			whole, err = false, nil
		}
		failed = errors.Join(failed, err)
	}
	names, err := w.containers()
	failed = errors.Join(failed, err)
	for _, name := range names {
		err := w.oldAfterCut(ctx, name)
		if err != nil && (!whole || strings.Contains(err.Error(), "is damaged")) {
			// The library has lost it, and the driver says so.
			fmt.Println("damaged:", name, strings.ReplaceAll(err.Error(), "\n", " "))
			err = w.remove(name)
		}
		failed = errors.Join(failed, err)
	}
	failed = errors.Join(failed, w.stopAll(), w.dropLost())
	failed = errors.Join(failed, w.do(ctx, "trim"))
	if whole {
		failed = errors.Join(failed, w.check(ctx, "after a power cut, the next start and trim"))
	}
	return errors.Join(failed, w.finish(ctx))
}

func init() { children["wake"] = wake }

// useImage starts new containers of the image.
func (w *world) useImage(ctx context.Context) error {
	if err := w.do(ctx, "pull"); err != nil {
		return err
	}
	truth, err := w.truth(ctx)
	if err != nil {
		return err
	}
	return errors.Join(w.fresh(ctx, "A", truth), w.fresh(ctx, "B", truth))
}

// oldAfterCut starts a container that was there before the power cut. What it had
// written itself may be lost, but for its owners.
func (w *world) oldAfterCut(ctx context.Context, name string) error {
	truth, err := w.truth(ctx)
	if err != nil {
		return err
	}
	err = w.old(ctx, name, truth)
	if errors.Is(err, storage.ErrLayerUnknown) {
		return nil // it was being removed
	}
	return err
}

// notes is an error if the operator's check finds anything of an entry before
// anybody has used the store, but that it is not trusted. It says how many are.
func (w *world) notes(ctx context.Context) (trusted int, err error) {
	m, err := w.manager()
	if err != nil {
		return 0, err
	}
	list, err := m.Entries(ctx)
	if err != nil {
		return 0, err
	}
	for _, e := range list {
		if e.Unusable == "" {
			trusted++
		}
	}
	found, err := w.findings(ctx)
	if err != nil && !strings.Contains(err.Error(), "is damaged") {
		return trusted, err
	}
	err = nil
	for _, f := range found {
		if f.Kind == "entry" && !f.Note && len(f.Differences) > 0 {
			err = errors.Join(err, fmt.Errorf("check after a power cut: %s %s: %s: %v", f.Kind, f.Subject, f.Problem, f.Differences))
		}
	}
	return trusted, err
}
