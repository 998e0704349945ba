//go:build torture

package torture

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containers/storage"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// idmapWays are all ways, with those that build nothing.
func idmapWays() []way {
	return append(slices.Clone(ways), way{name: "auto", engine: "auto"})
}

// in does something with the store, opened anew as after a change to its
// configuration.
func (p place) in(t *testing.T, do func(store storage.Store)) {
	t.Helper()
	store, free, err := p.open()
	require.NoError(t, err)
	defer free()
	do(store)
}

// reboot is what a start of the machine takes away: mounts, and what is in the
// run root.
func (p place) reboot(t *testing.T) {
	t.Helper()
	p.unmountAll()
	require.NoError(t, os.RemoveAll(p.run()))
}

// TestLife takes stores through what happens to them in years.
func TestLife(t *testing.T) {
	a := begin(t, "life")
	for _, c := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"change", a.lifeChange},
		{"move", a.lifeMove},
		{"copy", a.lifeCopy},
		{"formats", a.lifeFormats},
		{"stores", a.lifeStores},
		{"volatile", a.lifeVolatile},
		{"quota", a.lifeQuota},
		{"podman", a.lifePodman},
	} {
		t.Run(c.name, c.run)
	}
}

// write writes a file of container ID 7 into a mounted container.
func write(root, name string, base int) error {
	at := filepath.Join(root, name)
	if err := os.WriteFile(at, []byte(name), 0o600); err != nil {
		return err
	}
	return os.Lchown(at, base+7, base+7)
}

// again mounts a container that was stopped, looks at everything, and unmounts it.
func (a *area) again(store storage.Store, what, id string, base int, written ...string) {
	a.t.Helper()
	a.operations.Add(1)
	root, err := store.Mount(id, "")
	if err != nil {
		a.loss("%s: %v", what, err)
		return
	}
	err = wrongOwner(root, base, 1)
	for _, name := range written {
		var st unix.Stat_t
		err = errors.Join(err, unix.Lstat(filepath.Join(root, name), &st))
		if int(st.Uid) != base+7 {
			err = errors.Join(err, fmt.Errorf("%s has owner %d instead of %d", name, st.Uid, base+7))
		}
		if text, rerr := os.ReadFile(filepath.Join(root, name)); rerr != nil || string(text) != name {
			err = errors.Join(err, fmt.Errorf("%s holds %q", name, text), rerr)
		}
	}
	if _, uerr := store.Unmount(id, false); err != nil || uerr != nil {
		a.loss("%s: %v", what, errors.Join(err, uerr))
	}
	s := stormer{store: store}
	c, err := store.Container(id)
	require.NoError(a.t, err)
	if len(written) == 1 && written[0] == "new-7" {
		if err := s.diff(c); err != nil {
			a.loss("%s: %v", what, err)
		}
	}
}

// lifeChange goes from every engine and way to every other with containers that
// were written before, with and without a start of the machine in between: a
// change to the configuration, or to another kernel and back.
func (a *area) lifeChange(t *testing.T) {
	list := idmapWays()
	for i, from := range list {
		p := newPlace(t, from)
		var ids []string
		p.in(t, func(store storage.Store) {
			_, err := makeImage(store, "one", 2, 25)
			require.NoError(t, err)
			for n := range 2 {
				c, root, _, err := started(store, "one", n)
				require.NoError(t, err)
				require.NoError(t, write(root, "new-7", mappingNumber(n)[0].HostID))
				_, err = store.Unmount(c.ID, false)
				require.NoError(t, err)
				ids = append(ids, c.ID)
			}
		})
		for j, to := range list {
			if a.short() && (i+j)%3 != a.rand.IntN(3) {
				continue
			}
			if a.rand.IntN(2) == 0 {
				p.reboot(t)
			}
			p.configure(t, to)
			a.faults.Add(1)
			p.in(t, func(store storage.Store) {
				for n, id := range ids {
					a.again(store, "from "+from.name+" to "+to.name, id, mappingNumber(n)[0].HostID, "new-7")
				}
				a.quiet(p, store)
			})
		}
	}
}

// stopped is a container of the image "one", both new, in which something was
// written.
func stopped(t *testing.T, store storage.Store) *storage.Container {
	t.Helper()
	_, err := makeImage(store, "one", 2, 25)
	require.NoError(t, err)
	c, root, _, err := started(store, "one", 1)
	require.NoError(t, err)
	require.NoError(t, write(root, "new-7", mappingNumber(1)[0].HostID))
	_, err = store.Unmount(c.ID, false)
	require.NoError(t, err)
	return c
}

// lifeMove moves a store to another folder, where everything must be found as it
// was, and nothing be built again.
func (a *area) lifeMove(t *testing.T) {
	built := builds()
	for _, w := range ways[:4] {
		p := newPlace(t, w)
		var id string
		p.in(t, func(store storage.Store) {
			id = stopped(t, store).ID
		})
		p.unmountAll()
		before := built.Load()
		moved := p
		moved.Dir = p.Dir + "-moved"
		require.NoError(t, os.Rename(p.Dir, moved.Dir))
		a.faults.Add(1)
		moved.in(t, func(store storage.Store) {
			a.again(store, "moved, "+w.name, id, mappingNumber(1)[0].HostID, "new-7")
			a.quiet(moved, store)
		})
		if n := built.Load() - before; n != 0 {
			a.loss("%s: %d built again after the store was moved", w.name, n)
		}
		moved.unmountAll()
		require.NoError(t, os.RemoveAll(moved.Dir))
	}
}

// lifeCopy restores a store from a backup without extended attributes, and from
// one with them; what the cache holds must not be believed.
func (a *area) lifeCopy(t *testing.T) {
	for _, w := range ways[:4] {
		for _, command := range []string{"cp -a --no-preserve=xattr,context", "cp -a"} {
			p := newPlace(t, w)
			p.in(t, func(store storage.Store) {
				_, err := makeImage(store, "one", 2, 25)
				require.NoError(t, err)
				require.NoError(t, a.starts(store, "one", 1))
				// As after a minute: believed after a start of the machine.
				m, err := manager(store)
				require.NoError(t, err)
				list, err := m.Entries(t.Context())
				require.NoError(t, err)
				for _, e := range list {
					require.NoError(t, m.Settle(t.Context(), e.Ref))
				}
			})
			p.unmountAll()
			restored := p
			restored.Dir = p.Dir + "-restored"
			out, err := exec.CommandContext(t.Context(), "sh", "-c", command+" "+p.Dir+" "+restored.Dir).CombinedOutput()
			require.NoError(t, err, string(out))
			a.faults.Add(1)
			restored.in(t, func(store storage.Store) {
				if err := a.starts(store, "one", 1); err != nil {
					a.loss("%s after %q: %v", w.name, command, err)
				}
				a.quiet(restored, store)
			})
			restored.unmountAll()
			require.NoError(t, os.RemoveAll(restored.Dir))
		}
	}
}

// lifeFormats changes the versions of everything that this program writes, as
// another version of it would: what can be made again is, what cannot is refused
// and not touched.
func (a *area) lifeFormats(t *testing.T) {
	for _, w := range ways[:4] {
		p := newPlace(t, w)
		var id, layer string
		p.in(t, func(store storage.Store) {
			c := stopped(t, store)
			id, layer = c.ID, c.LayerID
		})
		for _, c := range []struct{ glob, from, to string }{
			{filepath.Join(p.cache(), "*", "*", "meta.json"), `"version":1`, `"version":7`},
			{filepath.Join(p.cache(), "*", "*", "meta.json"), `"version":1`, `"version":"1.2"`},
			{filepath.Join(p.cache(), "*", "*", "data", "image.erofs"), "SHIFTIMG\x02", "SHIFTIMG\x63"},
			{filepath.Join(p.run(), "shiftoverlay", "shiftoverlay-probe-*.json"), `"version":`, `"version":9`},
			{filepath.Join(p.run(), "shiftoverlay", "shiftoverlay-probe-*.json"), `"`, `'`},
		} {
			files, err := filepath.Glob(c.glob)
			require.NoError(t, err)
			for _, file := range files {
				text, err := os.ReadFile(file)
				require.NoError(t, err)
				require.Contains(t, string(text), c.from, file)
				require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), c.from, c.to, 1)), 0o600))
				a.faults.Add(1)
			}
			p.in(t, func(store storage.Store) {
				a.again(store, fmt.Sprintf("%s, %s in %s", w.name, c.to, filepath.Base(c.glob)), id, mappingNumber(1)[0].HostID, "new-7")
				a.quiet(p, store)
			})
		}
		file := filepath.Join(p.home(), layer, "shiftoverlay.json")
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		later := strings.Replace(string(text), `"version":1`, `"version":2`, 1)
		require.NoError(t, os.WriteFile(file, []byte(later), 0o600))
		a.faults.Add(1)
		p.in(t, func(store storage.Store) {
			if _, err := store.Mount(id, ""); err == nil || !strings.Contains(err.Error(), "version 2 is not known") {
				a.loss("%s: a record of a later version: %v", w.name, err)
			}
			if got, err := os.ReadFile(file); err != nil || string(got) != later {
				a.loss("%s: a record of a later version was changed to %q, %v", w.name, got, err)
			}
			require.NoError(t, os.WriteFile(file, text, 0o600))
			a.again(store, w.name+", the record as it was", id, mappingNumber(1)[0].HostID, "new-7")
		})
	}
}

// lifeStores uses images of a store that can only be read, which another boot and
// another driver's process wrote.
func (a *area) lifeStores(t *testing.T) {
	built := builds()
	for _, w := range idmapWays() {
		other := newPlace(t, w)
		other.in(t, func(store storage.Store) {
			_, err := makeImage(store, "one", 3, 25)
			require.NoError(t, err)
		})
		other.unmountAll()
		// As a medium that can only be read.
		require.NoError(t, unix.Mount(other.graph(), other.graph(), "", unix.MS_BIND, ""))
		require.NoError(t, unix.Mount("", other.graph(), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		p := newPlace(t, w)
		p.Options = []string{"shiftoverlay.imagestore=" + other.graph()}
		for try := range 3 {
			before := built.Load()
			p.in(t, func(store storage.Store) {
				if err := a.starts(store, "one", 1); err != nil {
					a.loss("%s: image of a store that can only be read: %v", w.name, err)
				}
				if try > 0 && built.Load() != before {
					a.loss("%s: an image of another store is built again", w.name)
				}
				a.quiet(p, store)
			})
			if try == 1 {
				p.unmountAll()
			}
		}
		p.unmountAll()
	}
}

// lifeVolatile starts volatile containers again and again, also after the machine
// went down with them mounted, which overlay by itself refuses.
func (a *area) lifeVolatile(t *testing.T) {
	for _, w := range idmapWays() {
		p := newPlace(t, w)
		a.limited(t, p, w.name, false)
		p.reboot(t)
		p.in(t, func(store storage.Store) { a.quiet(p, store) })
	}
}

// lifeQuota gives containers a quota, on a file system that has them: what the
// image has is not the container's, what it writes is.
func (a *area) lifeQuota(t *testing.T) {
	dir, err := os.MkdirTemp("", "quota-") //nolint:usetesting // short, as the store
	require.NoError(t, err)
	disk, at := filepath.Join(dir, "disk"), filepath.Join(dir, "fs")
	require.NoError(t, os.Mkdir(at, 0o755))
	defer func() {
		_ = unix.Unmount(at, unix.MNT_DETACH)
		require.NoError(t, os.RemoveAll(dir))
	}()
	shell(t, "truncate -s 600M "+disk+" && mkfs.xfs -q "+disk)
	if err := exec.CommandContext(t.Context(), "mount", "-o", "loop,prjquota", disk, at).Run(); err != nil {
		t.Logf("NOT TRIED: this kernel has no project quota on xfs (CONFIG_XFS_QUOTA): %v", err)
		return
	}
	t.Setenv("TMPDIR", at)
	for _, w := range idmapWays() {
		p := newPlace(t, w)
		a.limited(t, p, w.name, true)
		p.unmountAll()
	}
}

// limited starts a volatile container three times, with a quota if there is one,
// the last time after it was not stopped.
func (a *area) limited(t *testing.T, p place, what string, quota bool) {
	var options []string
	if quota {
		options = []string{"size=3m"}
	}
	var id string
	p.in(t, func(store storage.Store) {
		_, err := makeImage(store, "one", 2, 200)
		require.NoError(t, err)
		c, err := container(store, "one", mappingNumber(1), true, options...)
		require.NoError(t, err)
		id = c.ID
	})
	for i := range 3 {
		p.in(t, func(store storage.Store) {
			a.operations.Add(1)
			root, err := store.Mount(id, "")
			if err != nil {
				a.loss("%s: start %d of a volatile container: %v", what, i, err)
				return
			}
			if err := wrongOwner(root, mappingNumber(1)[0].HostID, 1); err != nil {
				a.loss("%s: %v", what, err)
			}
			if err := os.WriteFile(filepath.Join(root, "fits"), make([]byte, 1<<20), 0o600); err != nil {
				a.loss("%s: 1 MiB under a quota of 3: %v", what, err)
			}
			if quota {
				err = os.WriteFile(filepath.Join(root, "much"), make([]byte, 8<<20), 0o600)
				if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
					a.loss("%s: 8 MiB under a quota of 3: %v", what, err)
				}
				require.NoError(t, os.Remove(filepath.Join(root, "much")))
			}
			if i == 0 {
				_, err = store.Unmount(id, false)
				require.NoError(t, err)
			}
		})
		if i > 0 {
			p.reboot(t)
			a.faults.Add(1)
		}
	}
	p.in(t, func(store storage.Store) { require.NoError(t, removeContainer(store, id)) })
}

// lifePodman does with the real podman what only it can do: its own reset, and
// a store whose list of containers ends with the machine.
func (a *area) lifePodman(t *testing.T) {
	podman, err := exec.LookPath("podman")
	if err != nil {
		testutil.Skip(t, "no podman: make podman runc images")
		return
	}
	busybox := filepath.Join(filepath.Dir(podman), "images", "busybox.tar")
	for _, w := range []way{ways[0], ways[2], {name: "auto", engine: "auto"}} {
		p := newPlace(t, w)
		run := func(args ...string) (string, error) {
			cmd := exec.CommandContext(t.Context(), podman, append([]string{
				"--root", p.graph(), "--runroot", p.run(), "--storage-driver", "shiftoverlay",
			}, args...)...)
			cmd.Env = append(os.Environ(), "SHIFTOVERLAY_CONF="+p.conf(), "CONTAINERS_STORAGE_CONF="+filepath.Join(p.Dir, "storage.conf"))
			out, err := cmd.CombinedOutput()
			a.operations.Add(1)
			return strings.TrimSpace(string(out)), err
		}
		require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "storage.conf"),
			fmt.Appendf(nil, "[storage]\ndriver = \"shiftoverlay\"\ngraphroot = %q\nrunroot = %q\n", p.graph(), p.run()), 0o600))
		out, err := run("import", busybox, "box")
		require.NoError(t, err, out)
		for _, store := range []string{"--transient-store=true", "--transient-store=false"} {
			if out, err := run(store, "run", "--rm", "--userns=auto", "box", "stat", "-c", "%u", "/bin/busybox"); err != nil || !strings.HasSuffix(out, "0") {
				a.loss("%s %s: %v: %s", w.name, store, err, out)
			}
			if out, err := run(store, "create", "--userns=auto", "box", "true"); err != nil {
				a.loss("%s %s: create: %v: %s", w.name, store, err, out)
			}
		}
		out, err = run("system", "reset", "--force")
		if err != nil {
			a.loss("%s: reset: %v: %s", w.name, err, out)
		}
		left, err := filepath.Glob(filepath.Join(p.graph(), "*"))
		require.NoError(t, err)
		for _, l := range left {
			// Of overlay and the library: empty folders, files without content.
			for _, layer := range []string{l, filepath.Join(l, "l")} {
				list, _ := os.ReadDir(layer)
				for _, e := range list {
					if len(e.Name()) >= 26 || strings.HasSuffix(l, "-shifted") {
						a.loss("%s: reset has left %s in %s", w.name, e.Name(), layer)
					}
				}
			}
		}
	}
}
