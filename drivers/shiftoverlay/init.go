package shiftoverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/drivers/overlay"
	"github.com/containers/storage/pkg/idmap"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/pkg/unshare"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/probe"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// cacheSuffix makes the cache's folder from the driver's home: beside it, so
// that nothing in it looks like a layer, and on the same file system.
const cacheSuffix = "-shifted"

// Init makes the driver; its signature is graphdriver.InitFunc. home is the
// folder for layers. It reads shiftoverlay.conf, finds out what works on this
// kernel and file system (once per boot) and starts the embedded driver, with
// metacopy=on unless the kernel or the mount options are against it.
func Init(home string, options graphdriver.Options) (graphdriver.Driver, error) {
	opts, err := parseDriverOptions(options.DriverOptions)
	if err != nil {
		return nil, fmt.Errorf("shiftoverlay: %w", err)
	}
	conf, err := config.Load(os.Getenv, unshare.IsRootless(), unshare.GetRootlessUID())
	if err != nil {
		return nil, fmt.Errorf("shiftoverlay: %w", err)
	}
	if conf, err = opts.configure(conf); err != nil {
		return nil, fmt.Errorf("shiftoverlay: %w", err)
	}
	d := &Driver{home: home, runHome: filepath.Join(options.RunRoot, filepath.Base(home))}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, fmt.Errorf("shiftoverlay: make the store's folder: %w", err)
	}
	if err := os.MkdirAll(d.runHome, 0o700); err != nil {
		return nil, fmt.Errorf("shiftoverlay: make the run folder: %w", err)
	}
	program := opts.usesMountProgram(home)
	var report probe.Report
	if !program {
		if report, err = d.probe(); err != nil {
			return nil, fmt.Errorf("shiftoverlay: %w", err)
		}
		if !report.TrustedXattr.OK() && !unshare.IsRootless() {
			return nil, fmt.Errorf("shiftoverlay: %s is on %s, and %s: put graphroot on a file system such as ext4, xfs or btrfs, or set mount_program in storage.conf: %w",
				home, report.FileSystem, report.TrustedXattr, graphdriver.ErrIncompatibleFS)
		}
		if report.Metacopy.OK() && opts.metacopyConflict() == "" && !unshare.IsRootless() {
			if _, set := opts.mount.Value("metacopy"); !set {
				opts.mount = append(opts.mount, "metacopy=on")
			}
		}
	}
	stores, err := d.linkStores(opts.stores)
	if err != nil {
		return nil, fmt.Errorf("shiftoverlay: %w", err)
	}
	options.DriverOptions = opts.forOverlay(stores)
	if options.ImageStore, err = d.linkImageStore(options.ImageStore); err != nil {
		return nil, fmt.Errorf("shiftoverlay: %w", err)
	}
	inner, err := initOverlay(home, options)
	if err != nil {
		return nil, fmt.Errorf("shiftoverlay: %w", err)
	}
	o, ok := inner.(*overlay.Driver)
	if !ok {
		return nil, fmt.Errorf("shiftoverlay: the storage library's overlay driver is a %T", inner)
	}
	d.Driver, d.mountOptions = o, opts.mount
	if program || opts.usesMountProgram(home) {
		logrus.Debugf("shiftoverlay: a mount program does the mounting; nothing is left to shift")
		return withDeferredRemove(d, (*overlay.Driver).DeferredRemove), nil
	}
	if err := d.startShifter(conf, report, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("shiftoverlay: %w", err), o.Cleanup())
	}
	return withDeferredRemove(d, (*overlay.Driver).DeferredRemove), nil
}

// initOverlay starts the embedded driver without what that says at level info:
// that with metacopy=on it has no fast diff. This driver has one of its own.
func initOverlay(home string, options graphdriver.Options) (graphdriver.Driver, error) {
	if logrus.GetLevel() == logrus.InfoLevel {
		logrus.SetLevel(logrus.WarnLevel)
		defer logrus.SetLevel(logrus.InfoLevel)
	}
	return overlay.Init(home, options)
}

// probe finds out what works on the store's file system.
func (d *Driver) probe() (probe.Report, error) {
	return probe.Run(probe.Options{
		Dir:      filepath.Dir(d.home),
		Remember: filepath.Join(d.runHome, "shiftoverlay-probe.json"),
		UserNS: func() (string, func(), error) {
			one := []idtools.IDMap{{ContainerID: 0, HostID: 1, Size: 1}}
			return holdUserNS(one, one)
		},
	})
}

// holdUserNS makes a user namespace, which lasts until cleanup or as long as
// its file is open, and returns the file's path.
func holdUserNS(uids, gids []idtools.IDMap) (path string, cleanup func(), err error) {
	pid, cleanup, err := idmap.CreateUsernsProcess(uids, gids)
	if err != nil {
		return "", nil, err
	}
	return "/proc/" + strconv.Itoa(pid) + "/ns/user", cleanup, nil
}

// userNS makes a user namespace with a mapping and returns a descriptor of it.
func userNS(m idshift.Mapping) (int, error) {
	path, cleanup, err := holdUserNS(idMaps(m.UIDs), idMaps(m.GIDs))
	if err != nil {
		return -1, err
	}
	defer cleanup()
	return linux.Openat(unix.AT_FDCWD, path, unix.O_RDONLY, 0)
}

// startShifter makes the cache and the shifter.
func (d *Driver) startShifter(conf config.Config, report probe.Report, opts driverOptions) error {
	unmapped, err := idshift.ParseUnmapped(conf.Unmapped)
	if err != nil {
		return err
	}
	d.cache, err = cache.Open(d.home+cacheSuffix, cache.Options{BootID: report.BootID, Logf: logrus.Debugf})
	if err != nil {
		return err
	}
	d.trim = cache.TrimOptions{
		MaxSize:     conf.CacheMaxSize,
		MaxAge:      conf.CacheMaxAge,
		UserAlive:   d.userAlive,
		LayerExists: d.layerExists,
	}
	d.shifts, err = shifter.New(shifter.Options{
		Settings: shifter.Settings{Engine: conf.Engine, Unmapped: unmapped, Workers: conf.Workers},
		Cache:    d.cache,
		Env:      d.env(report, opts, conf, unmapped),
		UserNS:   userNS,
		Debugf:   func(f string, a ...any) { logrus.Debugf("shiftoverlay: "+f, a...) },
	})
	return err
}

// env puts together what engines ask for.
func (d *Driver) env(report probe.Report, opts driverOptions, conf config.Config, unmapped idshift.Unmapped) engine.Env {
	var e engine.Env
	// Of idmapped mounts in general, whatever the file system.
	noIdmap := ""
	switch {
	case unshare.IsRootless():
		e.Idmap = "the kernel allows idmapped mounts to root only"
		e.Erofs = "the kernel allows EROFS mounts to root only"
		e.Metacopy = "the kernel lets only root use trusted.overlay.metacopy"
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
	case !d.Driver.SupportsShifting(nil, nil):
		e.Idmap = fmt.Sprintf("overlay on kernel %s does not take idmapped lowers", report.Kernel)
	}
	e.IdmapACL = string(report.IdmapACL)
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
