package shiftoverlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/pkg/reexec"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/probe"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// playInside is the name under which this program plays in a container.
const playInside = "shiftoverlay-test-play"

func TestMain(m *testing.M) {
	// The storage library unpacks layers in a child, which is this program.
	reexec.Register(playInside, func() {
		if err := playHere(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	})
	if reexec.Init() {
		return
	}
	os.Exit(testutil.Main(m))
}

// playHere plays on the tree of file descriptor 3. It runs in a user
// namespace. The arguments are a seed, a number of operations, and the engine.
func playHere(args []string) error {
	seed, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Fchdir(3), syscall.Chroot(".")); err != nil {
		return fmt.Errorf("enter the container: %w", err)
	}
	p := fsop.NewPlayer(fsop.Ops{Root: "/", NoLowerACL: args[2] == "erofs"}, seed)
	p.Log = func(operation string) { fmt.Fprintln(os.Stdout, operation) }
	return p.Play(n)
}

// inside plays on a mounted tree as the root user of a container with the
// mapping and returns what was done.
func inside(t *testing.T, merged, engine string, m idshift.Mapping, seed uint64, n int) string {
	t.Helper()
	dir, err := os.Open(merged)
	require.NoError(t, err)
	defer dir.Close()
	cmd := reexec.CommandContext(t.Context(), playInside, strconv.FormatUint(seed, 10), strconv.Itoa(n), engine)
	cmd.ExtraFiles = []*os.File{dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: m.UIDs.SysProcIDMaps(), GidMappings: m.GIDs.SysProcIDMaps(),
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	out, err := cmd.Output()
	exit := (*exec.ExitError)(nil)
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	require.NoError(t, err)
	return string(out)
}

// oneExtent and threeExtents are mappings for containers.
const (
	oneExtent    = "0:200000:65536"
	threeExtents = "0:300000:500,500:400500:600,1100:700000:65000"
)

func mapping(t testing.TB, text string) idshift.Mapping {
	t.Helper()
	m, err := idshift.ParseMapping(text, text)
	require.NoError(t, err)
	return m
}

// mapped are the options of a mount under a mapping.
func mapped(m idshift.Mapping) graphdriver.MountOpts {
	return graphdriver.MountOpts{UidMaps: idMaps(m.UIDs), GidMaps: idMaps(m.GIDs)}
}

// store is a store with the driver under test.
type store struct {
	graphdriver.Driver
	t    testing.TB
	root string // the graph root
	run  string
	conf string // the text of shiftoverlay.conf
}

// setup are the settings of a store.
type setup struct {
	name    string
	engine  string
	options []string // storage options
	conf    string   // more lines for shiftoverlay.conf
	// attached makes idmap work as on kernels before 6.15, whose overlay takes
	// no idmapped mounts that are in no mount table.
	attached bool
}

// builds tells whether the engine keeps something in the cache.
func (c setup) builds() bool { return c.engine != "idmap" }

// entries is how many entries of the cache a number of mappings of one image
// make.
func (c setup) entries(t testing.TB, mappings int) int {
	t.Helper()
	switch {
	case !c.builds():
		return 0
	case c.engine != "erofs":
		return mappings
	case c.conf == oldErofs || !testutil.KernelSince(t, 6, 2):
		return mappings + 1
	default:
		return 1
	}
}

// oldErofs makes the engine erofs work as on kernels that have nothing but
// what it needs: an image for each mapping, a loop device, ordinary lowers.
const oldErofs = `erofs_without = "data-only, file, idmap"`

// engines are the engines, erofs at its best and at its worst.
func engines() []setup {
	return []setup{
		{name: "idmap", engine: "idmap"},
		{name: "idmap-attached", engine: "idmap", attached: true},
		{name: "erofs", engine: "erofs"},
		{name: "erofs-old", engine: "erofs", conf: oldErofs},
		{name: "metacopy", engine: "metacopy"},
		{name: "copyup", engine: "copyup"},
	}
}

// setups are the engines with the mount options that matter to them.
func setups() []setup {
	off := []string{"shiftoverlay.mountopt=metacopy=off,redirect_dir=on"}
	return append(engines(),
		setup{name: "idmap-plain", engine: "idmap", options: off},
		setup{name: "copyup-plain", engine: "copyup", options: off},
		setup{name: "copyup-noredirects", engine: "copyup", options: []string{"shiftoverlay.mountopt=metacopy=off"}},
	)
}

// newStore makes a store in a folder.
func newStore(t testing.TB, dir string, s setup) *store {
	t.Helper()
	testutil.RequireRoot(t)
	st := &store{t: t, root: filepath.Join(dir, "graph"), run: filepath.Join(dir, "run"), conf: filepath.Join(dir, "shiftoverlay.conf")}
	for _, d := range []string{dir, st.root, st.run} {
		require.NoError(t, os.MkdirAll(d, 0o755))
	}
	st.open(s)
	return st
}

// open starts the driver, again if it runs already, as another process would.
func (s *store) open(c setup) {
	s.t.Helper()
	if c.engine == "idmap" {
		testutil.RequireKernel(s.t, 6, 2) // the first whose overlay shows ACLs on idmapped lowers as they should be
	}
	d, err := s.start(c)
	require.NoError(s.t, err)
	s.Driver = d
	s.t.Cleanup(func() {
		assert.NoError(s.t, d.Cleanup())
		assert.Empty(s.t, mountsBelow(s.t, s.root), "left mounted")
	})
}

// start starts a driver.
func (s *store) start(c setup) (graphdriver.Driver, error) {
	s.t.Helper()
	if c.engine == "" {
		c.engine = "auto"
	}
	text := fmt.Sprintf("[shiftoverlay]\nengine = %q\n%s\n", c.engine, c.conf)
	require.NoError(s.t, os.WriteFile(s.conf, []byte(text), 0o600))
	s.t.Setenv(config.EnvConf, s.conf)
	o := graphdriver.Options{Root: s.root, RunRoot: s.run, DriverOptions: c.options}
	d, err := graphdriver.GetDriver(driverName, o)
	if err != nil || !c.attached {
		return d, err
	}
	// What was found out once is believed.
	require.NoError(s.t, d.Cleanup())
	file := filepath.Join(s.run, driverName, probe.ReportName)
	var report map[string]any
	b, err := os.ReadFile(file)
	require.NoError(s.t, err)
	require.NoError(s.t, json.Unmarshal(b, &report))
	require.Contains(s.t, report, "idmap_detached")
	report["idmap_detached"] = "not to be tried"
	b, err = json.Marshal(report)
	require.NoError(s.t, err)
	require.NoError(s.t, os.WriteFile(file, b, 0o600))
	return graphdriver.GetDriver(driverName, o)
}

// mountsBelow lists mount points of overlays below a folder, without the home
// folder's own, which overlay makes for itself.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

// image makes an image layer: the change of a container, as podman does, or
// the first layer directly.
func (s *store) image(id, parent string, fill ...func(o fsop.Ops) error) {
	s.t.Helper()
	making := id
	if parent != "" {
		making = id + "-making"
	}
	require.NoError(s.t, s.Create(making, parent, nil))
	merged := s.get(making, graphdriver.MountOpts{})
	for _, f := range fill {
		require.NoError(s.t, f(fsop.Ops{Root: merged}))
	}
	require.NoError(s.t, s.Put(making))
	if parent != "" {
		s.commit(id, parent, s.diff(making, parent))
		require.NoError(s.t, s.Remove(making))
	}
}

// get mounts a layer.
func (s *store) get(id string, o graphdriver.MountOpts) string {
	s.t.Helper()
	merged, err := s.Get(id, o)
	require.NoError(s.t, err)
	return merged
}

// container makes a container's layer and mounts it under a mapping.
func (s *store) container(id, parent string, m idshift.Mapping) string {
	s.t.Helper()
	require.NoError(s.t, s.CreateReadWrite(id, parent, nil))
	return s.get(id, mapped(m))
}

// dir returns a layer's folder.
func (s *store) dir(id string) string { return filepath.Join(s.root, driverName, id) }

// diff returns the change of a layer.
func (s *store) diff(id, parent string) []byte {
	s.t.Helper()
	r, err := s.Diff(id, nil, parent, nil, "")
	require.NoError(s.t, err)
	b, err := io.ReadAll(r)
	require.NoError(s.t, err)
	require.NoError(s.t, r.Close())
	return b
}

// commit makes an image layer of an archive.
func (s *store) commit(id, parent string, archive []byte) {
	s.t.Helper()
	require.NoError(s.t, s.Create(id, parent, nil))
	_, err := s.ApplyDiff(id, parent, graphdriver.ApplyDiffOpts{Diff: bytes.NewReader(archive)})
	require.NoError(s.t, err)
}

// entries lists the cache's entries as "layer/key".
func (s *store) entries() []string {
	s.t.Helper()
	all, err := filepath.Glob(filepath.Join(s.root, driverName+cacheSuffix, "*", strings.Repeat("[0-9a-f]", 64)))
	require.NoError(s.t, err)
	for i := range all {
		rel, err := filepath.Rel(filepath.Join(s.root, driverName+cacheSuffix), all[i])
		require.NoError(s.t, err)
		all[i] = rel
	}
	return all
}

// status returns the rows of Status.
func (s *store) status() map[string]string {
	out := make(map[string]string)
	for _, r := range s.Status() {
		out[r[0]] = r[1]
	}
	return out
}

// compareOptions are for trees of which one was unpacked.
var compareOptions = referee.Options{Content: true, MergedNlink: true}

// seen reads a mounted tree, in container IDs.
func seen(t testing.TB, merged string, m *idshift.Mapping) *referee.Tree {
	t.Helper()
	tree, err := referee.Scan(t.Context(), merged, compareOptions)
	require.NoError(t, err)
	if m == nil {
		return tree
	}
	back, err := idshift.NewUnshift(*m)
	require.NoError(t, err)
	tree, err = tree.Shift(back)
	require.NoError(t, err)
	return tree
}

// equal compares two trees; skip says which differences must be.
func equal(t testing.TB, want, got *referee.Tree, what string, skip ...func(d referee.Difference) bool) bool {
	t.Helper()
	differences := slices.DeleteFunc(referee.Compare(want, got, compareOptions), func(d referee.Difference) bool {
		return slices.ContainsFunc(skip, func(f func(referee.Difference) bool) bool { return f(d) })
	})
	for _, d := range differences[:min(20, len(differences))] {
		t.Errorf("%s: %s", what, d)
	}
	return len(differences) == 0
}

// ofRoot are differences that must be. The archive has an entry for a changed
// root, but the storage library leaves that out when it unpacks a layer
// (pkg/archive, Unpack), with every driver.
func ofRoot(d referee.Difference) bool { return d.Path == referee.RootPath }

// beforeEpoch are differences that must be: the storage library unpacks a time
// before 1970 as 1970 (pkg/system, Chtimes).
func beforeEpoch(want *referee.Tree) func(d referee.Difference) bool {
	return func(d referee.Difference) bool {
		p := d.Path
		if u, err := strconv.Unquote(p); err == nil {
			p = u
		}
		n, ok := want.Lookup(p)
		return ok && d.Attribute == referee.AttrMtime && n.Mtime.Sec < 0 && d.B == "0.000000000"
	}
}

func toMaps(m *idshift.Mapping) *idtools.IDMappings {
	if m == nil {
		return nil
	}
	return idtools.NewIDMappingsFromMaps(idMaps(m.UIDs), idMaps(m.GIDs))
}
