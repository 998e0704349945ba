package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/storage"
	"github.com/containers/storage/types"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	driverName = "shiftoverlay"
	// confEnv names one shiftoverlay.conf that replaces all others.
	confEnv = "SHIFTOVERLAY_CONF"

	formatText = "text"
	formatJSON = "json"
)

// engines are the values of --engine, the cheapest first.
func engines() []string { return []string{"auto", "idmap", "erofs", "metacopy", "copyup"} }

// app is what one command line works with. It is not safe for concurrent use.
type app struct {
	stdout, stderr io.Writer

	root, runroot string
	engine        string
	format        string
	logLevel      string
	driver        string
	storageOpts   []string

	store    storage.Store
	confFile string
}

func newRootCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:           "plugin-test",
		Short:         "Try, verify and measure the shiftoverlay graph driver",
		Long:          "plugin-test keeps images in a store of its own and mounts them with ID mappings through\nthe shiftoverlay graph driver, without podman. For ordinary users it works in a user namespace with their\nIDs of /etc/subuid and /etc/subgid, as rootless podman does; host IDs are those of that namespace.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.prepare()
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.root, "root", "", "the store's `folder` (graph root); storage.conf is not read when it is given")
	flags.StringVar(&a.runroot, "runroot", "", "`folder` for the store's run-time files (default: ROOT-run when --root is given)")
	flags.StringVar(&a.engine, "engine", "", "force an `engine`: "+strings.Join(engines(), ", ")+" (default: as configured)")
	flags.StringVar(&a.format, "format", formatText, "output `format`: text or json")
	flags.StringVar(&a.logLevel, "log-level", "warn", "log messages of this `level` and above: trace, debug, info, warn, error")
	flags.StringArrayVar(&a.storageOpts, "storage-opt", nil, "`option` for the driver, as in storage.conf: overlay.mountopt=nodev (repeatable)")
	flags.StringVar(&a.driver, "driver", driverName, "graph `driver`, to compare with overlay")
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.AddCommand(
		newPullCommand(a), newImagesCommand(a), newMountCommand(a), newUmountCommand(a), newRmCommand(a), newRmiCommand(a), newDiffCommand(a),
		newRunCommand(a), newVerifyCommand(a), newWorstCaseCommand(a), newBenchCommand(a), newBenchStepCommand(a), newInfoCommand(a),
	)
	return cmd
}

// prepare checks the global flags.
func (a *app) prepare() error {
	level, err := logrus.ParseLevel(a.logLevel)
	if err != nil {
		return fmt.Errorf("unknown log level %q: use trace, debug, info, warn or error", a.logLevel)
	}
	logrus.SetLevel(level)
	logrus.SetOutput(a.stderr)
	if a.format != formatText && a.format != formatJSON {
		return fmt.Errorf("unknown format %q: use text or json", a.format)
	}
	if a.engine != "" && !slices.Contains(engines(), a.engine) {
		return fmt.Errorf("unknown engine %q: use one of %s", a.engine, strings.Join(engines(), ", "))
	}
	return nil
}

// open opens the store, once.
func (a *app) open() (storage.Store, error) {
	if a.store != nil {
		return a.store, nil
	}
	if err := a.forceEngine(); err != nil {
		return nil, err
	}
	options, err := a.storeOptions()
	if err != nil {
		return nil, err
	}
	store, err := storage.GetStore(options)
	if err != nil {
		return nil, fmt.Errorf("open store %s with driver %s: %w%s", options.GraphRoot, options.GraphDriverName, err, openRemedy(err))
	}
	a.store = store
	return store, nil
}

// openImage opens the store and finds an image in it.
func (a *app) openImage(name string) (storage.Store, *storage.Image, error) {
	store, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	image, err := findImage(store, name)
	return store, image, err
}

func openRemedy(err error) string {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return "; choose a folder on a writable file system with --root"
	}
	return ""
}

func (a *app) storeOptions() (types.StoreOptions, error) {
	var options types.StoreOptions
	if a.root == "" {
		defaults, err := types.DefaultStoreOptions()
		if err != nil {
			return options, fmt.Errorf("read storage.conf: %w", err)
		}
		options = defaults
		if options.GraphDriverName != a.driver { // options of another driver
			options.GraphDriverOptions = nil
		}
	} else {
		root, err := filepath.Abs(a.root)
		if err != nil {
			return options, fmt.Errorf("make --root absolute: %w", err)
		}
		options.GraphRoot, options.RunRoot = root, root+"-run"
	}
	if a.runroot != "" {
		runroot, err := filepath.Abs(a.runroot)
		if err != nil {
			return options, fmt.Errorf("make --runroot absolute: %w", err)
		}
		options.RunRoot = runroot
	}
	options.GraphDriverName = a.driver
	options.GraphDriverPriority = nil
	if len(a.storageOpts) > 0 {
		options.GraphDriverOptions = a.storageOpts
	}
	return options, nil
}

// forceEngine writes a shiftoverlay.conf that names the engine, for this
// process and the ones that it starts.
func (a *app) forceEngine() (err error) {
	if a.engine == "" || a.confFile != "" {
		return nil
	}
	f, err := os.CreateTemp("", "plugin-test-*.conf")
	if err != nil {
		return fmt.Errorf("force engine %s: %w", a.engine, err)
	}
	a.confFile = f.Name()
	_, err = fmt.Fprintf(f, "[shiftoverlay]\nengine = %q\n", a.engine)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("force engine %s: %w", a.engine, err)
	}
	if err := os.Setenv(confEnv, a.confFile); err != nil {
		return fmt.Errorf("force engine %s: %w", a.engine, err)
	}
	return nil
}

// close undoes what open did, the driver's own mount included. Layers that
// are meant to stay mounted keep it.
func (a *app) close() error {
	var err error
	if a.store != nil {
		if _, err = a.store.Shutdown(false); errors.Is(err, storage.ErrLayerUsedByContainer) {
			err = nil
		}
		a.store.Free()
		a.store = nil
	}
	if a.confFile != "" {
		err = errors.Join(err, os.Remove(a.confFile))
		a.confFile = ""
	}
	if err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// print writes a result: value as JSON, or what text writes.
func (a *app) print(value any, text func(w io.Writer) error) error {
	if a.format == formatJSON {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "    ")
		e.SetEscapeHTML(false)
		return e.Encode(value)
	}
	return text(a.stdout)
}
