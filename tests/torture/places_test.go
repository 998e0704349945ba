//go:build torture

package torture

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/types"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// way is an engine and what it must do without.
type way struct {
	name, engine, without string
	// noIdmap hides idmapped mounts from the driver.
	noIdmap bool
}

// ways are all that build something, the cheapest first.
var ways = []way{
	{name: "erofs", engine: "erofs"},
	{name: "erofs-patched", engine: "erofs", without: `"idmap"`},
	{name: "metacopy", engine: "metacopy"},
	{name: "copyup", engine: "copyup"},
	{name: "auto-noidmap", engine: "auto", noIdmap: true},
}

// place is a store, which processes open by its folder.
type place struct {
	Dir     string
	NoIdmap bool
	Options []string
}

func (p place) graph() string { return filepath.Join(p.Dir, "graph") }
func (p place) run() string   { return filepath.Join(p.Dir, "run") }
func (p place) home() string  { return filepath.Join(p.graph(), "shiftoverlay") }
func (p place) cache() string { return p.home() + "-shifted" }

// newPlace makes an empty store.
func newPlace(t *testing.T, w way, conf ...string) place {
	t.Helper()
	dir, err := os.MkdirTemp("", w.name+"-") //nolint:usetesting // where TMPDIR is now
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	p := place{Dir: dir, NoIdmap: w.noIdmap}
	require.NoError(t, os.Mkdir(p.graph(), 0o755)) // containers walk there
	p.configure(t, w, conf...)
	t.Cleanup(func() {
		p.unmountAll()
		// A process that was killed may have left one that is just about to end.
		err := os.RemoveAll(dir)
		for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); err = os.RemoveAll(dir) {
			time.Sleep(100 * time.Millisecond)
			p.unmountAll()
		}
		if err != nil {
			t.Errorf("remove the store: %v", err)
		}
	})
	return p
}

// configure writes shiftoverlay.conf.
func (p *place) configure(t *testing.T, w way, more ...string) {
	t.Helper()
	p.NoIdmap = w.noIdmap
	text := "[shiftoverlay]\nengine = \"" + w.engine + "\"\n"
	if w.without != "" {
		text += "erofs_without = " + w.without + "\n"
	}
	for _, line := range more {
		text += line + "\n"
	}
	require.NoError(t, os.WriteFile(p.conf(), []byte(text), 0o600))
}

func (p place) conf() string { return filepath.Join(p.Dir, "shiftoverlay.conf") }

// mounts lists the mount points below the store, the last first.
func (p place) mounts() []string {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.SplitSeq(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], p.Dir+"/") {
			out = append([]string{f[4]}, out...)
		}
	}
	return out
}

func (p place) unmountAll() {
	for _, m := range p.mounts() {
		_ = syscall.Unmount(m, syscall.MNT_DETACH)
	}
}

// open opens the store in this process. free ends that.
func (p place) open() (store storage.Store, free func(), err error) {
	noIdmap := ""
	if p.NoIdmap {
		noIdmap = "yes"
	}
	if err := errors.Join(os.Setenv("SHIFTOVERLAY_CONF", p.conf()), os.Setenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP", noIdmap)); err != nil {
		return nil, nil, err
	}
	store, err = storage.GetStore(types.StoreOptions{
		GraphRoot: p.graph(), RunRoot: p.run(), GraphDriverName: "shiftoverlay", GraphDriverOptions: p.Options,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	return store, store.Free, nil
}

// inPlace makes a child of what is done in the store that its first argument names,
// with the other arguments.
func inPlace(do func(p place, store storage.Store, args []string) error) func(args []string) error {
	return func(args []string) error {
		p, args, err := placeOf(args)
		if err != nil {
			return err
		}
		store, free, err := p.open()
		if err != nil {
			return err
		}
		defer free()
		return do(p, store, args)
	}
}

// opened is open for the test's own process.
func (p place) opened(t *testing.T) storage.Store {
	t.Helper()
	store, free, err := p.open()
	require.NoError(t, err)
	t.Cleanup(free)
	return store
}

// manager is the operator's view.
func manager(store storage.Store) (*shiftoverlay.Manager, error) {
	driver, err := store.GraphDriver()
	if err != nil {
		return nil, err
	}
	return shiftoverlay.Manage(driver)
}

// imageOwners are the owners of an image's files, by what follows the last "-"
// of their names.
var imageOwners = []int{0, 1, 33, 999, 1000}

// tarOf is a layer with n files below a folder, of all imageOwners.
func tarOf(folder string, n int) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range n {
		id := imageOwners[i%len(imageOwners)]
		h := &tar.Header{
			Name: fmt.Sprintf("%s/%d/f%d-%d", folder, i/100, i, id), Typeflag: tar.TypeReg, Mode: 0o644,
			Uid: id, Gid: id, Size: 4, ModTime: time.Unix(1500000000, int64(i)),
		}
		if i%7 == 0 {
			h.Mode = 0o4755
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err) // of memory
		}
		fmt.Fprintf(w, "%04d", i%10000)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return &buf
}

// makeImage makes an image of layers with n files each.
func makeImage(store storage.Store, name string, layers, n int) (*storage.Image, error) {
	parent := ""
	for i := range layers {
		l, _, err := store.PutLayer("", parent, nil, "", false, nil, tarOf(fmt.Sprintf("%s-l%d", name, i), n))
		if err != nil {
			return nil, fmt.Errorf("make image %s: %w", name, err)
		}
		parent = l.ID
	}
	return store.CreateImage("", []string{name}, parent, "", nil)
}

// mappings gives container IDs of a number their own host IDs.
func mappingNumber(i int) []idtools.IDMap {
	return []idtools.IDMap{{ContainerID: 0, HostID: 1_000_000 + i*10_000, Size: 5000}}
}

func asMapping(maps []idtools.IDMap) idshift.Mapping {
	var e idshift.Extents
	for _, m := range maps {
		e = append(e, idshift.Extent{ContainerID: uint32(m.ContainerID), HostID: uint32(m.HostID), Size: uint32(m.Size)})
	}
	m, err := idshift.NewMapping(e, e)
	if err != nil {
		panic(err)
	}
	return m
}

// container makes a container of an image, without a mapping if maps is nil.
func container(store storage.Store, image string, maps []idtools.IDMap, volatile bool, opts ...string) (*storage.Container, error) {
	o := types.IDMappingOptions{HostUIDMapping: true, HostGIDMapping: true}
	if maps != nil {
		o = types.IDMappingOptions{UIDMap: maps, GIDMap: maps}
	}
	co := &storage.ContainerOptions{IDMappingOptions: o, Volatile: volatile}
	if len(opts) > 0 {
		co.StorageOpt = map[string]string{}
		for _, x := range opts {
			k, v, _ := strings.Cut(x, "=")
			co.StorageOpt[k] = v
		}
	}
	return store.CreateContainer("", nil, image, "", "", co)
}

// remove unmounts and deletes a container.
func removeContainer(store storage.Store, id string) error {
	if _, err := store.Unmount(id, true); err != nil && !errors.Is(err, storage.ErrLayerNotMounted) && !errors.Is(err, storage.ErrLayerUnknown) {
		return fmt.Errorf("unmount container: %w", err)
	}
	return store.DeleteContainer(id)
}

// wrongOwner looks at some of the image's files in a mounted container, all if
// every is 1, and says which has an owner or a content that it should not have.
func wrongOwner(root string, base, every int) error {
	n, seen := 0, 0
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; d.IsDir() || (n%every) != 0 {
			return nil
		}
		at := strings.LastIndexByte(d.Name(), '-')
		id, err := strconv.Atoi(d.Name()[at+1:])
		if at < 0 || err != nil {
			return nil //nolint:nilerr // none of the image's files
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		seen++
		if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != base+id || int(st.Gid) != base+id {
			return fmt.Errorf("%s has owner %d:%d instead of %d", path, st.Uid, st.Gid, base+id)
		}
		var i int
		if _, err := fmt.Sscanf(d.Name(), "f%d-", &i); err != nil {
			return nil //nolint:nilerr // not of makeImage
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != fmt.Sprintf("%04d", i%10000) {
			return errors.Join(fmt.Errorf("%s has the content %q", path, got), err)
		}
		return nil
	})
	if err == nil && seen == 0 {
		err = fmt.Errorf("none of the image's files below %s", root)
	}
	return err
}

// builds counts what is built in this process, by the driver's debug messages.
func builds() *atomic.Int64 {
	n := new(atomic.Int64)
	logrus.SetLevel(logrus.DebugLevel)
	logrus.SetOutput(io.Discard)
	logrus.AddHook(buildHook{n})
	return n
}

type buildHook struct{ n *atomic.Int64 }

func (h buildHook) Levels() []logrus.Level { return []logrus.Level{logrus.DebugLevel} }

func (h buildHook) Fire(e *logrus.Entry) error {
	if strings.Contains(e.Message, "built now: true") {
		h.n.Add(1)
	}
	return nil
}

// output is a child with a place and more as its arguments, and what it says.
func output(ctx context.Context, name string, p place, args ...string) ([]byte, error) {
	cmd := childOf(ctx, name, p, args...)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return out, err
}

func childOf(ctx context.Context, name string, p place, args ...string) *exec.Cmd {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return child(ctx, name, append([]string{string(text)}, args...)...)
}

// placeOf reads the first argument of childOf's children.
func placeOf(args []string) (p place, rest []string, err error) {
	if len(args) == 0 {
		return p, nil, errors.New("no place")
	}
	err = json.Unmarshal([]byte(args[0]), &p)
	return p, args[1:], err
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return n
}

// quiet notes a loss for everything that Check finds, and for what is left in
// the cache's folders for builds.
func (a *area) quiet(p place, store storage.Store) {
	a.t.Helper()
	m, err := manager(store)
	require.NoError(a.t, err)
	owners := map[string]shiftoverlay.Owner{}
	list, err := store.Containers()
	require.NoError(a.t, err)
	for _, c := range list {
		owners[c.LayerID] = shiftoverlay.Owner{Name: c.ID, Mapping: asMapping(c.UIDMap)}
	}
	found, err := m.Check(a.t.Context(), shiftoverlay.CheckOptions{Containers: owners})
	require.NoError(a.t, err)
	for _, f := range found {
		if !f.Note {
			a.loss("check: %s %s: %s %v", f.Kind, f.Subject, f.Problem, f.Differences)
		}
	}
}

// sweep does what the next build would do about what dead ones left.
func sweep(t *testing.T, p place) {
	t.Helper()
	c, err := cache.Open(p.cache(), cache.Options{})
	require.NoError(t, err)
	require.NoError(t, c.Sweep(t.Context()))
}

// ownersIn lists the names in an archive with their owners.
func ownersIn(r io.Reader) (map[string]int, error) {
	owners := map[string]int{}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return owners, nil
		}
		if err != nil {
			return nil, err
		}
		owners[strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")] = h.Uid
	}
}
