package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containers/storage/pkg/unshare"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/adopt"
	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/internal/probe"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// programRun is where a mount program keeps what does not outlive a boot: the
// storage library does not tell it the run root.
const programRun = "/run/shiftoverlay"

// mountProgramFlag is the file in overlay's home that says that a mount program
// was used; as long as it is there, the library looks for one
// (drivers/overlay/overlay.go of containers/storage).
const mountProgramFlag = ".has-mount-program"

// HandOverError says that nothing was mounted, and that fuse-overlayfs can do it.
type HandOverError struct{ Reason string }

func (e *HandOverError) Error() string { return e.Reason }

// rootOnly hands over what ordinary users ask for.
func rootOnly() error {
	if unshare.IsRootless() || os.Geteuid() != 0 {
		return &HandOverError{"the kernel lets only root use overlay's trusted attributes"}
	}
	return nil
}

// Program mounts for the overlay driver, as its mount_program, with the engines
// and the cache of this driver. It is not safe for concurrent use; several
// processes may work on one store.
type Program struct {
	site
	report probe.Report
	conf   config.Config
	// caller is the process that has started this one.
	caller int
	// unsettled says that something in the cache ought to be written to the disk.
	unsettled bool
}

// OpenProgram starts for a store whose overlay driver's home is given. Its error
// may be a HandOverError.
func OpenProgram(home string) (*Program, error) {
	if err := rootOnly(); err != nil {
		return nil, err
	}
	if err := adopt.Unfinished(filepath.Dir(home)); err != nil {
		return nil, err
	}
	conf, err := config.Load(os.Getenv, false, 0)
	if err != nil {
		return nil, err
	}
	p := &Program{conf: conf, caller: os.Getppid(), site: site{home: home, runHome: filepath.Join(programRun, nameOfPath(home))}}
	if err := os.MkdirAll(p.runHome, 0o700); err != nil {
		return nil, fmt.Errorf("make the run folder: %w", err)
	}
	if p.report, err = p.probe(); err != nil {
		return nil, err
	}
	if !p.report.TrustedXattr.OK() {
		return nil, &HandOverError{fmt.Sprintf("%s is on %s: %s", home, p.report.FileSystem, p.report.TrustedXattr)}
	}
	p.elsewhere = p.inOtherStore
	p.later = func(func()) { p.unsettled = true } // this process ends with the mount
	return p, nil
}

// Mount does what the library asks for. Without a mapping the result is a plain
// overlay; with one it is the image with shifted owners below the container's
// upper, which is written with host IDs, as overlay's own idmapped mounts do. A
// container's layer that was mounted with a mapping and is now mounted without
// one, which the library does to compare it with its image, shows container IDs
// and can only be read.
//
// What is mounted at the target already is put aside and given to keeper. The
// error may be a HandOverError.
func (p *Program) Mount(ctx context.Context, c *ProgramCall, keeper Keeper) error {
	m, err := p.newMount(c)
	if err != nil {
		return err
	}
	rec, err := readRecord(m.dir)
	if err != nil {
		return err
	}
	if err := m.awaitKeeper(); err != nil {
		return fmt.Errorf("mount layer %s: %w", m.id, err)
	}
	inUse, backwards := mounted(c.Target), c.Mapping == nil && rec != nil
	if backwards {
		// A container that runs sees its root folder, which the library has just
		// given to the host's root, as nobody's.
		upper, _ := m.split()
		if err := ownRoot(upper, rec.Mapping); err != nil {
			return fmt.Errorf("mount layer %s: %w", m.id, err)
		}
	}
	switch {
	case inUse && backwards:
		return m.setAside(keeper, func() error { return m.backwards(rec) })
	case inUse:
		return m.setAside(keeper, nil)
	case backwards:
		return m.backwards(rec)
	case c.Mapping == nil || c.Mapping.IsIdentity():
		return m.plain(m.names(), nil)
	}
	if !m.foreign {
		if err := m.mayMap(rec, *c.Mapping); err != nil {
			return err
		}
	}
	if err := ownRoot(c.Upper, *c.Mapping); err != nil {
		return fmt.Errorf("mount layer %s: %w", m.id, err)
	}
	if m.foreign {
		return m.plain(m.names(), nil)
	}
	return m.shifted(ctx, rec, *c.Mapping)
}

// start makes cache and shifter, which a plain mount does without.
func (p *Program) start(options ovl.Options) error {
	return p.startShifter(p.conf, p.report, driverOptions{mount: options}, func() bool { return true })
}

// mayMap refuses an upper that was written under another mapping, or by
// fuse-overlayfs, which leaves container IDs in it.
func (m *programMount) mayMap(rec *record, to idshift.Mapping) error {
	own := layerPaths{dir: m.dir, upper: m.call.Upper}
	if m.call.Upper == "" {
		return nil
	}
	if rec != nil {
		if rec.Mapping.Equal(to) {
			return nil
		}
		return own.mayChangeMapping(m.id, rec.Mapping, to)
	}
	entries, err := os.ReadDir(own.upper)
	if err != nil {
		return fmt.Errorf("mount layer %s: %w", m.id, err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(own.upper, e.Name()), &st); err != nil {
			return fmt.Errorf("mount layer %s: %w", m.id, err)
		}
		if _, _, host := to.ToContainer(st.Uid, st.Gid); host {
			return nil // overlay's own idmapped mounts wrote it
		}
		if _, _, container := to.ToHost(st.Uid, st.Gid); container && st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return &HandOverError{fmt.Sprintf("container layer %s was written by fuse-overlayfs", m.id)}
		}
	}
	return nil
}

// shifted mounts with a mapping.
func (m *programMount) shifted(ctx context.Context, old *record, mapping idshift.Mapping) error {
	p := m.p
	if err := p.start(m.call.Options); err != nil {
		return err
	}
	lower, err := p.prepare(ctx, m.id, m.chain, mapping)
	if err != nil {
		return err
	}
	defer lower.Close()
	if m.call.Upper != "" {
		if err := p.note(m.id, m.dir, old, newRecord(mapping, lower), slices.Contains(m.call.Options, "volatile")); err != nil {
			return err
		}
	}
	if err := m.mountLower(lower, mapping); err != nil {
		return fmt.Errorf("mount layer %s: %w", m.id, err)
	}
	return nil
}

// ownRoot gives a layer's own folder, if it has one, to the container's root, unless
// it belongs to somebody of the container already: the library, by its version, has
// given it to either root before each mount.
func ownRoot(upper string, mapping idshift.Mapping) error {
	uid, gid, ok := mapping.ToHost(0, 0)
	if !ok {
		return fmt.Errorf("the mapping %s has no root user: container ID 0 must have a host ID", mapping)
	}
	if upper == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(upper, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: upper, Err: err}
	}
	if _, _, ok := mapping.ToContainer(st.Uid, st.Gid); ok && (st.Uid != 0 || st.Gid != 0) {
		return nil
	}
	failpoint.Hit("program-root")
	return os.Lchown(upper, int(uid), int(gid))
}

// NeedsUpkeep tells, after Mount, whether Upkeep has something to do.
func (p *Program) NeedsUpkeep() bool {
	return p.unsettled || p.toTrim() || p.orphans() || len(p.lostInRun()) > 0
}

// Upkeep does what a mount need not wait for: it applies the limits of the cache,
// removes what belongs to images and containers that are gone, and writes to the
// disk what has been in the cache for a while.
func (p *Program) Upkeep(ctx context.Context) error {
	for _, name := range p.lostInRun() {
		if err := removeAttached(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("tidy up: %w", err)
		}
	}
	if _, err := os.Stat(p.home + cacheSuffix); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := p.start(nil); err != nil {
		return err
	}
	p.trimNow()
	entries, err := p.cache.List(ctx)
	for _, e := range entries {
		if !e.Disposable && !e.Durable && time.Since(e.Built) > shifter.DurableAfter {
			err = errors.Join(err, p.cache.MarkDurable(ctx, e.Ref))
		}
	}
	return err
}

// lostInRun lists what is in the run folder for layers that are gone: where a mount
// program was killed while it had something attached, and notes of keepers.
func (p *Program) lostInRun() (names []string) {
	for _, folder := range []string{attachFolder, keepFolder} {
		list, _ := os.ReadDir(filepath.Join(p.runHome, folder))
		for _, e := range list {
			if id, _, _ := strings.Cut(e.Name(), "."); !p.layerExists(id) {
				names = append(names, filepath.Join(p.runHome, folder, e.Name()))
			}
		}
	}
	return names
}

// Restored says what RestoreStore did.
type Restored struct {
	Layers int // that have the kernel's whiteouts
	// InUse says that the cache was left alone, because a layer is mounted.
	InUse bool
}

// RestoreStore makes a store, given by the home of its overlay driver, one that
// this driver can use without a mount program: the whiteouts in all layers become
// the kernel's, the library's note about the mount program goes, and so does the
// cache, unless a layer is mounted.
func RestoreStore(home string) (r Restored, err error) {
	if _, err := os.Stat(filepath.Join(home, "l")); err != nil {
		return r, fmt.Errorf("%s is not the overlay folder of a store: %w", home, err)
	}
	list, err := os.ReadDir(home)
	if err != nil {
		return r, fmt.Errorf("list layers: %w", err)
	}
	for _, l := range list {
		dir := filepath.Join(home, l.Name())
		if st, err := os.Stat(filepath.Join(dir, "diff")); err != nil || !st.IsDir() {
			continue
		}
		if err := convertLayer(dir, ""); err != nil {
			return r, err
		}
		r.Layers++
		r.InUse = r.InUse || mounted(filepath.Join(dir, "merged"))
	}
	if err := os.Remove(filepath.Join(home, mountProgramFlag)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("remove the library's note: %w", err)
	}
	if r.InUse {
		return r, nil
	}
	if err := os.RemoveAll(home + cacheSuffix); err != nil {
		return r, fmt.Errorf("remove the cache: %w", err)
	}
	return r, nil
}
