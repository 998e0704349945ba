package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Owner is the container that a layer belongs to.
type Owner struct {
	Name string
	// Mapping is zero if it has none.
	Mapping idshift.Mapping
}

// CheckOptions say what is looked at.
type CheckOptions struct {
	// Containers are those of the storage library, by the ID of their layer.
	Containers map[string]Owner
	// Content compares what the files hold, too, which reads all of them.
	Content bool
	// Progress, if set, is called before an entry is compared with its layers.
	Progress func(done, total int, e Entry)
}

// Finding is something that is not as it should be.
type Finding struct {
	// Kind is what it is about: "entry", "record", "leftover" or "place".
	Kind string
	// Subject is the entry (LAYER/KEY) or the path.
	Subject string
	Problem string
	// Differences are the first that an entry has from its layers.
	Differences []referee.Difference `json:",omitempty"`
	// Repair says what Fix does; "" if nothing can be done by itself, and then
	// Remedy says what the operator can do.
	Repair, Remedy string `json:",omitempty"`
	// Note says that this needs no action: all works as it is.
	Note bool `json:",omitempty"`

	fix func(ctx context.Context) error
}

// Fixable says whether Fix can do something.
func (f *Finding) Fixable() bool { return f.fix != nil }

// Fix repairs it. What a container needs that is mounted is left alone, with
// an error that names it.
func (f *Finding) Fix(ctx context.Context) error {
	if f.fix == nil {
		return nil
	}
	return f.fix(ctx)
}

// Check looks for everything that is not as it should be: entries against
// their layers, records against containers and entries, what crashes have left,
// and owner, mode and label of the cache's folder. It changes nothing. The
// lock of the store's layers is held for the short time in which records are
// read, since a container that is just being mounted looks unfinished.
func (m *Manager) Check(ctx context.Context, o CheckOptions) ([]Finding, error) {
	c := &checker{m: m, d: m.d, o: o}
	if err := c.place(); err != nil {
		return c.found, err
	}
	if err := c.leftovers(); err != nil {
		return c.found, err
	}
	if err := c.locked(func() error { return c.layers(ctx) }); err != nil {
		return c.found, err
	}
	err := c.entries(ctx)
	return c.found, err
}

// checker is one check.
type checker struct {
	m     *Manager
	d     *Driver
	o     CheckOptions
	found []Finding

	// plain is what the layers of the chain show that was looked at last.
	plainOf string
	plain   *referee.Tree
}

func (c *checker) add(f Finding) { c.found = append(c.found, f) }

func (c *checker) locked(do func() error) error { return c.d.layersLocked(do) }

// place looks at the cache's folder.
func (c *checker) place() error {
	dir := c.d.cache.Dir()
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode != unix.S_IFDIR|0o700 || int(st.Uid) != os.Geteuid() {
		c.add(Finding{
			Kind: "place", Subject: dir,
			Problem: fmt.Sprintf("owner %d and mode %#o; others could reach files with shifted owners and setuid bits", st.Uid, st.Mode&0o7777),
			Repair:  "give it to the store's user, with mode 0700",
			fix: func(context.Context) error {
				return errors.Join(os.Lchown(dir, os.Geteuid(), -1), os.Chmod(dir, 0o700))
			},
		})
	}
	want, got := label(c.d.home), label(dir)
	if want != got {
		c.add(Finding{
			Kind: "place", Subject: dir, Problem: fmt.Sprintf("SELinux label %q, the layers have %q", got, want),
			Remedy: "restorecon -RF " + dir,
		})
	}
	return nil
}

// label returns type and level of a path's SELinux label, "" if it has none.
func label(path string) string {
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

// probeAge is how old the folder of a probe is that no living process has.
const probeAge = time.Minute

// leftovers looks for what dead processes left outside of layers.
func (c *checker) leftovers() error {
	list, err := c.d.cache.Leftovers()
	if err != nil {
		return err
	}
	for _, path := range list {
		c.add(Finding{
			Kind: "leftover", Subject: path, Problem: "a build or a removal that did not end left it", Repair: "delete it",
			fix: c.d.cache.Sweep,
		})
	}
	probes, err := filepath.Glob(filepath.Join(filepath.Dir(c.d.home), ".shiftoverlay-probe-*"))
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, path := range probes {
		if st, err := os.Lstat(path); err == nil && time.Since(st.ModTime()) > probeAge {
			c.remove(path, "a probe of the file system that did not end left it")
		}
	}
	return nil
}

// remove reports a path that should not be there, and deletes it.
func (c *checker) remove(path, problem string) {
	c.add(Finding{
		Kind: "leftover", Subject: path, Problem: problem, Repair: "delete it",
		fix: func(context.Context) error { return c.locked(func() error { return os.RemoveAll(path) }) },
	})
}

// layers looks at what the driver keeps in layers, and at who is registered
// with entries. Nobody mounts a layer meanwhile.
func (c *checker) layers(ctx context.Context) error {
	list, err := os.ReadDir(c.d.home)
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	infos, err := c.d.cache.List(ctx)
	if err != nil {
		return err
	}
	entries := map[cache.Ref]cache.Info{}
	for _, info := range infos {
		entries[info.Ref] = info
	}
	records := map[string]*record{}
	for _, l := range list {
		dir := filepath.Join(c.d.home, l.Name())
		if !l.IsDir() || !isDir(filepath.Join(dir, "diff")) {
			continue
		}
		c.layerLeftovers(dir)
		rec, err := readRecord(dir)
		if err != nil {
			c.add(Finding{
				Kind: "record", Subject: filepath.Join(dir, recordName), Problem: err.Error(),
				Remedy: "whose the files of this layer are is not known without it: restore it from a backup, or remove the container",
			})
			continue
		}
		if rec != nil {
			records[l.Name()] = rec
			c.record(l.Name(), dir, rec, entries)
		}
	}
	c.attached()
	c.users(infos, records)
	return nil
}

// layerLeftovers looks for what is in a layer's folder only while it is
// mounted or changed.
func (c *checker) layerLeftovers(dir string) {
	name := filepath.Join(dir, shiftedLower)
	if st, err := os.Lstat(name); err == nil && st.Mode()&os.ModeSymlink != 0 {
		c.remove(name, "a mount that did not end left it")
	}
	for pattern, what := range map[string]string{"." + recordName + "-*": "a mount", "shifting-*": "a change of IDs"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is right
		for _, path := range paths {
			c.remove(path, what+" that did not end left it")
		}
	}
}

// attached looks for images that are mounted for the time of a call only.
func (c *checker) attached() {
	names, _ := os.ReadDir(filepath.Join(c.d.runHome, attachFolder))
	for _, n := range names {
		at := filepath.Join(c.d.runHome, attachFolder, n.Name())
		c.add(Finding{
			Kind: "leftover", Subject: at, Problem: "a mount that did not end left it", Repair: "unmount and delete it",
			fix: func(context.Context) error {
				return c.locked(func() error { return removeAttached(at) })
			},
		})
	}
}

// record compares a layer's record with its container and the cache.
func (c *checker) record(id, dir string, rec *record, entries map[cache.Ref]cache.Info) {
	file := filepath.Join(dir, recordName)
	owner, known := c.o.Containers[id]
	switch {
	case !known:
		c.add(Finding{Kind: "record", Subject: file, Problem: "the layer belongs to no container", Note: true})
	case !owner.Mapping.Equal(rec.Mapping):
		c.add(Finding{
			Kind: "record", Subject: file,
			Problem: fmt.Sprintf("the record has the mapping %s, container %s has %s", rec.Mapping, owner.Name, owner.Mapping),
			Remedy:  "the files of the container have the owners of the record: commit it while it is so, and start a new one from the image",
		})
	}
	ref, ok := rec.ref()
	if !ok {
		return
	}
	info, ok := entries[ref]
	switch {
	case !ok && c.d.inUse(id, filepath.Join(dir, "merged")):
		c.add(Finding{
			Kind: "record", Subject: file, Problem: fmt.Sprintf("the container is mounted and its shifted lower %s is gone: files of the image cannot be read", ref),
			Remedy: "stop the container and start it again",
		})
	case !ok:
		c.add(Finding{Kind: "record", Subject: file, Problem: fmt.Sprintf("its shifted lower %s is gone; the next start makes it", ref), Note: true})
	case !slices.Contains(info.Users, id):
		c.add(Finding{
			Kind: "record", Subject: file, Problem: fmt.Sprintf("the container is not registered with its shifted lower %s, which could be removed while it is in use", ref),
			Repair: "register it",
			fix: func(ctx context.Context) error {
				return c.locked(func() error {
					_, err := c.d.cache.Acquire(ctx, ref, id, cache.Builder{})
					return err
				})
			},
		})
	}
}

// users looks at who is registered with entries.
func (c *checker) users(infos []cache.Info, records map[string]*record) {
	for _, info := range infos {
		for _, user := range info.Users {
			problem := ""
			if !c.d.layerExists(user) {
				if warming(user) {
					continue
				}
				problem = fmt.Sprintf("%s is registered with it, and is gone", user)
			} else if rec := records[user]; rec == nil {
				continue // a layer of which the record cannot be read, or none of ours
			} else if ref, ok := rec.ref(); !ok || ref != info.Ref {
				problem = fmt.Sprintf("layer %s is registered with it, and uses another", user)
			}
			if problem == "" {
				continue
			}
			c.add(Finding{
				Kind: "entry", Subject: info.Ref.String(), Problem: problem, Repair: "forget the registration",
				fix: func(context.Context) error {
					return c.locked(func() error { return c.d.cache.Release(info.Ref, user) })
				},
			})
		}
	}
}
