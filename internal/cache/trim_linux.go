package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// TrimOptions says what Trim may remove.
type TrimOptions struct {
	// MaxSize bounds the allocated bytes of all entries together; beyond it,
	// entries go, the least recently used first, and those that are not
	// disposable only after all that are. 0: no bound.
	MaxSize int64
	// MaxAge is how long an entry may go unused. 0: for ever. A nanosecond:
	// everything that has no user goes.
	MaxAge time.Duration
	// UserAlive says whether a registered user may still need its entry. It is
	// called while the entry is locked and must tell how things are at that
	// moment; an answer from a list made earlier would not know a user who
	// has just come. Nil: all are alive.
	UserAlive func(user string) bool
	// LayerExists says whether a layer is still there, under the same rules.
	// Nil: all are.
	LayerExists func(layer string) bool
	// Force makes living users no reason to keep an entry. Whatever they have
	// mounted breaks.
	Force bool
}

// alive says whether a registered user may still need its entry.
func (o *TrimOptions) alive(user string) bool { return o.UserAlive == nil || o.UserAlive(user) }

// reason says why an entry without a living user goes, whatever the size of
// the cache; "" if it may stay.
func (o *TrimOptions) reason(info Info, now time.Time) string {
	switch {
	case o.LayerExists != nil && !o.LayerExists(info.Layer):
		return "its layer is gone"
	case info.Unusable != "":
		return string(info.Unusable)
	case o.MaxAge > 0 && now.Sub(info.LastUsed) >= o.MaxAge:
		return "unused since " + info.LastUsed.Format(time.RFC3339)
	default:
		return ""
	}
}

// tooLarge is the reason of those that go because of the size of the cache.
const tooLarge = "the cache is too large"

// lockPatience is how long Trim waits for somebody who registers with an
// entry, which takes microseconds unless he has been stopped.
const lockPatience = time.Second

// Trim removes the entries that nobody needs: those whose layer is gone, those
// that Acquire would build anew anyway, those unused for MaxAge, and of the
// rest those beyond MaxSize; none with a living user unless forced. It forgets dead users and deletes what dead processes left
// in tmp/. It returns what it removed, also with an error, which names what
// could not be removed while the rest was.
func (c *Cache) Trim(ctx context.Context, o TrimOptions) (removed []Info, err error) {
	infos, err := c.List(ctx)
	errs := []error{err} // one unreadable entry must not keep the others
	slices.SortStableFunc(infos, func(a, b Info) int { return a.LastUsed.Compare(b.LastUsed) })
	var total int64
	for _, info := range infos {
		total += info.Bytes
	}
	// pass offers entries for removal while wanted says so, and returns those
	// that stay and might go at another time.
	pass := func(infos []Info, tooMuch bool, wanted func() bool) (left []Info) {
		for _, info := range infos {
			if !wanted() || ctx.Err() != nil {
				break
			}
			gone, err := c.trimEntry(ctx, info, o, tooMuch)
			switch {
			case gone:
				total -= info.Bytes
				removed = append(removed, info)
			case err == nil:
				left = append(left, info)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("cache entry %s: %w", info.Ref, err))
			}
		}
		return left
	}
	left := pass(infos, false, func() bool { return true })
	slices.SortStableFunc(left, func(a, b Info) int {
		switch {
		case a.Disposable == b.Disposable:
			return 0
		case a.Disposable:
			return -1
		default:
			return 1
		}
	})
	pass(left, true, func() bool { return o.MaxSize > 0 && total > o.MaxSize })
	keep := begunKept
	if o.MaxAge > 0 {
		keep = min(keep, o.MaxAge)
	}
	errs = append(errs, ctx.Err(), c.sweep(ctx, keep), c.sweepLocks())
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("trim cache %q: %w", c.dir, err)
	}
	return removed, nil
}

// trimEntry decides about one entry and removes it, or returns false.
func (c *Cache) trimEntry(ctx context.Context, info Info, o TrimOptions, tooMuch bool) (gone bool, err error) {
	tmp, err := c.takeAway(ctx, info.Ref, func(fd int) (bool, error) { return c.trimLocked(ctx, fd, info, o, tooMuch) })
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		c.logf("cache: %s is being acquired, not trimmed", info.Ref)
		return false, nil
	}
	if tmp == nil {
		return false, err
	}
	return true, tmp.remove()
}

// takeAway moves an entry out of the way, for the caller to remove, if decide
// says so, which is called while the entry is open and locked as fd. The result
// is nil if it does not, or if there is no such entry.
func (c *Cache) takeAway(ctx context.Context, ref Ref, decide func(fd int) (drop bool, err error)) (*temp, error) {
	// By descriptor of the layer's folder: should StageLayerRemoval take it
	// away and somebody publish a new entry of this name, then this one here
	// is what goes.
	layer, err := linux.OpenDir(unix.AT_FDCWD, filepath.Join(c.dir, ref.Layer))
	if absent(err) {
		return nil, nil //nolint:nilnil // no entry is a normal answer
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(layer) }()
	wait, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	fd, err := openEntryAt(wait, layer, ref.Key.String(), ref, unix.LOCK_EX)
	if _, ok := errors.AsType[*MissError](err); ok {
		return nil, nil //nolint:nilnil // somebody else removed it
	}
	if err != nil {
		return nil, err
	}
	drop, err := decide(fd)
	var tmp *temp
	if err == nil && drop {
		tmp, err = c.trash(layer, ref.Key.String())
	}
	unlock(fd)
	if absent(err) {
		return nil, nil //nolint:nilnil // staged and deleted meanwhile
	}
	if tmp != nil {
		// The last entry takes the folder of the layer with it.
		_ = unix.Rmdir(filepath.Join(c.dir, ref.Layer))
		failpoint.Hit("cache-layer-folder-removed")
	}
	return tmp, err
}

// trimLocked forgets the dead users of an entry, which is open and locked as
// fd, and decides whether it goes.
func (c *Cache) trimLocked(ctx context.Context, fd int, old Info, o TrimOptions, tooMuch bool) (drop bool, err error) {
	info, err := c.infoAt(ctx, fd, old.Ref)
	if err != nil {
		return false, err
	}
	alive := 0
	for _, user := range info.Users {
		if o.alive(user) {
			alive++
			continue
		}
		if err := unix.Unlinkat(fd, usersName+"/"+user, 0); err != nil && !absent(err) {
			return false, fmt.Errorf("forget user: %w", &os.PathError{Op: "unlinkat", Path: user, Err: err})
		}
		failpoint.Hit("cache-user-forgotten")
	}
	if alive > 0 && !o.Force {
		return false, nil
	}
	reason := o.reason(info, c.now())
	if reason == "" && tooMuch && !info.LastUsed.After(old.LastUsed) {
		reason = tooLarge
	}
	if reason == "" {
		return false, nil
	}
	c.logf("cache: trim %s: %s", info.Ref, reason)
	return true, nil
}

// StageLayerRemoval takes all entries of a layer away, in one rename(2), so
// that it may be called under a lock of the store. They are gone when it
// returns; cleanup deletes them, and what dead processes left in tmp/, may take
// long, and needs no lock. Whoever forgets to call it leaves them to the next
// builder or Trim after this process has ended. Users are not asked. A layer without entries is no
// error. Calling cleanup twice is harmless. A build that is under way for the
// layer is not stopped; what it publishes afterwards is for Trim to find.
func (c *Cache) StageLayerRemoval(layer string) (cleanup func() error, err error) {
	if err := checkLayer(layer); err != nil {
		return nil, fmt.Errorf("remove cache entries: %w", err)
	}
	begun := func() error { return c.dropBegun(layer) }
	path := filepath.Join(c.dir, layer)
	for {
		if _, err := os.Lstat(path); absent(err) {
			return begun, nil
		}
		tmp, err := c.trash(unix.AT_FDCWD, path)
		if err == nil {
			return sync.OnceValue(func() error {
				// Who died when all was built has left locks, for which there may be no
				// next builder.
				if err := errors.Join(c.sweep(context.Background(), begunKept), c.sweepLocks()); err != nil {
					c.logf("cache: %v", err)
				}
				return errors.Join(tmp.remove(), begun())
			}), nil
		}
		if _, gone := os.Lstat(filepath.Join(c.dir, tmpName)); !absent(err) || gone != nil {
			return nil, fmt.Errorf("remove cache entries of layer %s: %w", layer, err)
		}
		// Trimmed meanwhile, and perhaps made again.
	}
}
