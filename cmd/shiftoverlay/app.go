package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/unshare"
	"github.com/containers/storage/types"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/version"
)

// driverName is the name that storage.conf selects the driver by.
const driverName = "shiftoverlay"

// app is what one command line works with. It is not safe for concurrent use.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	root, runroot string
	storageOpts   []string
	logLevel      string

	options types.StoreOptions
	store   storage.Store
	m       *shiftoverlay.Manager
}

func newRootCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "shiftoverlay",
		Short:             "Manage the shifted lowers of a container store",
		Long:              "Manage the shifted lowers of a container store whose driver is shiftoverlay: images as containers in\nuser namespaces see them. Works beside a running podman, on the store that storage.conf names.",
		Version:           version.String(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.prepare() },
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetVersionTemplate("{{.Name}} version {{.Version}}\n")
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.logLevel, "log-level", "warn", "log messages of this `level` and above: trace, debug, info, warn, error")
	flags.StringVar(&a.root, "root", "", "`folder` of the store (graphroot) instead of the one in storage.conf")
	flags.StringVar(&a.runroot, "runroot", "", "`folder` of the store's run-time files instead of the one in storage.conf")
	flags.StringArrayVar(&a.storageOpts, "storage-opt", nil, "`option` for the driver instead of those in storage.conf, may be repeated")
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetHelpCommand(&cobra.Command{Hidden: true, Use: "no-help"})
	cmd.AddCommand(
		newInfoCommand(a), newLsCommand(a), newInspectCommand(a), newWarmCommand(a), newPruneCommand(a), newCheckCommand(a), newAdoptCommand(a), newCompletionCommand(),
	)
	return cmd
}

func newCompletionCommand() *cobra.Command {
	return &cobra.Command{
		Use:                   "completion bash|zsh|fish",
		Short:                 "Print a script that completes command lines",
		Long:                  "Print a script that makes a shell complete the command lines of shiftoverlay: commands, options and the\nIDs of entries.",
		Example:               "  source <(shiftoverlay completion bash)\n  shiftoverlay completion fish >~/.config/fish/completions/shiftoverlay.fish",
		Args:                  cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs:             []string{"bash", "zsh", "fish"},
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(cmd.OutOrStdout(), true)
			case "zsh":
				return cmd.Root().GenZshCompletion(cmd.OutOrStdout())
			}
			return cmd.Root().GenFishCompletion(cmd.OutOrStdout(), true)
		},
	}
}

// prepare checks the global flags.
func (a *app) prepare() error {
	level, err := logrus.ParseLevel(a.logLevel)
	if err != nil {
		return fmt.Errorf("unknown log level %q: use trace, debug, info, warn or error", a.logLevel)
	}
	logrus.SetLevel(level)
	logrus.SetOutput(a.stderr)
	return nil
}

// open opens the store and the driver, once. Like every podman command it holds
// the store's locks for the moments of reading only.
func (a *app) open() error {
	if a.store != nil {
		return nil
	}
	if os.Geteuid() != 0 {
		return enterPodman()
	}
	options, err := a.storeOptions()
	if err != nil {
		return err
	}
	store, err := storage.GetStore(options)
	if err != nil {
		return fmt.Errorf("open store %s: %w", options.GraphRoot, err)
	}
	a.store, a.options = store, options
	driver, err := store.GraphDriver()
	if err != nil {
		return fmt.Errorf("open store %s: %w", options.GraphRoot, err)
	}
	if a.m, err = shiftoverlay.Manage(driver); err != nil {
		return fmt.Errorf("store %s: %w", options.GraphRoot, err)
	}
	return nil
}

// enterPodman starts this program again where the files and mounts of an ordinary
// user's store are his: in the namespaces of his podman. It returns only if it
// fails.
func enterPodman() error {
	const remedy = "the files of the store belong to other users: run this as root, or for the store of an ordinary user as `podman unshare shiftoverlay ...`"
	podman, err := exec.LookPath("podman")
	if err != nil {
		return fmt.Errorf("%s: %w", remedy, err)
	}
	self, err := os.Executable()
	if err == nil {
		err = unix.Exec(podman, slices.Concat([]string{"podman", "unshare", self}, os.Args[1:]), os.Environ())
	}
	return fmt.Errorf("%s: %w", remedy, err)
}

// locate says which store, as podman finds it, whatever its driver.
func (a *app) locate() (types.StoreOptions, error) {
	options, err := types.DefaultStoreOptions()
	if err != nil {
		return options, fmt.Errorf("read storage.conf: %w", err)
	}
	for flag, to := range map[string]struct{ from, dst *string }{"--root": {&a.root, &options.GraphRoot}, "--runroot": {&a.runroot, &options.RunRoot}} {
		if *to.from == "" {
			continue
		}
		if *to.dst, err = filepath.Abs(*to.from); err != nil {
			return options, fmt.Errorf("make %s absolute: %w", flag, err)
		}
	}
	if len(a.storageOpts) > 0 {
		options.GraphDriverOptions = a.storageOpts
	}
	return options, nil
}

// storeOptions says which store, and refuses another driver's.
func (a *app) storeOptions() (types.StoreOptions, error) {
	options, err := a.locate()
	if err != nil {
		return options, err
	}
	if options.GraphDriverName != driverName {
		return options, fmt.Errorf("storage.conf (%s) selects the driver %q for the store %s, and only stores of the driver %s have shifted lowers: write driver = %q there (`shiftoverlay adopt` turns a store of overlay into one), or name another file in CONTAINERS_STORAGE_CONF",
			confFile(), options.GraphDriverName, options.GraphRoot, driverName, driverName)
	}
	if st, err := os.Stat(filepath.Join(options.GraphRoot, driverName)); err != nil || !st.IsDir() {
		return options, fmt.Errorf("there is no store of the driver %s in %s: podman makes it at its first use; is graphroot in storage.conf (%s) right?", driverName, options.GraphRoot, confFile())
	}
	return options, nil
}

// confFile is the storage.conf that the library reads.
func confFile() string {
	name, err := types.DefaultConfigFile()
	if err != nil {
		return "not found"
	}
	return name
}

// close undoes what open did, as podman does it at its end.
func (a *app) close() error {
	if a.store == nil {
		return nil
	}
	_, err := a.store.Shutdown(false)
	if errors.Is(err, storage.ErrLayerUsedByContainer) {
		err = nil
	}
	a.store.Free()
	a.store = nil
	if err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// autoUser owns the ranges that automatic user namespaces come from
// (containers-storage.conf(5), root-auto-userns-user).
func (a *app) autoUser() string {
	switch {
	case unshare.IsRootless():
		return os.Getenv("USER")
	case a.options.RootAutoNsUser != "":
		return a.options.RootAutoNsUser
	}
	return storage.RootAutoUserNsUser
}

// names is what the storage library knows of layers.
type names struct {
	images     map[string][]string // names of images by their uppermost layer
	containers map[string]storage.Container
}

// names reads images and containers. Images without a name have an empty list.
func (a *app) names() (*names, error) {
	images, err := a.store.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	containers, err := a.store.Containers()
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	n := &names{images: map[string][]string{}, containers: map[string]storage.Container{}}
	for i := range images {
		list := append(n.images[images[i].TopLayer], images[i].Names...)
		slices.Sort(list)
		n.images[images[i].TopLayer] = slices.Compact(list)
	}
	for i := range containers {
		n.containers[containers[i].LayerID] = containers[i]
	}
	return n, nil
}

// nameOf is the name of a container, or the beginning of its ID.
func nameOf(c storage.Container) string {
	if len(c.Names) > 0 {
		return c.Names[0]
	}
	return short(c.ID)
}

// short is the beginning of an ID, as podman shows it.
func short(id string) string { return id[:min(len(id), 12)] }

// findImage finds an image by ID, a beginning of it, or a name that may lack
// registry and tag.
func (a *app) findImage(name string) (*storage.Image, error) {
	if image, err := a.store.Image(name); err == nil {
		return image, nil
	}
	images, err := a.store.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	tagged := name
	if !strings.Contains(name[strings.LastIndex(name, "/")+1:], ":") && !strings.Contains(name, "@") {
		tagged += ":latest"
	}
	var found []*storage.Image
	for i := range images {
		if slices.ContainsFunc(images[i].Names, func(n string) bool { return n == tagged || strings.HasSuffix(n, "/"+tagged) }) {
			found = append(found, &images[i])
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("no image %q in %s: `podman images` lists them, `podman pull %s` fetches it", name, a.options.GraphRoot, name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d images are called %q: give the whole name or the ID", len(found), name)
}

// completeEntries offers the IDs of entries.
func (a *app) completeEntries(cmd *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
	if a.open() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	list, _ := a.entries(ctx) // as many as can be read
	var out []string
	for _, e := range list {
		if id := short(e.ID); strings.HasPrefix(id, begin) {
			out = append(out, id+"\t"+e.Image()+" "+e.MappingText())
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
