//go:build torture

package torture

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/worstcase"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// layerOf makes a layer of entries.
func layerOf(entries ...tar.Header) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range entries {
		h := &entries[i]
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err) // of memory
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return &buf
}

// imageOf makes an image of layers, the lowest first.
func imageOf(t *testing.T, store storage.Store, name string, layers ...io.Reader) *storage.Image {
	t.Helper()
	parent := ""
	for _, l := range layers {
		layer, _, err := store.PutLayer("", parent, nil, "", false, nil, l)
		require.NoError(t, err)
		parent = layer.ID
	}
	image, err := store.CreateImage("", []string{name}, parent, "", nil)
	require.NoError(t, err)
	return image
}

// started mounts a new container of an image. done removes it.
func started(store storage.Store, image string, n int) (c *storage.Container, root string, done func() error, err error) {
	c, err = container(store, image, mappingNumber(n), true)
	if err != nil {
		return nil, "", nil, err
	}
	done = func() error { return removeContainer(store, c.ID) }
	if root, err = store.Mount(c.ID, ""); err != nil {
		return nil, "", nil, errors.Join(err, done())
	}
	return c, root, done, nil
}

// starts starts a container, looks at its files and removes it.
func (a *area) starts(store storage.Store, image string, n int) error {
	a.operations.Add(1)
	_, root, done, err := started(store, image, n)
	if err != nil {
		return err
	}
	err = wrongOwner(root, mappingNumber(n)[0].HostID, 1)
	return errors.Join(err, done())
}

// TestHostileCorrupt damages what is in the cache in every way that one file can
// be damaged in. A start must then work and show the right owners, and what it
// does not mend by itself Check must find.
func TestHostileCorrupt(t *testing.T) {
	a := begin(t, "hostile-corrupt")
	for _, w := range ways[:4] {
		if a.over() {
			break
		}
		t.Run(w.name, func(t *testing.T) {
			p := newPlace(t, w)
			store := p.opened(t)
			_, err := makeImage(store, "one", 2, 30)
			require.NoError(t, err)
			require.NoError(t, a.starts(store, "one", 1))
			entries, err := filepath.Glob(filepath.Join(p.cache(), strings.Repeat("?", 64), strings.Repeat("?", 64)))
			require.NoError(t, err)
			require.NotEmpty(t, entries)
			for _, damage := range damages {
				for _, entry := range entries {
					a.damage(p, store, entry, damage)
				}
			}
		})
	}
}

// damage is one way to damage an entry.
type damage struct {
	name string
	do   func(entry string) error
	// silent says that only Check can find it.
	silent bool
}

// overwrite puts text in the place of a file's.
func overwrite(name, text string) damage {
	return damage{name: name + " is " + fmt.Sprintf("%.20q", text), do: func(entry string) error {
		at := filepath.Join(entry, name)
		return errors.Join(os.RemoveAll(at), os.WriteFile(at, []byte(text), 0o600))
	}}
}

func without(name string) damage {
	return damage{name: "without " + name, do: func(entry string) error { return os.RemoveAll(filepath.Join(entry, name)) }}
}

func folderAt(name string) damage {
	return damage{name: name + " is a folder", do: func(entry string) error {
		at := filepath.Join(entry, name)
		return errors.Join(os.RemoveAll(at), os.MkdirAll(filepath.Join(at, "x"), 0o700))
	}}
}

func linkAt(name, target string) damage {
	return damage{name: name + " is a link to " + target, do: func(entry string) error {
		at := filepath.Join(entry, name)
		return errors.Join(os.RemoveAll(at), os.Symlink(target, at))
	}}
}

// inImage changes the first regular file of data.
func inImage(name string, silent bool, change func(f *os.File, size int64) error) damage {
	return damage{name: name, silent: silent, do: func(entry string) error {
		file := ""
		err := filepath.WalkDir(filepath.Join(entry, "data"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && file == "" && d.Type().IsRegular() {
				file = path
			}
			return err
		})
		if err != nil || file == "" {
			return fmt.Errorf("no file in %s: %w", entry, err)
		}
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		return change(f, st.Size())
	}}
}

var damages = []damage{
	overwrite("meta.json", ""), overwrite("meta.json", "{"), overwrite("meta.json", `{"version":2}`), overwrite("meta.json", `{"version":1}`),
	overwrite("meta.json", `{"version":1,"boot_id":"x"}`), overwrite("meta.json", strings.Repeat("[", 100000)), overwrite("meta.json", strings.Repeat(" ", 2<<20)),
	overwrite("meta.json", "\x00\x00\x00"), without("meta.json"), folderAt("meta.json"), linkAt("meta.json", "/etc/passwd"), linkAt("meta.json", "meta.json"),
	without("users"), overwrite("users", "x"), linkAt("users", "/tmp"), without("used"), folderAt("used"), linkAt("used", "/nonexistent"),
	overwrite("size", `{"bytes":-1,"inodes":1}`), overwrite("size", "x"), folderAt("size"), folderAt("durable"), linkAt("durable", "/etc"),
	without("data"), overwrite("data", ""), linkAt("data", "/etc"), linkAt("data", "/nonexistent"),
	{name: "an empty folder", do: func(entry string) error { return errors.Join(os.RemoveAll(entry), os.Mkdir(entry, 0o700)) }},
	{name: "data is empty", do: func(entry string) error {
		return errors.Join(os.RemoveAll(filepath.Join(entry, "data")), os.Mkdir(filepath.Join(entry, "data"), 0o700))
	}},
	inImage("a file is empty", true, func(f *os.File, _ int64) error { return f.Truncate(0) }),
	inImage("a file is cut", true, func(f *os.File, size int64) error { return f.Truncate(size / 2) }),
	inImage("a file is longer", true, func(f *os.File, size int64) error { return f.Truncate(size + 4096) }),
	inImage("the superblock is damaged", true, func(f *os.File, _ int64) error { _, err := f.WriteAt([]byte("XXXXXXXX"), 1030); return err }),
	inImage("the header is damaged", true, func(f *os.File, _ int64) error { _, err := f.WriteAt([]byte{0xff}, 20); return err }),
}

// damage damages an entry and starts containers.
func (a *area) damage(p place, store storage.Store, entry string, d damage) {
	t := a.t
	require.NoError(t, d.do(entry), d.name)
	a.faults.Add(1)
	what := fmt.Sprintf("%s: %s", strings.TrimPrefix(entry, p.cache()), d.name)
	err := a.starts(store, "one", 1)
	if err != nil && !d.silent {
		a.loss("%s: the next start: %v", what, err)
	}
	if err != nil {
		a.t.Logf("%s: the next start: %v", what, err)
	}
	m, merr := manager(store)
	require.NoError(t, merr)
	found, err := m.Check(t.Context(), shiftoverlay.CheckOptions{})
	if err != nil {
		a.loss("%s: check: %v", what, err)
		return
	}
	for _, f := range found {
		if f.Fixable() {
			if err := f.Fix(t.Context()); err != nil {
				a.loss("%s: repair of %s: %v", what, f.Problem, err)
			}
		}
	}
	if err := a.starts(store, "one", 1); err != nil {
		a.loss("%s: start after check and repair: %v", what, err)
	}
	a.quiet(p, store)
	a.removable(t, p, store, what)
}

// removable prunes everything, whatever was damaged, and builds it anew.
func (a *area) removable(t *testing.T, p place, store storage.Store, what string) {
	t.Helper()
	m, err := manager(store)
	require.NoError(t, err)
	if _, err := m.Prune(t.Context(), 0, time.Nanosecond); err != nil {
		a.loss("%s: prune: %v", what, err)
	}
	if err := a.starts(store, "one", 1); err != nil {
		a.loss("%s: start after prune: %v", what, err)
	}
}

// TestHostileRace changes layers while they are walked: a folder is now there,
// now a link to one outside, of which nothing may ever be read.
func TestHostileRace(t *testing.T) {
	a := begin(t, "hostile-race")
	list := ways[:4]
	for _, w := range list {
		t.Run(w.name, func(t *testing.T) {
			p := newPlace(t, w)
			store := p.opened(t)
			image, err := makeImage(store, "one", 1, 2000)
			require.NoError(t, err)
			outside := filepath.Join(p.Dir, "outside")
			require.NoError(t, os.MkdirAll(filepath.Join(outside, "0"), 0o755))
			for _, d := range []string{"", "0/"} {
				require.NoError(t, os.WriteFile(filepath.Join(outside, d+"SECRETNAME"), []byte("SECRETTEXT"), 0o600))
			}
			diff := filepath.Join(p.home(), image.TopLayer, "diff", "one-l0")
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			go a.swap(ctx, diff, outside)
			end := time.Now().Add(a.part(0.8, 2*time.Minute) / time.Duration(len(list)))
			m, err := manager(store)
			require.NoError(t, err)
			for i := 0; i == 0 || time.Now().Before(end); i++ {
				w, err := m.Warm(t.Context(), image.TopLayer, asMapping(mappingNumber(i%3)), shiftoverlay.WarmUser())
				a.operations.Add(1)
				if err != nil {
					continue // a walk may say that it lost its way
				}
				require.NoError(t, m.Release(w.Ref, shiftoverlay.WarmUser()))
				if found := secretIn(t, p.cache()); found != "" {
					a.loss("something from outside of the layer is in %s", found)
				}
				_, err = m.Prune(t.Context(), 0, time.Nanosecond)
				require.NoError(t, err)
			}
		})
	}
}

// swap exchanges folders of a layer with links to a folder outside.
func (a *area) swap(ctx context.Context, diff, outside string) {
	for i := 0; ctx.Err() == nil; i++ {
		for _, at := range []string{diff, filepath.Join(diff, "0"), filepath.Join(diff, "7")} {
			link := at + ".link"
			if os.Symlink(outside, link) != nil {
				continue
			}
			if unix.Renameat2(unix.AT_FDCWD, at, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE) == nil {
				a.faults.Add(1)
				for range i % 50 {
					_ = ctx.Err()
				}
				_ = unix.Renameat2(unix.AT_FDCWD, at, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
			_ = os.Remove(link)
		}
	}
}

// secretIn looks for a name and a text in everything below a folder.
func secretIn(t *testing.T, dir string) (found string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		text := []byte(d.Name())
		if d.Type().IsRegular() {
			more, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = append(text, more...)
		}
		if bytes.Contains(text, []byte("SECRETNAME")) || bytes.Contains(text, []byte("SECRETTEXT")) {
			found = path
		}
		return nil
	}))
	return found
}

// TestHostileImages starts images that were made to hurt, through the whole
// driver: layers with overlay's attributes, a directory with very many names, as
// many layers as overlay takes, the longest paths, the largest attributes.
func TestHostileImages(t *testing.T) {
	a := begin(t, "hostile-images")
	list := ways
	if a.short() {
		list = []way{ways[a.rand.IntN(2)], ways[2+a.rand.IntN(3)]}
	}
	for _, w := range list {
		t.Run(w.name, func(t *testing.T) {
			p := newPlace(t, w)
			store := p.opened(t)
			for _, h := range hostileImages(a) {
				if a.over() {
					return
				}
				t.Run(h.name, func(t *testing.T) { a.hostile(t, store, h) })
			}
			a.chains(t, p, store)
		})
	}
}

// hostileImage is one that everything must be able to start.
type hostileImage struct {
	name   string
	layers func() []io.Reader
	// path is one in it, and owner who owns it.
	path  string
	owner int
}

func hostileImages(a *area) []hostileImage {
	names, layers := 1_000_000, 400
	if a.short() {
		names, layers = 20_000, 130
	}
	deep := strings.Repeat(strings.Repeat("d", 200)+"/", 19) + "f" // 3,820 bytes
	return []hostileImage{
		{name: "names", path: "d/n7", owner: 7, layers: func() []io.Reader {
			list := []tar.Header{{Name: "d", Typeflag: tar.TypeDir, Uid: 3, Gid: 3}}
			for i := range names {
				list = append(list, tar.Header{Name: fmt.Sprintf("d/n%d", i), Uid: i % 1000, Gid: i % 1000})
			}
			return []io.Reader{layerOf(list...)}
		}},
		{name: "layers", path: "d/l7", owner: 7, layers: func() (out []io.Reader) {
			for i := range layers {
				list := []tar.Header{{Name: "d", Typeflag: tar.TypeDir, Uid: i, Gid: i}, {Name: fmt.Sprintf("d/l%d", i), Uid: i, Gid: i}}
				if i > 10 && i%3 == 0 {
					list = append(list, tar.Header{Name: fmt.Sprintf("d/.wh.l%d", i-1)})
				}
				out = append(out, layerOf(list...))
			}
			return out
		}},
		{name: "deep", path: deep, owner: 9, layers: func() []io.Reader { return []io.Reader{layerOf(tar.Header{Name: deep, Uid: 9, Gid: 9})} }},
		{name: "attributes", path: "big", owner: 11, layers: func() []io.Reader {
			pax := map[string]string{}
			for i := range 12 {
				pax[fmt.Sprintf("SCHILY.xattr.user.%s%d", strings.Repeat("n", 100), i)] = strings.Repeat("v", 150)
			}
			return []io.Reader{layerOf(tar.Header{Name: "big", Uid: 11, Gid: 11, PAXRecords: pax})}
		}},
	}
}

func (a *area) hostile(t *testing.T, store storage.Store, h hostileImage) {
	imageOf(t, store, h.name, h.layers()...)
	start := time.Now()
	for n := range 2 {
		_, root, done, err := started(store, h.name, n)
		a.operations.Add(1)
		if err != nil {
			a.loss("%s: %v", h.name, err)
			return
		}
		// By parts: the path of the mount point and this one are too long together.
		var st unix.Stat_t
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		err = unix.Fstatat(fd, h.path, &st, unix.AT_SYMLINK_NOFOLLOW)
		require.NoError(t, unix.Close(fd))
		if err != nil || int(st.Uid) != mappingNumber(n)[0].HostID+h.owner {
			a.loss("%s: %.40s belongs to %d, %v", h.name, h.path, st.Uid, err)
		}
		require.NoError(t, done())
	}
	t.Logf("%s: %s for two starts", h.name, time.Since(start))
	image, err := store.Image(h.name)
	require.NoError(t, err)
	_, err = store.DeleteImage(image.ID, true)
	require.NoError(t, err)
}

// chains starts images with layers that lead elsewhere with overlay's own
// attributes. They are refused, or show nothing from outside.
func (a *area) chains(t *testing.T, p place, store storage.Store) {
	outside := filepath.Join(p.Dir, "outside")
	require.NoError(t, os.MkdirAll(outside, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("SECRETTEXT"), 0o600))
	for _, h := range worstcase.HostileChains() {
		t.Run(h.Name, func(t *testing.T) {
			parent, folders := "", []string{}
			for range worstcase.HostileLayers {
				l, err := store.CreateLayer("", parent, nil, "", false, nil)
				require.NoError(t, err)
				parent = l.ID
				folders = append([]string{filepath.Join(p.home(), l.ID, "diff")}, folders...)
			}
			require.NoError(t, h.Write(t.Context(), folders, outside))
			_, err := store.CreateImage("", []string{"hostile"}, parent, "", nil)
			require.NoError(t, err)
			a.operations.Add(1)
			_, root, done, err := started(store, "hostile", 1)
			if _, ok := errors.AsType[*idshift.LayerError](err); ok || err != nil && h.Refused != "" {
				a.faults.Add(1)
			} else if err != nil {
				a.loss("%s: %v", h.Name, err)
			} else {
				for name, text := range h.Reads {
					got, err := os.ReadFile(filepath.Join(root, name))
					assert.NoError(t, err)
					assert.Equal(t, text, string(got), name)
				}
				if h.Refused != "" {
					a.loss("%s is not refused", h.Name)
				}
				require.NoError(t, done())
			}
			image, err := store.Image("hostile")
			require.NoError(t, err)
			_, err = store.DeleteImage(image.ID, true)
			require.NoError(t, err)
		})
	}
}
