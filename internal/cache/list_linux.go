package cache

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// Info describes an entry.
type Info struct {
	Ref
	// Meta is the Builder's record; empty if the entry cannot be read.
	Meta json.RawMessage
	// Stats is the size of the whole entry.
	Stats
	// Built is when the build ended; zero if that is not known.
	Built time.Time
	// LastUsed is when the entry was last acquired or released, exact to the
	// minute.
	LastUsed time.Time
	// Users are the names that are registered, in alphabetical order.
	Users []string
	// Durable reports the mark of MarkDurable.
	Durable bool
	// Disposable is the Builder's word that the entry is made again in no
	// time.
	Disposable bool
	// Unusable says why Acquire would build the entry anew; empty if it would
	// not.
	Unusable Reason
}

// List returns all entries, ordered by layer and key. Entries that come or go
// meanwhile may be in it or not. The size of an entry is computed when it is
// first asked for, which takes as long as du(1), and is remembered. With an
// error, the entries that could be read are returned all the same.
func (c *Cache) List(ctx context.Context) ([]Info, error) {
	refs, err := c.refs()
	if err != nil {
		return nil, fmt.Errorf("list cache %q: %w", c.dir, err)
	}
	infos := make([]Info, 0, len(refs))
	var errs []error
	for _, ref := range refs {
		info, err := c.info(ctx, ref)
		if _, ok := errors.AsType[*MissError](err); ok {
			continue
		}
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %s: %w", ref, err))
			continue
		}
		infos = append(infos, info)
	}
	if err := errors.Join(errs...); err != nil {
		return infos, fmt.Errorf("list cache %q: %w", c.dir, err)
	}
	return infos, nil
}

// Len is the number of entries, usable or not.
func (c *Cache) Len() (int, error) {
	refs, err := c.refs()
	if err != nil {
		return 0, fmt.Errorf("count cache entries: %w", err)
	}
	return len(refs), nil
}

// refs lists the names of all entries. What does not look like an entry is
// not ours to touch.
func (c *Cache) refs() ([]Ref, error) {
	layers, err := readNames(c.dir)
	if err != nil {
		return nil, err
	}
	var refs []Ref
	for _, layer := range layers {
		if checkLayer(layer) != nil {
			continue
		}
		keys, err := readNames(filepath.Join(c.dir, layer))
		if err != nil {
			return nil, err
		}
		for _, name := range keys {
			if key, ok := parseKey(name); ok {
				refs = append(refs, Ref{Layer: layer, Key: key})
			}
		}
	}
	slices.SortFunc(refs, func(a, b Ref) int { return strings.Compare(a.String(), b.String()) })
	return refs, nil
}

// info reads one entry. The error is a MissError if it is gone.
func (c *Cache) info(ctx context.Context, ref Ref) (Info, error) {
	fd, err := linux.OpenDir(unix.AT_FDCWD, c.path(ref))
	if absent(err) {
		return Info{}, &MissError{Ref: ref, Reason: Absent}
	}
	if err != nil {
		return Info{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	return c.infoAt(ctx, fd, ref)
}

// infoAt is info for the open folder of an entry.
func (c *Cache) infoAt(ctx context.Context, fd int, ref Ref) (Info, error) {
	info := Info{Ref: ref}
	e, err := c.inspect(fd, ref)
	if miss, ok := errors.AsType[*MissError](err); ok {
		info.Unusable = miss.Reason
		e = &Entry{}
		if text, err := readAt(fd, metaName); err == nil {
			e.meta, _ = parseMeta(text) // what is known of an entry of another boot
		}
	} else if err != nil {
		return info, err
	}
	info.Meta, info.Built, info.Durable, info.Disposable = e.meta.Meta, e.meta.Built, e.durable, e.meta.Disposable
	if info.Users, err = readNamesAt(fd, usersName); err != nil && !broken(err) {
		return info, err
	}
	slices.Sort(info.Users)
	info.LastUsed = lastUsed(fd, e)
	if e.meta.Stats != nil {
		info.Stats = *e.meta.Stats
		return info, nil
	}
	info.Stats, err = c.size(ctx, fd, c.path(ref))
	return info, err
}

// lastUsed returns when the entry e, whose folder is open as fd, was last used:
// when it was built if nothing else is known.
func lastUsed(fd int, e *Entry) time.Time {
	var st unix.Stat_t
	if linux.Lstatat(fd, usedName, &st) == nil {
		return time.Unix(st.Mtim.Unix())
	}
	return e.meta.Built
}

// size returns the size of an entry, and remembers it.
func (c *Cache) size(ctx context.Context, fd int, path string) (Stats, error) {
	var s Stats
	if text, err := readAt(fd, sizeName); err == nil && json.Unmarshal(text, &s) == nil && s.Inodes > 0 && s.Bytes >= 0 {
		return s, nil
	}
	s, whole, err := measure(ctx, path)
	if err != nil || !whole {
		return s, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return s, fmt.Errorf("remember size of %q: %w", path, err)
	}
	// By rename, so that nobody reads half of it; by descriptor, so that it
	// ends up in this entry and not in one that took its place.
	if err := replaceAt(fd, sizeName, append(text, '\n')); err != nil {
		c.logf("cache: remember size of %s: %v", path, err)
	}
	return s, nil
}

// measure adds up a tree. It is whole if nothing in it was missing or
// unreadable.
func measure(ctx context.Context, root string) (s Stats, whole bool, err error) {
	type inode struct{ dev, ino uint64 }
	seen := make(map[inode]bool)
	whole = true
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			whole = false
			if entry != nil && entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if linux.Lstatat(unix.AT_FDCWD, path, &st) != nil {
			whole = false
			return nil //nolint:nilerr // the caller learns it from whole
		}
		if st.Nlink > 1 && !entry.IsDir() {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		s.Bytes += st.Blocks * 512
		s.Inodes++
		return nil
	})
	if err != nil {
		return s, false, fmt.Errorf("measure %q: %w", root, err)
	}
	return s, whole, nil
}

// replaceAt writes a small file in the folder fd and moves it to its name.
func replaceAt(fd int, name string, text []byte) error {
	tmp := name + "." + rand.Text()
	file, err := linux.Openat(fd, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(file), tmp)
	_, err = f.Write(text)
	failpoint.Hit("cache-size-written")
	if err = errors.Join(err, f.Close()); err == nil {
		err = unix.Renameat(fd, tmp, fd, name)
	}
	if err != nil {
		_ = unix.Unlinkat(fd, tmp, 0)
	}
	return err
}
