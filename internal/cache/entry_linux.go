package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// The names in an entry's folder.
const (
	dataName    = "data"
	metaName    = "meta.json"
	usersName   = "users"
	usedName    = "used"
	sizeName    = "size"
	durableName = "durable"
)

// usedInterval is how exact the time of the last use is. Writing it at every
// hit would dirty an inode each time for nothing that trimming needs.
const usedInterval = time.Minute

// metaVersion is the version of the layout below an entry's folder.
const metaVersion = 1

// metaLimit bounds meta.json, in bytes.
const metaLimit = 1 << 20

// meta is meta.json.
type meta struct {
	Version int             `json:"version"`
	BootID  string          `json:"boot_id"`
	Built   time.Time       `json:"built"`
	Stats   *Stats          `json:"stats,omitempty"`
	Meta    json.RawMessage `json:"meta,omitempty"`
	// Of an entry that an older program built, these are zero; older programs
	// take no notice of them.
	Disposable bool   `json:"disposable,omitempty"`
	Kin        string `json:"kin,omitempty"`
	// Inode is the number of the data folder, by which a copy can be told from
	// what was built.
	Inode uint64 `json:"inode,omitempty"`
}

// Entry is an entry as Acquire found or made it. It does not change any more
// and is safe for concurrent use.
type Entry struct {
	ref      Ref
	path     string
	meta     meta
	builtNow bool
	durable  bool
	age      time.Duration
	inode    uint64 // of data
}

// Ref returns the name of the entry.
func (e *Entry) Ref() Ref { return e.ref }

// Key returns the key of the entry.
func (e *Entry) Key() Key { return e.ref.Key }

// Path returns the folder that Build filled. It is there until the user the
// entry was acquired for is released or the layer is removed.
func (e *Entry) Path() string { return filepath.Join(e.path, dataName) }

// Meta returns the Builder's record of the entry.
func (e *Entry) Meta() json.RawMessage { return e.meta.Meta }

// BuiltNow reports whether this very call of Acquire built the entry, from
// nothing or out of another.
func (e *Entry) BuiltNow() bool { return e.builtNow }

// Durable reports whether the entry was known to have reached the disk when
// it was acquired, see Cache.MarkDurable.
func (e *Entry) Durable() bool { return e.durable }

// Age returns the time between the build and Acquire; by the caller's clock,
// so it can be negative if that was set back.
func (e *Entry) Age() time.Duration { return e.age }

// openEntry opens and locks the folder of an entry. The error is a MissError
// if there is none.
func (c *Cache) openEntry(ctx context.Context, ref Ref, how int) (fd int, err error) {
	return openEntryAt(ctx, unix.AT_FDCWD, c.path(ref), ref, how)
}

// openEntryAt is openEntry for a path relative to the folder dirfd.
func openEntryAt(ctx context.Context, dirfd int, path string, ref Ref, how int) (fd int, err error) {
	fd = -1
	err = poll(ctx, func() error {
		fd, err = tryLock(dirfd, path, unix.O_RDONLY|unix.O_DIRECTORY, how)
		return err
	})
	if absent(err) {
		return -1, &MissError{Ref: ref, Reason: Absent}
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("wait for lock of %s: %w", ref, err)
	}
	return fd, err
}

// lookup is the hit: it finds the entry, decides whether it can be trusted,
// and registers the user before anybody can trim it.
func (c *Cache) lookup(ctx context.Context, ref Ref, user string) (*Entry, error) {
	fd, err := c.openEntry(ctx, ref, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock(fd)
	e, err := c.inspect(fd, ref)
	if err != nil {
		return nil, err
	}
	file, err := linux.Openat(fd, usersName+"/"+user, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if broken(err) {
		return nil, &MissError{Ref: ref, Reason: Damaged, Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("register user in %q: %w", e.path, err)
	}
	_ = unix.Close(file)
	failpoint.Hit("cache-registered")
	err = c.touch(fd, e.path)
	if absent(err) {
		// The layer was staged for removal, and the folder is deleted already.
		return nil, &MissError{Ref: ref, Reason: Absent}
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// inspect reads an entry and decides whether it can be trusted. The error is
// a MissError if not, and otherwise means that this could not be found out.
func (c *Cache) inspect(fd int, ref Ref) (*Entry, error) {
	e := &Entry{ref: ref, path: c.path(ref)}
	text, err := readAt(fd, metaName)
	if broken(err) {
		return nil, &MissError{Ref: ref, Reason: Damaged, Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", filepath.Join(e.path, metaName), err)
	}
	if e.meta, err = parseMeta(text); err != nil {
		if miss, ok := errors.AsType[*MissError](err); ok {
			miss.Ref = ref
		}
		return nil, err
	}
	if err := e.inspectParts(fd); err != nil {
		return nil, err
	}
	if !e.durable && e.meta.BootID != c.bootID {
		return nil, &MissError{Ref: ref, Reason: OtherBoot}
	}
	e.age = c.now().Sub(e.meta.Built)
	return e, nil
}

// inspectParts looks at what is in an entry's folder besides meta.json.
func (e *Entry) inspectParts(fd int) error {
	var st unix.Stat_t
	for _, name := range []string{dataName, usersName, durableName} {
		err := linux.Lstatat(fd, name, &st)
		kind := uint32(unix.S_IFDIR)
		if name == durableName {
			if absent(err) {
				continue
			}
			kind = unix.S_IFREG
		}
		switch {
		case broken(err):
			return &MissError{Ref: e.ref, Reason: Damaged, Err: fmt.Errorf("%s: %w", name, err)}
		case err != nil:
			return fmt.Errorf("look at %q: %w", filepath.Join(e.path, name), err)
		case st.Mode&unix.S_IFMT != kind:
			return &MissError{Ref: e.ref, Reason: Damaged, Err: fmt.Errorf("%s is another kind of file", name)}
		}
		switch name {
		case dataName:
			if e.meta.Inode != 0 && e.meta.Inode != st.Ino {
				return &MissError{Ref: e.ref, Reason: Copied}
			}
			e.inode = st.Ino
		case durableName:
			e.durable = true
		}
	}
	return nil
}

// parseMeta reads the text of meta.json. The error is a MissError without a
// Ref.
func parseMeta(text []byte) (meta, error) {
	var v struct{ Version *int }
	if err := json.Unmarshal(text, &v); err != nil {
		return meta{}, &MissError{Reason: Damaged, Err: fmt.Errorf("parse %s: %w", metaName, err)}
	}
	if v.Version == nil {
		return meta{}, &MissError{Reason: Damaged, Err: fmt.Errorf("parse %s: no version", metaName)}
	}
	if *v.Version != metaVersion {
		return meta{}, &MissError{Reason: UnknownVersion, Err: fmt.Errorf("version is %d, not %d", *v.Version, metaVersion)}
	}
	var m meta
	if err := json.Unmarshal(text, &m); err != nil {
		return meta{}, &MissError{Reason: Damaged, Err: fmt.Errorf("parse %s: %w", metaName, err)}
	}
	if m.Stats != nil && (m.Stats.Bytes < 0 || m.Stats.Inodes < 0) {
		return meta{}, &MissError{Reason: Damaged, Err: fmt.Errorf("parse %s: %d bytes in %d inodes", metaName, m.Stats.Bytes, m.Stats.Inodes)}
	}
	return m, nil
}

// touch notes a use in the entry's folder fd, at most once per usedInterval.
func (c *Cache) touch(fd int, path string) error {
	now := c.now()
	var st unix.Stat_t
	err := linux.Lstatat(fd, usedName, &st)
	if err == nil {
		since := now.Sub(time.Unix(st.Mtim.Unix()))
		if since >= 0 && since < usedInterval {
			return nil
		}
	}
	if absent(err) {
		var file int
		if file, err = linux.Openat(fd, usedName, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0o600); err == nil {
			_ = unix.Close(file)
		}
	}
	if err == nil {
		ts := unix.NsecToTimespec(now.UnixNano())
		err = linux.Lutimesat(fd, usedName, ts, ts)
	}
	if err != nil {
		return fmt.Errorf("note use in %q: %w", path, err)
	}
	return nil
}

// release forgets a user of the entry in the folder path.
func (c *Cache) release(path, user string) error {
	name := filepath.Join(path, usersName, user)
	if _, err := os.Lstat(name); err != nil {
		return err
	}
	// The time first: once the last user is gone, the entry may be recycled if
	// it has not been used for long.
	now := unix.NsecToTimespec(c.now().UnixNano())
	if err := linux.Lutimesat(unix.AT_FDCWD, filepath.Join(path, usedName), now, now); err != nil && !absent(err) {
		c.logf("cache: note end of use: %v", err)
	}
	failpoint.Hit("cache-touched")
	err := os.Remove(name)
	failpoint.Hit("cache-released")
	return err
}

// readAt reads a small file in the folder fd.
func readAt(fd int, name string) ([]byte, error) {
	file, err := linux.Openat(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(file) }()
	buf := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(file, buf[len(buf):cap(buf)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", name, err)
		case n == 0:
			return buf, nil
		}
		if buf = buf[:len(buf)+n]; len(buf) > metaLimit {
			return nil, fmt.Errorf("read %s: more than %d bytes: %w", name, metaLimit, unix.EFBIG)
		}
		buf = slices.Grow(buf, 1)
	}
}
