package shiftoverlay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containers/storage/pkg/lockfile"
	"github.com/containers/storage/pkg/unshare"
	"github.com/sirupsen/logrus"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/probe"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// site is where a store's layers are, and what shifts them there.
type site struct {
	home    string // the folder for layers
	runHome string // for what does not outlive a boot
	// shifts is nil if a mount program does the mounting, and then all is
	// left to overlay.
	shifts *shifter.Shifter
	cache  *cache.Cache
	trim   cache.TrimOptions
	// elsewhere tells whether an additional image store has a layer; nil if
	// there are none.
	elsewhere func(id string) bool
	// later takes work that no mount need wait for; nil for goroutines.
	later func(work func())
	// pace, if set, is called often by those who make something for a mount, and
	// waits to give way to others.
	pace func()
	// copies is nil if images are not copied, or that need not be said.
	copies *copying
	// managed says that a Manager decides what is trimmed, and when.
	managed bool
}

// nameOfPath makes a short file name of a path.
func nameOfPath(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:8])
}

// layerExists tells whether this store has a layer, or one that it reads.
func (s *site) layerExists(id string) bool {
	_, err := os.Lstat(filepath.Join(s.home, id))
	return err == nil || s.elsewhere != nil && s.elsewhere(id)
}

// layerIn tells whether one of several folders for layers has a layer.
func layerIn(homes []string, id string) bool {
	return slices.ContainsFunc(homes, func(home string) bool {
		_, err := os.Stat(filepath.Join(home, id))
		return err == nil
	})
}

// userAlive tells whether somebody who is registered with an entry may need it.
func (s *site) userAlive(user string) bool { return s.layerExists(user) || warming(user) }

// probe finds out what works on the store's file system.
func (s *site) probe() (probe.Report, error) {
	return probe.Run(probe.Options{
		Dir:      filepath.Dir(s.home),
		Rootless: unshare.IsRootless(),
		Remember: filepath.Join(s.runHome, probe.ReportName),
		UserNS:   probe.UserNS,
	})
}

// userNS makes a user namespace with a mapping and returns a descriptor of it.
func userNS(m idshift.Mapping) (int, error) {
	return linux.UserNS(m.UIDs.SysProcIDMaps(), m.GIDs.SysProcIDMaps())
}

// startShifter makes the cache and the shifter. idmapped tells whether overlay
// takes idmapped mounts as lowers.
func (s *site) startShifter(conf config.Config, report probe.Report, opts driverOptions, idmapped func() bool) error {
	unmapped, err := idshift.ParseUnmapped(conf.Unmapped)
	if err != nil {
		return err
	}
	if err := s.openCache(report.BootID, conf.CacheMaxSize, conf.CacheMaxAge); err != nil {
		return err
	}
	s.shifts, err = shifter.New(shifter.Options{
		Settings: shifter.Settings{Engine: conf.Engine, Unmapped: unmapped, Workers: conf.Workers},
		Cache:    s.cache,
		Env:      s.env(report, opts, conf, unmapped, idmapped),
		UserNS:   userNS,
		Passing:  func(user string) string { return passing(WarmUser(), user) },
		Later:    s.later,
		Slow:     s.slow(),
		Debugf:   func(f string, a ...any) { logrus.Debugf("shiftoverlay: "+f, a...) },
	})
	if err == nil && conf.Engine == engine.Auto {
		s.copies = newCopying(s.runHome, report, s.shifts.Engines())
	}
	return err
}

// openCache opens the store's cache, and says what Trim may remove from it.
func (s *site) openCache(bootID string, maxSize int64, maxAge time.Duration) (err error) {
	s.cache, err = cache.Open(s.home+cacheSuffix, cache.Options{BootID: bootID, Logf: logrus.Debugf})
	s.trim = cache.TrimOptions{MaxSize: maxSize, MaxAge: maxAge, UserAlive: s.userAlive, LayerExists: s.layerExists}
	return err
}

// env puts together what engines ask for.
func (s *site) env(report probe.Report, opts driverOptions, conf config.Config, unmapped idshift.Unmapped, idmapped func() bool) engine.Env {
	var e engine.Env
	// Of idmapped mounts in general, whatever the file system.
	noIdmap := ""
	switch {
	case unshare.IsRootless():
		e.Rootless = true
		e.Idmap = "the kernel allows idmapped mounts to root only"
		e.Erofs = "the kernel allows EROFS mounts to root only"
		if !report.UserMetacopy.OK() {
			e.Metacopy = fmt.Sprintf("%s on kernel %s: %s", report.FileSystem, report.Kernel, report.UserMetacopy)
		}
		return e
	case unmapped == idshift.Refuse:
		noIdmap = `idmapped mounts cannot refuse unmapped IDs (unmapped = "refuse")`
	case os.Getenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP") == "yes":
		noIdmap = "idmapped mounts are disabled by _CONTAINERS_OVERLAY_DISABLE_IDMAP"
	}
	switch {
	case noIdmap != "":
		e.Idmap = noIdmap
	case !report.IdmapMount.OK():
		e.Idmap = fmt.Sprintf("%s on kernel %s does not allow idmapped mounts: %s", report.FileSystem, report.Kernel, report.IdmapMount)
	case !idmapped():
		e.Idmap = fmt.Sprintf("overlay on kernel %s does not take idmapped lowers", report.Kernel)
	}
	e.IdmapACL, e.IdmapDetached = string(report.IdmapACL), string(report.IdmapDetached)
	if c := opts.metacopyConflict(); c != "" {
		e.Metacopy = c
	} else if !report.Metacopy.OK() {
		e.Metacopy = fmt.Sprintf("%s on kernel %s: %s", report.FileSystem, report.Kernel, report.Metacopy)
	}
	e.Erofs, e.ErofsFile, e.ErofsData, e.ErofsIdmap = e.Metacopy, string(report.ErofsFile), string(report.ErofsData), string(report.ErofsIdmap)
	if e.Erofs == "" && !report.Erofs.OK() {
		e.Erofs = fmt.Sprintf("kernel %s: %s", report.Kernel, report.Erofs)
	}
	if noIdmap != "" {
		e.ErofsIdmap = noIdmap
	}
	for way, reason := range map[string]*string{"file": &e.ErofsFile, "data-only": &e.ErofsData, "idmap": &e.ErofsIdmap} {
		if slices.Contains(conf.ErofsWithout, way) {
			*reason = "erofs_without"
		}
	}
	return e
}

// prepare makes what a layer needs to be mounted under a mapping, above the chain.
// The caller closes it.
func (s *site) prepare(ctx context.Context, id string, chain []shifter.Layer, m idshift.Mapping) (lower shifter.Lower, err error) {
	plan, err := s.shifts.Plan(shifter.Request{Chain: chain, Mapping: m})
	if err == nil {
		if s.pace != nil {
			plan.Pace(s.pace)
		}
		s.copies.tell(plan)
		lower, err = s.shifts.Prepare(ctx, plan, id)
	}
	if err != nil {
		return lower, fmt.Errorf("mount layer %s: %w", id, err)
	}
	if lower.Built {
		s.countBuild()
	}
	return lower, nil
}

// note puts a record into a layer's folder, unless old says the same, and gives up
// what old needed.
func (s *site) note(id, layerDir string, old, now *record, volatile bool) error {
	if old != nil && old.same(now) {
		// One that was begun before and not put in place.
		if err := os.Remove(filepath.Join(layerDir, newRecordName)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("write mapping record: %w", err)
		}
		return nil
	}
	if err := writeRecord(layerDir, now, volatile); err != nil {
		return err
	}
	s.releaseOld(id, old, now)
	return nil
}

// releaseOld gives up the cache's entry that a layer used before.
func (s *site) releaseOld(id string, old, now *record) {
	if old == nil || old.Key == now.Key {
		return
	}
	if ref, ok := old.ref(); ok {
		if err := s.shifts.Release(ref, id); err != nil {
			logrus.Debugf("shiftoverlay: release %s: %v", ref.Key, err)
		}
	}
}

// layersLocked does something while nobody mounts a layer of this store but for a
// process that mounts late, whose layers are pending until then: the storage
// library holds this lock whenever it calls Get, Put and Remove.
func (s *site) layersLocked(do func() error) error {
	dir := filepath.Join(filepath.Dir(s.home), driverName+"-layers")
	if !isDir(dir) {
		return do() // the library has never used the store
	}
	lock, err := lockfile.GetLockFile(filepath.Join(dir, "layers.lock"))
	if err != nil {
		return fmt.Errorf("lock the store's layers: %w", err)
	}
	lock.Lock()
	defer lock.Unlock()
	return do()
}
