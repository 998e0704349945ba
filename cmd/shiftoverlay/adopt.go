package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/lockfile"
	"github.com/containers/storage/types"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/adopt"
	"github.com/shiftoverlay/shiftoverlay/internal/podmandb"
)

// plainDriver is the driver that stores come from.
const plainDriver = "overlay"

type adoptFlags struct {
	back, dryRun, force bool
	database            string
}

func newAdoptCommand(a *app) *cobra.Command {
	var f adoptFlags
	cmd := &cobra.Command{
		Use:                   "adopt [options]",
		DisableFlagsInUseLine: true,
		Short:                 "Make a store of overlay one of this driver, or back",
		Long: "Make the store that storage.conf names, which the driver overlay has made, one of the driver shiftoverlay,\n" +
			"with all images, containers, pods and volumes, or back with --back. Nothing is copied: folders are renamed,\n" +
			"and the driver's name and the paths in podman's database change. No container may run meanwhile. If it is\n" +
			"interrupted, the same command goes on, and the opposite one goes back.",
		Example:           "  shiftoverlay adopt --dry-run\n  shiftoverlay adopt\n  shiftoverlay adopt --back --force",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.adopt(cmd.Context(), &f) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.back, "back", false, "give the store back to overlay")
	flags.StringVar(&f.database, "database", "", "`file` with podman's database, if containers.conf has another static_dir")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print what would be done, and do nothing")
	flags.BoolVarP(&f.force, "force", "f", false, "do not ask")
	return cmd
}

// adoption is one move of a store.
type adoption struct {
	adopt.Move
	options types.StoreOptions
	store   adopt.Store
	dbs     []podmandb.DB
	paths   adopt.Paths

	home       string // of the layers, as long as they have not moved
	containers []shiftoverlay.AdoptedContainer
	images     int
	names      map[string]string // of containers by their ID and by their layer's
}

// errDone says that there is nothing to do.
var errDone = errors.New("nothing to do")

func (a *app) adopt(ctx context.Context, f *adoptFlags) error {
	if os.Geteuid() != 0 {
		return enterPodman()
	}
	m, err := a.newAdoption(f)
	if err != nil {
		return err
	}
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := errors.Join(shiftoverlay.RemoveTry(m.store.Graph), m.store.Tidy()); err != nil {
		return err
	}
	err = m.look(f.database)
	if errors.Is(err, errDone) {
		fmt.Fprintf(a.stdout, "The store %s is one of driver %s already.\n%s", m.options.GraphRoot, m.To, m.advice())
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.check(ctx); err != nil {
		return err
	}
	steps := m.steps()
	if f.dryRun {
		for _, s := range steps {
			fmt.Fprintf(a.stdout, "Would %s\n", s.What)
		}
		return nil
	}
	if !f.force {
		sure, err := a.confirm(fmt.Sprintf("WARNING! This will make the store %s with %s one of driver %s.", m.options.GraphRoot, m.summary(), m.To))
		if err != nil || !sure {
			return err
		}
	}
	if err := m.store.Carry(ctx, m.Move, steps); err != nil {
		return fmt.Errorf("%w\nNothing is lost: run the same command again when the cause is gone", err)
	}
	fmt.Fprintf(a.stdout, "The store %s with %s is one of driver %s now.\n%s", m.options.GraphRoot, m.summary(), m.To, m.advice())
	return nil
}

// newAdoption finds the store.
func (a *app) newAdoption(f *adoptFlags) (*adoption, error) {
	m := &adoption{Move: adopt.Move{From: plainDriver, To: driverName}, names: map[string]string{}}
	if f.back {
		m.From, m.To = m.To, m.From
	}
	var err error
	if m.options, err = a.locate(); err != nil {
		return nil, err
	}
	if m.options.ImageStore != "" {
		return nil, fmt.Errorf("storage.conf (%s) has imagestore = %q: stores in two parts cannot change drivers; take it out, or begin with a new graphroot", confFile(), m.options.ImageStore)
	}
	m.store, err = adopt.Open(m.options.GraphRoot, m.options.RunRoot)
	return m, err
}

// look finds out what the store holds, whose it is, and what a move that was
// interrupted has left. Its error is errDone if there is nothing to move.
func (m *adoption) look(database string) (err error) {
	if m.dbs, err = podmandb.Find(m.store.Graph, m.store.Run, database); err != nil {
		return err
	}
	noted, err := m.lookAtDatabases()
	if err != nil {
		return err
	}
	unfinished := adopt.Unfinished(m.store.Graph)
	var what *adopt.UnfinishedError
	if unfinished != nil && !errors.As(unfinished, &what) {
		return unfinished
	}
	old, err := m.store.Has(m.From)
	if err != nil {
		return err
	}
	if unfinished == nil {
		if !old && !noted {
			return errDone
		}
		if taken, err := m.store.Has(m.To); err != nil || taken {
			return errors.Join(err, &adopt.BothError{From: filepath.Join(m.store.Graph, m.From), To: filepath.Join(m.store.Graph, m.To)})
		}
	}
	return m.read()
}

// lookAtDatabases refuses other drivers', and tells whether one notes the driver
// that the store comes from.
func (m *adoption) lookAtDatabases() (noted bool, err error) {
	stores := []adopt.Store{m.store, {Graph: filepath.Clean(m.options.GraphRoot), Run: filepath.Clean(m.options.RunRoot)}}
	for _, db := range m.dbs {
		facts, err := db.Facts()
		if err != nil {
			return false, err
		}
		if facts.Driver != "" && facts.Driver != m.From && facts.Driver != m.To {
			return false, fmt.Errorf("podman's database %s is one of driver %s: only overlay and %s can follow each other", db.Path(), facts.Driver, driverName)
		}
		noted = noted || facts.Driver == m.From
		if facts.GraphRoot != "" {
			stores = append(stores, adopt.Store{Graph: facts.GraphRoot, Run: facts.RunRoot})
		}
	}
	m.paths = adopt.NewPaths(m.Move, stores...)
	return noted, nil
}

// read reads what the store holds, wherever a move that was interrupted has left it.
func (m *adoption) read() error {
	m.home = m.find(m.store.Graph, "")
	var layers []storage.Layer
	var containers []storage.Container
	var images []json.RawMessage
	for _, root := range []string{m.store.Graph, m.store.Run} {
		for _, volatile := range []string{"", "volatile-"} {
			err := errors.Join(
				readList(filepath.Join(m.find(root, "-layers"), volatile+"layers.json"), &layers),
				readList(filepath.Join(m.find(root, "-containers"), volatile+"containers.json"), &containers),
			)
			if err != nil {
				return err
			}
		}
	}
	if err := readList(filepath.Join(m.find(m.store.Graph, "-images"), "images.json"), &images); err != nil {
		return err
	}
	m.images = len(images)
	chowned := map[string]bool{}
	for i := range layers {
		chowned[layers[i].ID] = len(layers[i].UIDMap)+len(layers[i].GIDMap) > 0
	}
	for i := range containers {
		c := &containers[i]
		m.names[c.ID], m.names[c.LayerID] = nameOf(*c), nameOf(*c)
		m.containers = append(m.containers, shiftoverlay.AdoptedContainer{
			Name: nameOf(*c), Layer: c.LayerID, UIDs: c.UIDMap, GIDs: c.GIDMap, Chowned: chowned[c.LayerID],
		})
	}
	return nil
}

// find is where a folder is: not moved yet, or moved already.
func (m *adoption) find(root, suffix string) string {
	old := filepath.Join(root, m.From+suffix)
	if _, err := os.Stat(old); err != nil {
		return filepath.Join(root, m.To+suffix)
	}
	return old
}

// readList appends to a list what a file of the library's has, if it is there.
func readList[T any](name string, list *[]T) error {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(b) == 0 {
		return nil
	}
	var more []T
	if err == nil {
		err = json.Unmarshal(b, &more)
	}
	if err != nil {
		return fmt.Errorf("read what the store holds: %s: %w", name, err)
	}
	*list = append(*list, more...)
	return nil
}

// lockPatience is how long other commands may take to end.
const lockPatience = 30 * time.Second

// lock takes all locks of the store, which podman commands hold for moments. All
// or none: the library takes them in several orders.
func (m *adoption) lock(ctx context.Context) (func(), error) {
	names := []string{filepath.Join(m.store.Graph, "storage.lock")}
	for _, driver := range []string{m.From, m.To} {
		for dir, name := range map[string]string{
			filepath.Join(m.store.Graph, driver+"-layers"): "layers.lock", filepath.Join(m.store.Graph, driver+"-images"): "images.lock",
			filepath.Join(m.store.Graph, driver+"-containers"): "containers.lock", filepath.Join(m.store.Run, driver+"-layers"): "mountpoints.lock",
		} {
			if _, err := os.Stat(dir); err == nil {
				names = append(names, filepath.Join(dir, name))
			}
		}
	}
	locks := make([]*lockfile.LockFile, len(names))
	for i, name := range names {
		var err error
		if locks[i], err = lockfile.GetLockFile(name); err != nil {
			return nil, fmt.Errorf("lock the store: %w", err)
		}
	}
	for end := time.Now().Add(lockPatience); ; {
		n, err := 0, error(nil)
		for n = range locks {
			if err = locks[n].TryLock(); err != nil {
				break
			}
		}
		if err == nil {
			n = len(locks)
		}
		unlock := func() {
			for _, l := range locks[:n] {
				l.Unlock()
			}
		}
		if err == nil {
			return unlock, nil
		}
		unlock()
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) || time.Now().After(end) {
			return nil, fmt.Errorf("lock the store: %s: another command works on it: %w", names[n], err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// check refuses a move that the other driver could not go on after, or that
// somebody would notice.
func (m *adoption) check(ctx context.Context) error {
	var files []string
	for _, db := range m.dbs {
		files = append(files, db.Path())
	}
	uses, err := m.store.Busy(m.Move, files...)
	if err != nil {
		return err
	}
	if len(uses) > 0 {
		return m.busy(uses)
	}
	if m.To == driverName {
		return shiftoverlay.CheckAdopt(m.home, m.containers)
	}
	return shiftoverlay.CheckBack(ctx, m.home, m.options.GraphDriverOptions, m.containers)
}

// busy says who is in the way, and what to do.
func (m *adoption) busy(uses []adopt.Use) error {
	var running, others []string
	for _, u := range uses {
		name := ""
		for part := range strings.SplitSeq(u.Path, "/") {
			if n, ok := m.names[part]; ok {
				name = n
			}
		}
		if name != "" {
			running = append(running, name)
		} else {
			others = append(others, u.String())
		}
	}
	slices.Sort(running)
	text := ""
	if running = slices.Compact(running); len(running) > 0 {
		text = fmt.Sprintf("containers run, or are mounted: %s: stop them (podman stop, podman container cleanup, podman unmount, buildah unmount)", strings.Join(running, ", "))
	}
	if len(others) > 0 {
		if text != "" {
			text += "; "
		}
		text += fmt.Sprintf("the store %s is in use: %s: end that (systemctl stop podman.socket podman.service)", m.options.GraphRoot, strings.Join(others, ", "))
	}
	return errors.New(text)
}

// steps are what there is to do, in an order that keeps podman away meanwhile:
// while a move is under way the driver refuses the store, so podman's database
// names this driver from the beginning, or to the end.
func (m *adoption) steps() []adopt.Step {
	var database []adopt.Step
	for _, db := range m.dbs {
		database = append(database, adopt.Step{
			What: fmt.Sprintf("set the driver in podman's database %s to %s, and change the paths of containers", db.Path(), m.To),
			Do:   func() error { return db.Change(m.To, m.paths.Rewrite) },
		})
	}
	if m.To == driverName {
		note := adopt.Step{
			What: "note the mappings of containers with user namespaces beside their layers",
			Do:   func() error { return shiftoverlay.RecordMappings(m.home, m.containers) },
		}
		return slices.Concat(database, []adopt.Step{note}, m.store.Steps(m.Move))
	}
	links := adopt.Step{
		What: "take away what a crash has left of shifted lowers",
		Do:   func() error { return shiftoverlay.RemoveLinks(m.home) },
	}
	return slices.Concat([]adopt.Step{links}, m.store.Steps(m.Move), database)
}

// summary counts what moves.
func (m *adoption) summary() string {
	parts := []string{fmt.Sprintf("%d images and %d containers", m.images, len(m.containers))}
	for _, db := range m.dbs {
		parts = append(parts, "podman's database "+db.Path())
	}
	return strings.Join(parts, ", ")
}

// advice says what storage.conf must have.
func (m *adoption) advice() string {
	text := ""
	if m.options.GraphDriverName != m.To {
		text = fmt.Sprintf("Now write driver = %q into %s.\n", m.To, confFile())
	}
	if len(m.dbs) == 0 {
		text += "There is no database of podman's in it: if containers.conf has a static_dir, name the file with --database.\n"
	}
	return text
}
