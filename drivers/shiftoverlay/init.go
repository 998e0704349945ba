package shiftoverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/drivers/overlay"
	"github.com/containers/storage/pkg/unshare"
	"github.com/sirupsen/logrus"

	"github.com/shiftoverlay/shiftoverlay/internal/adopt"
	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/probe"
)

// cacheSuffix makes the cache's folder from the driver's home: beside it, so
// that nothing in it looks like a layer, and on the same file system.
const cacheSuffix = "-shifted"

// Init makes the driver; its signature is graphdriver.InitFunc. home is the
// folder for layers. It reads shiftoverlay.conf, finds out what works on this
// kernel and file system (once per boot) and starts the embedded driver, with
// metacopy=on unless the kernel or the mount options are against it.
func Init(home string, options graphdriver.Options) (graphdriver.Driver, error) {
	if err := adopt.Unfinished(filepath.Dir(home)); err != nil {
		return nil, fmt.Errorf("shiftoverlay: %w", err)
	}
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
	d := &Driver{site: site{home: home, runHome: filepath.Join(options.RunRoot, filepath.Base(home))}}
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
		if c := opts.rootlessConflict(); c != "" && unshare.IsRootless() {
			return nil, fmt.Errorf("shiftoverlay: mountopt in storage.conf has %s, which the kernel takes from root only: take it out; for ordinary users, metadata-only files need no option", c)
		}
		if report.Metacopy.OK() && opts.metacopyConflict() == "" && !unshare.IsRootless() {
			if _, set := opts.mount.Value("metacopy"); !set {
				opts.mount = append(opts.mount, "metacopy=on")
			}
		}
	}
	d.late = late{after: conf.BackgroundAfter, home: home, options: options}
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
	d.Driver, d.mountOptions, d.elsewhere = o, opts.mount, o.Exists
	d.bootID = report.BootID
	for _, store := range append(stores, options.ImageStore) {
		if store != "" {
			d.otherHomes = append(d.otherHomes, filepath.Join(store, "overlay"))
		}
	}
	if program || opts.usesMountProgram(home) {
		logrus.Debugf("shiftoverlay: a mount program does the mounting; nothing is left to shift")
		return withDeferredRemove(d, (*overlay.Driver).DeferredRemove), nil
	}
	if err := d.startShifter(conf, report, opts, func() bool { return o.SupportsShifting(nil, nil) }); err != nil {
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
