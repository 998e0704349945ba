package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/pkg/reexec"
	"github.com/containers/storage/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	_ "github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// mainEnv makes the test program be shiftoverlay: the storage library reads
// storage.conf once in a process.
const mainEnv = "SHIFTOVERLAY_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		os.Exit(start())
	}
	// The storage library unpacks layers in a child, which is this program.
	if reexec.Init() {
		return
	}
	os.Exit(testutil.Main(m))
}

// world is a store of its own, as storage.conf names it.
type world struct {
	t                     *testing.T
	dir, graph, run, conf string
	store                 storage.Store // nil unless it is open
}

// newWorld makes an empty store with an engine and further lines of
// shiftoverlay.conf, and checks at the end that nothing is mounted.
func newWorld(t *testing.T, engine string, lines ...string) *world {
	t.Helper()
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, "ext4", 128<<20)
	w := &world{t: t, dir: dir, graph: filepath.Join(dir, "graph"), run: filepath.Join(dir, "run"), conf: filepath.Join(dir, "storage.conf")}
	w.write(w.conf, fmt.Sprintf("[storage]\ndriver = \"shiftoverlay\"\ngraphroot = %q\nrunroot = %q\n", w.graph, w.run))
	shift := filepath.Join(dir, "shiftoverlay.conf")
	w.write(shift, fmt.Sprintf("[shiftoverlay]\nengine = %q\n%s\n", engine, strings.Join(lines, "\n")))
	t.Setenv("CONTAINERS_STORAGE_CONF", w.conf)
	t.Setenv(config.EnvConf, shift)
	t.Setenv("STORAGE_DRIVER", "")
	t.Setenv("STORAGE_OPTS", "")
	w.open()
	t.Cleanup(func() {
		containers, err := w.open().Containers()
		require.NoError(t, err)
		for i := range containers {
			_, err := w.store.Unmount(containers[i].ID, true)
			assert.True(t, err == nil || errors.Is(err, storage.ErrLayerNotMounted), "unmount %s: %v", containers[i].ID, err)
		}
		w.close()
		table, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, err)
		for line := range strings.Lines(string(table)) {
			point := strings.Fields(line)[4]
			assert.False(t, strings.HasPrefix(point, dir+"/"), "left mounted: %s", point)
		}
		names, err := filepath.Glob(filepath.Join(w.run, "shiftoverlay", "check-*"))
		require.NoError(t, err)
		assert.Empty(t, names, "left in the run root")
	})
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(name, []byte(text), 0o600))
}

// open opens the store in this process, as podman would; close ends that.
func (w *world) open() storage.Store {
	w.t.Helper()
	if w.store == nil {
		var err error
		w.store, err = storage.GetStore(types.StoreOptions{GraphRoot: w.graph, RunRoot: w.run, GraphDriverName: driverName})
		require.NoError(w.t, err)
	}
	return w.store
}

func (w *world) close() {
	w.t.Helper()
	if w.store == nil {
		return
	}
	if _, err := w.store.Shutdown(false); err != nil {
		require.ErrorIs(w.t, err, storage.ErrLayerUsedByContainer)
	}
	w.store.Free()
	w.store = nil
}

// image makes an image of one layer, or two, and returns the ID of the
// uppermost.
func (w *world) image(name string, files ...string) string {
	w.t.Helper()
	store := w.open()
	parent := ""
	for _, batch := range [][]string{append([]string{"etc/passwd", "etc/group", "bin/tool"}, files...), {"etc/group", "srv/more"}} {
		var buf bytes.Buffer
		t := tar.NewWriter(&buf)
		for i, f := range batch {
			h := &tar.Header{Name: f, Typeflag: tar.TypeReg, Mode: 0o644, Uid: i, Gid: i, Size: int64(len(f)), ModTime: time.Unix(1500000000, 0)}
			if f == "bin/tool" {
				h.Mode = 0o4755
			}
			require.NoError(w.t, t.WriteHeader(h))
			_, err := io.WriteString(t, f)
			require.NoError(w.t, err)
		}
		require.NoError(w.t, t.Close())
		layer, _, err := store.PutLayer("", parent, nil, "", false, nil, &buf)
		require.NoError(w.t, err)
		parent = layer.ID
	}
	_, err := store.CreateImage("", []string{name}, parent, "", nil)
	require.NoError(w.t, err)
	return parent
}

// mapped is a mapping of 65536 IDs.
func mapped(host int) types.IDMappingOptions {
	m := []idtools.IDMap{{ContainerID: 0, HostID: host, Size: 65536}}
	return types.IDMappingOptions{UIDMap: m, GIDMap: m}
}

// container makes a container with a mapping, and mounts it.
func (w *world) container(name, image string, m types.IDMappingOptions) (id, merged string) {
	w.t.Helper()
	c, err := w.open().CreateContainer("", []string{name}, image, "", "", &storage.ContainerOptions{IDMappingOptions: m})
	require.NoError(w.t, err)
	return c.ID, w.mount(c.ID)
}

func (w *world) mount(id string) string {
	w.t.Helper()
	merged, err := w.open().Mount(id, "")
	require.NoError(w.t, err)
	return merged
}

func (w *world) unmount(id string) {
	w.t.Helper()
	_, err := w.open().Unmount(id, true)
	require.NoError(w.t, err)
}

// result is what a command line left.
type result struct {
	code        int
	out, errors string
}

// try runs a command line as a process of its own would, with an answer on
// standard input.
func (w *world) try(answer string, args ...string) result {
	w.t.Helper()
	w.close()
	return run(w.t, answer, args...)
}

// run runs a command line.
func run(t *testing.T, answer string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Args[0] = "shiftoverlay"
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(answer), &out, &errs
	if err := cmd.Run(); err != nil {
		exit := (*exec.ExitError)(nil)
		require.ErrorAs(t, err, &exit)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// ok runs a command line that must succeed and returns its output.
func (w *world) ok(args ...string) string {
	w.t.Helper()
	r := w.try("", args...)
	require.Zero(w.t, r.code, "shiftoverlay %s\n%s%s", strings.Join(args, " "), r.out, r.errors)
	return r.out
}

// json runs a command line that must succeed and decodes its output.
func decode[T any](w *world, args ...string) (value T) {
	w.t.Helper()
	out := w.ok(append(args, "--format", "json")...)
	require.NoError(w.t, json.Unmarshal([]byte(out), &value), "%s", out)
	return value
}

// entryRow is an entry as JSON has it.
type entryRow struct {
	ID, Layer, Engine, Path string
	Images                  []string
	Mapping                 *mappingText
	Size, Inodes            int64
	Containers              []container
	Durable                 bool
	LastUsed                time.Time
}

func (w *world) list() []entryRow {
	w.t.Helper()
	return decode[[]entryRow](w, "ls")
}

func owner(t *testing.T, path string) [2]uint32 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st), path)
	return [2]uint32{st.Uid, st.Gid}
}
