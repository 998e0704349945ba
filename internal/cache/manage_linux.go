package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Doomed is an entry that Trim would remove, and why.
type Doomed struct {
	Info
	// Why says why, in words.
	Why string
}

// Path returns the folder that the builder of an entry filled, whether there
// is such an entry or not.
func (c *Cache) Path(ref Ref) string { return filepath.Join(c.path(ref), dataName) }

// Find describes one entry. The error is a *MissError if there is none.
func (c *Cache) Find(ctx context.Context, ref Ref) (Info, error) {
	if err := checkLayer(ref.Layer); err != nil {
		return Info{}, fmt.Errorf("find cache entry %s: %w", ref, err)
	}
	info, err := c.info(ctx, ref)
	if err != nil {
		return info, fmt.Errorf("find cache entry %s: %w", ref, err)
	}
	return info, nil
}

// Foresee says what Trim would remove with the same options, in its order, and
// removes nothing. It does not lock entries: somebody may come to need one
// before Trim is called.
func (c *Cache) Foresee(ctx context.Context, o TrimOptions) ([]Doomed, error) {
	infos, err := c.List(ctx)
	if err != nil && len(infos) == 0 {
		return nil, err
	}
	slices.SortStableFunc(infos, func(a, b Info) int { return a.LastUsed.Compare(b.LastUsed) })
	var total int64
	for _, info := range infos {
		total += info.Bytes
	}
	var doomed []Doomed
	var left []Info
	for _, info := range infos {
		if !o.Force && slices.ContainsFunc(info.Users, o.alive) {
			continue
		}
		why := o.reason(info, c.now())
		if why == "" {
			left = append(left, info)
			continue
		}
		total -= info.Bytes
		doomed = append(doomed, Doomed{info, why})
	}
	for _, disposable := range []bool{true, false} {
		for _, info := range left {
			if info.Disposable == disposable && o.MaxSize > 0 && total > o.MaxSize {
				total -= info.Bytes
				doomed = append(doomed, Doomed{info, tooLarge})
			}
		}
	}
	return doomed, err
}

// Remove removes an entry, whatever its age, if allow returns nil for the
// names that are registered with it. allow is called while the entry is locked:
// nobody can register meanwhile. No such entry is no error. Removing the files
// is left to the function that Remove returns, never nil, which needs no lock.
func (c *Cache) Remove(ctx context.Context, ref Ref, allow func(users []string) error) (cleanup func() error, err error) {
	nothing := func() error { return nil }
	if err := checkLayer(ref.Layer); err != nil {
		return nothing, fmt.Errorf("remove cache entry %s: %w", ref, err)
	}
	tmp, err := c.takeAway(ctx, ref, func(fd int) (bool, error) {
		users, err := readNamesAt(fd, usersName)
		if err == nil || broken(err) {
			err = allow(users)
		}
		return err == nil, err
	})
	if err != nil {
		return nothing, fmt.Errorf("remove cache entry %s: %w", ref, err)
	}
	if tmp == nil {
		return nothing, nil
	}
	return tmp.remove, nil
}

// Distrust makes an entry one that Acquire builds anew: the caller has found that
// its data is not what was built. It does nothing if the entry is gone already or
// another has taken its place. Users stay registered.
func (c *Cache) Distrust(ctx context.Context, e *Entry) error {
	fd, err := c.openEntry(ctx, e.ref, unix.LOCK_EX)
	if _, ok := errors.AsType[*MissError](err); ok {
		return nil
	}
	if err != nil {
		return fmt.Errorf("distrust cache entry %s: %w", e.ref, err)
	}
	defer unlock(fd)
	now, err := c.inspect(fd, e.ref)
	// The inode alone may be used again.
	if err == nil && now.inode == e.inode && now.meta.Built.Equal(e.meta.Built) {
		c.logf("cache: %s is not what was built", e.ref)
		err = unix.Unlinkat(fd, metaName, 0)
	} else if _, ok := errors.AsType[*MissError](err); ok {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("distrust cache entry %s: %w", e.ref, err)
	}
	return nil
}

// Leftovers lists what dead processes left: files below tmp/ whose lock nobody
// holds, but for builds that somebody may go on with, and locks of builds that
// nobody holds. Sweep deletes them.
func (c *Cache) Leftovers() ([]string, error) {
	var out []string
	tmp := filepath.Join(c.dir, tmpName)
	names, err := readNames(tmp)
	if err != nil {
		return nil, fmt.Errorf("look for leftovers: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		path := filepath.Join(tmp, strings.TrimSuffix(name, lockSuffix))
		if c.begunWithin(path, begunKept) {
			continue
		}
		free, err := c.free(path + lockSuffix)
		if err != nil {
			return nil, fmt.Errorf("look for leftovers: %w", err)
		}
		if free && !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	locks := filepath.Join(c.dir, locksName)
	if names, err = readNames(locks); err != nil {
		return nil, fmt.Errorf("look for leftovers: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasSuffix(name, lockSuffix) {
			continue // the places for builds stay
		}
		free, err := c.free(filepath.Join(locks, name))
		if err != nil {
			return nil, fmt.Errorf("look for leftovers: %w", err)
		}
		if free {
			out = append(out, filepath.Join(locks, name))
		}
	}
	return out, nil
}

// free says whether nobody holds a lock. One that is gone is free if what it
// protects is there still.
func (c *Cache) free(lock string) (bool, error) {
	fd, err := tryLock(unix.AT_FDCWD, lock, unix.O_RDWR, unix.LOCK_EX)
	switch {
	case err == nil:
		unlock(fd)
		return true, nil
	case errors.Is(err, errBusy):
		return false, nil
	case absent(err):
		_, err := os.Lstat(strings.TrimSuffix(lock, lockSuffix))
		return err == nil, nil
	}
	return false, err
}

// Sweep deletes what Leftovers lists.
func (c *Cache) Sweep(ctx context.Context) error {
	return errors.Join(c.sweep(ctx, begunKept), c.sweepLocks())
}
