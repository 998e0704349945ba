//go:build torture

package torture

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func init() {
	children["trespass"] = trespassChild
}

// trespassChild is a process in the user namespace of one container that tries
// to write what is another's. It says what it could do. Descriptors 3 and 4 are
// the roots of both, as if the other's had leaked.
func trespassChild(args []string) error {
	own, other, cacheDir, record := "/proc/self/fd/3", "/proc/self/fd/4", args[0], args[1]
	try := func(what string, err error) {
		if err == nil {
			fmt.Println(what)
		}
	}
	touch := func(name string) error {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o666)
		if err != nil {
			return err
		}
		return f.Close()
	}
	try("write into the other's root", touch(filepath.Join(other, "trespassed")))
	try("write the other's file", touch(filepath.Join(other, "new-7")))
	try("change the other's owner", os.Chown(filepath.Join(other, "new-7"), 0, 0))
	try("change the other's mode", os.Chmod(filepath.Join(other, "new-7"), 0o666))
	try("remove the other's file", os.Remove(filepath.Join(other, "new-7")))
	try("list the cache", func() error { _, err := os.ReadDir(cacheDir); return err }())
	try("write the cache", touch(filepath.Join(cacheDir, "trespassed")))
	try("write its record", touch(record))
	try("remove its record", os.Remove(record))
	mine := filepath.Join(own, "mine")
	if err := touch(mine); err != nil {
		return fmt.Errorf("its own file: %w", err)
	}
	for _, id := range []int{5000, 10_000, 1_010_000, 65534, 4294967294} {
		try(fmt.Sprintf("give a file to %d", id), os.Chown(mine, id, -1))
		try(fmt.Sprintf("give a file to group %d", id), os.Chown(mine, -1, id))
	}
	try("mark a file as overlay's", unix.Setxattr(mine, "trusted.overlay.redirect", []byte("/etc"), 0))
	try("make a device", unix.Mknod(filepath.Join(own, "device"), unix.S_IFBLK|0o666, 0x700))
	return nil
}

// TestHostileTrespass has a container's root try to reach what is another's.
func TestHostileTrespass(t *testing.T) {
	a := begin(t, "hostile-trespass")
	for _, w := range append(ways[:4:4], way{name: "idmap", engine: "auto"}) {
		t.Run(w.name, func(t *testing.T) {
			p := newPlace(t, w)
			store := p.opened(t)
			_, err := makeImage(store, "one", 1, 20)
			require.NoError(t, err)
			var roots []*os.File
			var layers []string
			for n := range 2 {
				c, root, done, err := started(store, "one", n)
				require.NoError(t, err)
				defer func() { require.NoError(t, done()) }()
				dir, err := os.Open(root)
				require.NoError(t, err)
				defer dir.Close()
				roots, layers = append(roots, dir), append(layers, c.LayerID)
				base := mappingNumber(n)[0].HostID
				name := filepath.Join(root, "new-7")
				require.NoError(t, os.WriteFile(name, nil, 0o600))
				require.NoError(t, os.Lchown(name, base, base))
			}
			m := mappingNumber(0)[0]
			ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: m.HostID, Size: m.Size}}
			cmd := child(t.Context(), "trespass", p.cache(), filepath.Join(p.home(), layers[0], "shiftoverlay.json"))
			cmd.ExtraFiles = roots
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{},
				GidMappingsEnableSetgroups: true,
			}
			a.operations.Add(25)
			out, err := cmd.Output()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				t.Fatalf("%v: %s", err, exit.Stderr)
			}
			require.NoError(t, err)
			for line := range strings.Lines(string(out)) {
				a.loss("a container's root could %s", strings.TrimSpace(line))
			}
		})
	}
}

// TestHostileRecord damages the record of a container's mapping. A start is then
// right, or refused, and never shows or writes other owners.
func TestHostileRecord(t *testing.T) {
	a := begin(t, "hostile-record")
	records := map[string]string{
		"empty": "", "half": `{"version":1,`, "version": `{"version":99}`, "null": "null", "list": "[]",
		"identity": `{"version":1,"uids":[{"container_id":0,"host_id":0,"size":4294967295}],"gids":[{"container_id":0,"host_id":0,"size":4294967295}],"engine":"erofs"}`,
		"huge":     strings.Repeat("x", 64<<20),
	}
	w := ways[a.rand.IntN(4)]
	p := newPlace(t, w)
	store := p.opened(t)
	_, err := makeImage(store, "one", 1, 20)
	require.NoError(t, err)
	for what, text := range records {
		c, root, _, err := started(store, "one", 1)
		require.NoError(t, err)
		base := mappingNumber(1)[0].HostID
		name := filepath.Join(root, "new-7")
		require.NoError(t, os.WriteFile(name, nil, 0o600))
		require.NoError(t, os.Lchown(name, base+7, base+7))
		_, err = store.Unmount(c.ID, true)
		require.NoError(t, err)
		record := filepath.Join(p.home(), c.LayerID, "shiftoverlay.json")
		before, err := os.ReadFile(record)
		require.NoError(t, err)
		if what == "identity" {
			// As the program writes it, with other numbers.
			text = strings.ReplaceAll(string(before), "1010000", "0")
			require.NotEqual(t, string(before), text)
		}
		require.NoError(t, os.WriteFile(record, []byte(text), 0o600))
		a.faults.Add(1)
		a.operations.Add(2)
		if root, err := store.Mount(c.ID, ""); err == nil {
			if err := wrongOwner(root, base, 1); err != nil {
				a.loss("record %s: %v", what, err)
			}
			_, err = store.Unmount(c.ID, true)
			require.NoError(t, err)
		} else {
			t.Logf("record %s: %v", what, err)
		}
		if r, err := store.Diff("", c.LayerID, nil); err == nil {
			owners, err := ownersIn(r)
			require.NoError(t, r.Close())
			if got, ok := owners["new-7"]; err == nil && (!ok || got != 7) {
				a.loss("record %s: a commit writes owner %d", what, got)
			}
		}
		// Put back, all is as before, and it can be removed in either case.
		if what == "half" {
			require.NoError(t, os.WriteFile(record, before, 0o600))
			if _, err := store.Mount(c.ID, ""); err != nil {
				a.loss("record put back: %v", err)
			}
		}
		if err := removeContainer(store, c.ID); err != nil {
			a.loss("record %s: the container cannot be removed: %v", what, err)
		}
	}
}
