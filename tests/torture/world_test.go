//go:build torture

package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/archive"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// driverName is the driver under torture.
const driverName = "shiftoverlay"

// programEnv names the mount program of a world, if the driver is overlay there.
const programEnv = "TORTURE_WORLD_PROGRAM"

// The image of a world: two layers.
var (
	lowerLayer = strings.Repeat("1", 64)
	upperLayer = strings.Repeat("2", 64)
	imageID    = strings.Repeat("3", 64)
	resultID   = strings.Repeat("4", 64) // what commit makes, with a layer of the same name
)

// mappings are those that containers run under, by a short name.
var mappings = map[string]string{
	"A": "0:200000:65536", "B": "0:300000:500,500:400500:600,1100:700000:65000", "C": "0:1000000:65536",
}

func mapping(name string) idshift.Mapping {
	m, err := idshift.ParseMapping(mappings[name], mappings[name])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return m
}

// worldEnv names the folder of the world that a child works in. It is in the
// environment of all its children, too: whoever has it and should be gone is
// left over.
const worldEnv = "TORTURE_WORLD"

// world is a store in a folder: graph, run, shiftoverlay.conf, and the archives
// of the image's layers.
type world struct {
	root string
	// run is the run root. It is on another file system where a power cut is
	// to be survived.
	run   string
	store storage.Store
	// program is the mount program, if that is what is tortured.
	program string
}

// driverOf is the name of the driver in worlds with a mount program, or without: "".
func driverOf(program string) string {
	if program != "" {
		return "overlay"
	}
	return driverName
}

// engine is what shiftoverlay.conf says in a world.
type engine struct {
	name, conf string
	// noIdmap makes the storage library do without idmapped mounts.
	noIdmap bool
	// program is the mount program, for worlds of the driver overlay.
	program string
}

// engines are the ways to shift.
func engines() []engine {
	return []engine{
		{name: "idmap", conf: `engine = "idmap"`},
		{name: "erofs", conf: `engine = "erofs"`},
		{name: "erofs-patched", conf: "engine = \"erofs\"\nerofs_without = \"idmap\""},
		{name: "erofs-old", conf: "engine = \"erofs\"\nerofs_without = \"data-only, file, idmap\"", noIdmap: true},
		{name: "metacopy", conf: `engine = "metacopy"`},
		{name: "copyup", conf: `engine = "copyup"`},
	}
}

// archives writes what the layers of the image are made of to a folder: two
// archives of a tree that has one of everything and some ordinary files.
func archives(dir string, files int) error {
	for i, fill := range []func(o fsop.Ops) error{
		func(o fsop.Ops) error {
			if err := fsop.MakeImage(o); err != nil {
				return err
			}
			for i := range files {
				p := fmt.Sprintf("void/%d/%d", i/50, i)
				if i%50 == 0 {
					if err := o.Mkdir(filepath.Dir(p)); err != nil {
						return err
					}
				}
				if err := o.Write(p, strings.Repeat(p, i%700)); err != nil {
					return err
				}
			}
			return nil
		},
		func(o fsop.Ops) error {
			return fsop.All(
				func() error { return o.Mkdir("second") },
				func() error { return o.Write("second/file", "of the second layer") },
				func() error { return o.Chown("second/file", 1000, 33) },
				func() error { return o.Write("top", "replaced") },
			)
		},
	} {
		tree := filepath.Join(dir, fmt.Sprint("tree", i))
		if err := os.Mkdir(tree, 0o755); err != nil {
			return err
		}
		if err := fill(fsop.Ops{Root: tree}); err != nil {
			return err
		}
		tar, err := archive.Tar(tree, archive.Uncompressed)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("layer", i, ".tar")), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tar)
		if err = errors.Join(err, tar.Close(), f.Close(), os.RemoveAll(tree)); err != nil {
			return err
		}
	}
	return nil
}

// useArchives makes archives for the worlds of a test.
func useArchives(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, archives(dir, 150))
	t.Setenv(archivesEnv, dir)
}

// archivesEnv names the folder that archives wrote to.
const archivesEnv = "TORTURE_ARCHIVES"

// openWorld opens the store of the world that the environment names.
func openWorld() (*world, error) {
	root := os.Getenv(worldEnv)
	w := &world{root: root, run: filepath.Join(root, "run"), program: os.Getenv(programEnv)}
	if run := os.Getenv(worldEnv + "_RUN"); run != "" {
		w.run = run
	}
	if err := os.Setenv(config.EnvConf, filepath.Join(filepath.Dir(w.run), "shiftoverlay.conf")); err != nil {
		return nil, err
	}
	var options []string
	if w.program != "" {
		options = []string{"overlay.mount_program=" + w.program}
	}
	var err error
	w.store, err = storage.GetStore(types.StoreOptions{
		GraphRoot: filepath.Join(root, "graph"), RunRoot: w.run, GraphDriverName: driverOf(w.program), GraphDriverOptions: options,
	})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return w, nil
}

// manager is the operator's view of the store.
func (w *world) manager() (*shiftoverlay.Manager, error) {
	d, err := w.store.GraphDriver()
	if err != nil {
		return nil, err
	}
	return shiftoverlay.Manage(d)
}

// do carries out one operation, written as its name and arguments with colons
// between them.
func (w *world) do(ctx context.Context, op string) error {
	words := strings.Split(op, ":")
	args := append(words[1:], "", "", "")
	var err error
	switch words[0] {
	case "pull":
		err = w.pull()
	case "start":
		err = w.start(args[0], args[1])
	case "write":
		err = w.write(args[0])
	case "commit":
		err = w.commit(args[0])
	case "stop":
		err = w.stop(args[0])
	case "rm":
		err = w.remove(args[0])
	case "rmi":
		err = w.removeImage(args[0])
	case "warm":
		err = w.warm(ctx, args[0])
	case "durable":
		err = w.durable(ctx)
	case "trim":
		err = w.trim(ctx)
	case "age":
		err = w.age()
	case "reset":
		err = w.reset(ctx)
	case "stopall":
		err = w.stopAll()
	case "sync":
		err = w.sync()
	case "shutdown":
		_, err = w.store.Shutdown(true)
	default:
		err = errors.New("no such operation")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// pull makes the image, unless it is there. What an earlier try has left is
// used, as an engine does.
func (w *world) pull() error {
	if w.store.Exists(imageID) {
		return nil
	}
	parent := ""
	for i, id := range []string{lowerLayer, upperLayer} {
		if _, err := w.store.Layer(id); errors.Is(err, storage.ErrLayerUnknown) {
			f, err := os.Open(filepath.Join(os.Getenv(archivesEnv), fmt.Sprint("layer", i, ".tar")))
			if err != nil {
				return err
			}
			_, _, err = w.store.PutLayer(id, parent, nil, "", false, nil, f)
			_ = f.Close()
			if err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		parent = id
	}
	_, err := w.store.CreateImage(imageID, []string{"localhost/torture:latest"}, parent, "", nil)
	return err
}

// start makes a container, unless it is there, and mounts it.
func (w *world) start(name, mapped string) error {
	c, err := w.store.Container(name)
	if errors.Is(err, storage.ErrContainerUnknown) {
		options := &storage.ContainerOptions{}
		if mapped != "" {
			m := mapping(mapped)
			options.IDMappingOptions = types.IDMappingOptions{UIDMap: storeMaps(m.UIDs), GIDMap: storeMaps(m.GIDs)}
		}
		c, err = w.store.CreateContainer("", []string{name}, imageID, "", "", options)
	}
	if err == nil {
		// Somebody who was removing it died: it cannot be started any more.
		if _, lost := w.store.Layer(c.LayerID); errors.Is(lost, storage.ErrLayerUnknown) {
			if err := w.store.DeleteContainer(c.ID); err != nil {
				return err
			}
			return w.start(name, mapped)
		}
	}
	if err != nil {
		return err
	}
	_, err = w.store.Mount(c.ID, "")
	return err
}

func storeMaps(e idshift.Extents) []idtools.IDMap {
	out := make([]idtools.IDMap, len(e))
	for i, x := range e {
		out[i] = idtools.IDMap{ContainerID: int(x.ContainerID), HostID: int(x.HostID), Size: int(x.Size)}
	}
	return out
}

// mappingOf is the mapping of a container; zero if it has none.
func mappingOf(c *storage.Container) (idshift.Mapping, error) {
	if len(c.UIDMap) == 0 {
		return idshift.Mapping{}, nil
	}
	var e []idshift.Extent
	for _, x := range c.UIDMap {
		e = append(e, idshift.Extent{ContainerID: uint32(x.ContainerID), HostID: uint32(x.HostID), Size: uint32(x.Size)})
	}
	return idshift.NewMapping(e, e)
}

// written are the paths that write changes in a container.
func written() []string {
	return []string{"etc", "etc/new", "etc/empty", "usr/bin/tool", "usr/bin", "data", "data/user", "void/0", "void/0/1"}
}

// write changes a container that is mounted, as a process in it would.
func (w *world) write(name string) error {
	c, err := w.store.Container(name)
	if err != nil {
		return err
	}
	m, err := mappingOf(c)
	if err != nil {
		return err
	}
	merged, err := w.store.Mount(c.ID, "")
	if err != nil {
		return err
	}
	o := fsop.Ops{Root: merged, Mapping: m}
	err = fsop.All(
		func() error { return create(o.At("etc/new"), m) },
		func() error { return o.Write("etc/new", "written in "+name) },
		func() error { return o.Chown("etc/new", 1000, 33) },
		func() error { return o.Append("usr/bin/tool", "more") },
		func() error { return o.Chown("data/user", 33, 1000) },
		func() error { return o.Remove("void/0/1") },
		func() error { return o.Remove("etc/empty") },
	)
	_, uerr := w.store.Unmount(c.ID, false)
	return errors.Join(err, uerr)
}

// create makes a file, if there is none, that belongs to the container's root user from the beginning.
// One that the host's root has made and not yet given away has no owner in there.
func create(path string, m idshift.Mapping) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return linux.OnThreads(1, func() error {
		if uid, gid, ok := m.ToHost(0, 0); ok {
			if err := linux.SetFSOwner(uid, gid); err != nil {
				return err
			}
		}
		fd, err := unix.Openat(int(dir.Fd()), filepath.Base(path), unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		return unix.Close(fd)
	})
}

// commit makes an image of what a container has changed, and removes it again.
func (w *world) commit(name string) error {
	if err := w.removeImage(resultID); err != nil {
		return err
	}
	c, err := w.store.Container(name)
	if err != nil {
		return err
	}
	diff, err := w.store.Diff("", c.LayerID, nil)
	if err != nil {
		return err
	}
	// The library holds a lock until the difference has been read.
	text, err := io.ReadAll(diff)
	if err = errors.Join(err, diff.Close()); err != nil {
		return err
	}
	if _, _, err = w.store.PutLayer(resultID, upperLayer, nil, "", false, nil, bytes.NewReader(text)); err != nil {
		return err
	}
	_, err = w.store.CreateImage(resultID, nil, resultID, "", nil)
	return err
}

// containers are the names of all containers.
func (w *world) containers() ([]string, error) {
	list, err := w.store.Containers()
	var out []string
	for _, c := range list {
		out = append(out, append(slices.Clone(c.Names), c.ID)[0])
	}
	return out, err
}

// stopAll stops all containers.
func (w *world) stopAll() error {
	names, err := w.containers()
	for _, name := range names {
		err = errors.Join(err, w.stop(name))
	}
	return err
}

// reset removes everything but the image.
func (w *world) reset(ctx context.Context) error {
	names, err := w.containers()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.remove(name); err != nil {
			return err
		}
	}
	return errors.Join(w.removeImage(resultID), w.dropLost(), w.trim(ctx))
}

// dropLost removes layers of containers that do not exist: the library forgets
// them if it dies between the two (podman system check --repair removes them).
func (w *world) dropLost() error {
	layers, err := w.store.Layers()
	if err != nil {
		return err
	}
	var failed error
	for _, l := range layers {
		used, err := w.used(l.ID)
		if err == nil && !used {
			err = w.store.DeleteLayer(l.ID)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// used says whether a layer belongs to an image or a container.
func (w *world) used(layer string) (bool, error) {
	if layer == lowerLayer || layer == upperLayer {
		return true, nil
	}
	images, err := w.store.Images()
	if err != nil {
		return false, err
	}
	containers, err := w.store.Containers()
	return slices.ContainsFunc(images, func(i storage.Image) bool { return i.TopLayer == layer }) ||
		slices.ContainsFunc(containers, func(c storage.Container) bool { return c.LayerID == layer }), err
}

// operate is the child that carries out operations. Before each it prints its
// name.
func operate(args []string) error {
	w, err := openWorld()
	if err != nil {
		return err
	}
	for _, op := range args {
		fmt.Println(op)
		if err := w.do(context.Background(), op); err != nil {
			return err
		}
	}
	return nil
}

func init() { children["operate"] = operate }
