package cache

import (
	"context"
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

// recycleAfter is the default of Options.RecycleAfter.
const recycleAfter = 10 * time.Minute

// recycle makes the folder data, which does not exist yet, out of an entry
// that nobody needs. It returns false, and there is no such folder, if that
// cannot be done. An error means that there is no point in building either.
func (c *Cache) recycle(ctx context.Context, data string, ref Ref, b Builder) (done bool, err error) {
	if b.Kin == "" || b.Recycle == nil {
		return false, nil
	}
	old, ok := c.takeKin(ref, b.Kin, data)
	if !ok {
		return false, nil
	}
	err = b.Recycle(ctx, data)
	if err == nil {
		c.logf("cache: %s recycled as %s", old, ref)
		return true, nil
	}
	if ctx.Err() != nil {
		return false, withContext(ctx, err)
	}
	c.logf("cache: %s could not be recycled as %s: %v", old, ref, err)
	if err := removeTree(data); err != nil {
		return false, fmt.Errorf("remove what could not be recycled: %w", err)
	}
	return false, nil
}

// kinEntry is an entry that may be recycled.
type kinEntry struct {
	ref  Ref
	used time.Time
}

// takeKin takes the data of an entry away that may be recycled for ref, the
// least recently used one, and moves it to the path data. It returns the name
// that the entry had, or false if there is none. Whatever fails is logged:
// it must not keep anybody from building.
func (c *Cache) takeKin(ref Ref, kin, data string) (Ref, bool) {
	names, err := readNames(filepath.Join(c.dir, ref.Layer))
	if err != nil {
		c.logf("cache: look for an entry to recycle: %v", err)
	}
	slices.Sort(names)
	var list []kinEntry
	for _, name := range names {
		key, ok := parseKey(name)
		if !ok || key == ref.Key {
			continue
		}
		k := kinEntry{ref: Ref{Layer: ref.Layer, Key: key}}
		fd, err := linux.OpenDir(unix.AT_FDCWD, c.path(k.ref))
		if err != nil {
			continue // gone
		}
		if k.used, ok = c.idle(fd, k.ref, kin); ok {
			list = append(list, k)
		}
		_ = unix.Close(fd)
	}
	slices.SortStableFunc(list, func(a, b kinEntry) int { return a.used.Compare(b.used) })
	for _, k := range list {
		err := c.take(k.ref, kin, data)
		if err == nil {
			return k.ref, true
		}
		if !errors.Is(err, errBusy) && !absent(err) {
			c.logf("cache: recycle %s: %v", k.ref, err)
		}
	}
	return Ref{}, false
}

// idle says whether an entry, whose folder is open as fd, may be recycled for
// one of the given kin, and when it was last used. The answer lasts only as
// long as the folder is locked.
func (c *Cache) idle(fd int, ref Ref, kin string) (used time.Time, ok bool) {
	e, err := c.inspect(fd, ref)
	if err != nil || e.meta.Kin != kin {
		return used, false
	}
	var st unix.Stat_t
	if linux.Lstatat(fd, usersName, &st) != nil {
		return used, false // damaged
	}
	if users, err := readNamesAt(fd, usersName); err != nil || len(users) > 0 {
		return used, false
	}
	used = lastUsed(fd, e)
	return used, c.now().Sub(used) >= c.recycleAfter
}

// take makes an entry vanish and moves its data to the path data. The error is
// errBusy if somebody else has a use for the entry, ENOENT if it is gone.
func (c *Cache) take(ref Ref, kin, data string) error {
	old, err := c.detach(ref, kin)
	if err != nil {
		return err
	}
	defer func() {
		if err := old.remove(); err != nil {
			c.logf("cache: %v", err) // the next sweep tries again
		}
		// The last entry takes the folder of the layer with it.
		_ = unix.Rmdir(filepath.Join(c.dir, ref.Layer))
	}()
	if err := dropMark(old.path); err != nil {
		return err
	}
	failpoint.Hit("cache-recycle-unmarked")
	err = os.Rename(filepath.Join(old.path, dataName), data)
	failpoint.Hit("cache-recycle-moved")
	return err
}

// detach moves an entry that may be recycled to a temporary name. The folder
// of the entry goes with its data, to be deleted: somebody may have it open
// still, to write into it what is true of the old data only.
func (c *Cache) detach(ref Ref, kin string) (*temp, error) {
	// With the lock of the key nobody else publishes at this path: it names
	// the folder that is locked below, or nothing once the layer is staged for
	// removal. One that is staged must not be taken, it is being deleted.
	name := c.keyLock(ref.Key)
	lock, err := tryLock(unix.AT_FDCWD, name, unix.O_RDWR|unix.O_CREAT, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = unix.Unlink(name)
		unlock(lock)
	}()
	folder := filepath.Join(c.dir, ref.Layer)
	layer, err := linux.OpenDir(unix.AT_FDCWD, folder)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(layer) }()
	fd, err := tryLock(layer, ref.Key.String(), unix.O_RDONLY|unix.O_DIRECTORY, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock(fd)
	if _, ok := c.idle(fd, ref, kin); !ok {
		return nil, errBusy
	}
	// Not trash, which can do without a lock: what is there must stay.
	tmp, err := c.newTemp()
	if err != nil {
		return nil, err
	}
	if err := tmp.take(layer, ref.Key.String()); err != nil {
		return nil, err
	}
	// If the layer was staged before that, files of the entry may be gone.
	if err := stillThere(layer, folder); err != nil {
		return nil, errors.Join(err, tmp.remove())
	}
	return tmp, nil
}

// stillThere is an error that is ENOENT if the open folder fd is not, or not
// any more, at the path.
func stillThere(fd int, path string) error {
	var open, now unix.Stat_t
	if err := unix.Fstat(fd, &open); err != nil {
		return &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	err := unix.Lstat(path, &now)
	if err == nil && (now.Dev != open.Dev || now.Ino != open.Ino) {
		err = unix.ENOENT
	}
	if err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return nil
}

// dropMark takes the durable mark away from the entry in the folder path, and
// waits until it is gone on the disk, too. Otherwise, on a file system that
// does not write changes in their order, the entry could be at its old place
// after a crash, trusted, with data that was being changed.
func dropMark(path string) error {
	fd, err := linux.OpenDir(unix.AT_FDCWD, path)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.Unlinkat(fd, durableName, 0)
	if absent(err) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "unlinkat", Path: filepath.Join(path, durableName), Err: err}
	}
	failpoint.Hit("cache-unmarked")
	return fsync(fd, path)
}
