package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// acquireSlow is Acquire after a miss: it becomes the builder of the key, or
// waits until the builder has published or died.
func (c *Cache) acquireSlow(ctx context.Context, ref Ref, user string, b Builder) (*Entry, error) {
	if err := c.makeDirs(); err != nil {
		return nil, err
	}
	release, err := lockFile(ctx, c.keyLock(ref.Key), true)
	if err != nil {
		return nil, err
	}
	defer release()
	e, err := c.lookup(ctx, ref, user)
	var miss *MissError
	if !errors.As(err, &miss) {
		return e, err // somebody else built it meanwhile
	}
	bctx, leave, err := c.buildSlot(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	var users []string
	if miss.Reason != Absent {
		if users, err = c.discard(ctx, ref); err != nil {
			return nil, err
		}
	}
	begun := c.takeBegun(ref, b)
	if err := c.sweep(ctx, begunKept); err != nil {
		// What is left over must not keep anybody from starting.
		c.logf("cache: %v", err)
	}
	if err := ctx.Err(); err != nil {
		begun.abandon()
		return nil, err
	}
	if !slices.Contains(users, user) {
		users = append(users, user)
	}
	return c.build(bctx, ref, users, b, begun)
}

// keyLock is the lock of whoever may publish entries of a key.
func (c *Cache) keyLock(key Key) string {
	return filepath.Join(c.dir, locksName, key.String()+lockSuffix)
}

// build makes and publishes an entry, out of one that was begun if there is one.
// The caller holds the key's lock.
func (c *Cache) build(ctx context.Context, ref Ref, users []string, b Builder, begun *temp) (*Entry, error) {
	tmp := begun
	if tmp == nil {
		var err error
		if tmp, err = c.newTemp(); err != nil {
			return nil, err
		}
	}
	defer func() {
		if errors.Is(context.Cause(ctx), ErrAbandoned) {
			tmp.abandon()
		} else if err := tmp.remove(); err != nil {
			c.logf("cache: %v", err)
		}
	}()
	if begun == nil {
		for _, dir := range []string{tmp.path, filepath.Join(tmp.path, usersName)} {
			if err := makeDir(dir); err != nil {
				return nil, fmt.Errorf("prepare build: %w", err)
			}
		}
	}
	data := filepath.Join(tmp.path, dataName)
	done := false
	if begun != nil {
		var err error
		if done, err = c.resume(ctx, data, ref, b); err == nil && !done {
			err = c.endBegun(tmp.path) // what comes there now is something else
		}
		if err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
	}
	if !done {
		if err := c.fill(ctx, data, ref, b); err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
	}
	failpoint.Hit("cache-filled")
	m, err := c.describe(tmp.path, users, b)
	if err == nil {
		err = c.endBegun(tmp.path)
	}
	if err != nil {
		return nil, err
	}
	if err := c.publish(tmp.path, ref); err != nil {
		return nil, err
	}
	return &Entry{ref: ref, path: c.path(ref), meta: m, builtNow: true, inode: m.Inode}, nil
}

// fill makes the folder data, which does not exist yet: out of another entry
// where that is possible, otherwise from nothing.
func (c *Cache) fill(ctx context.Context, data string, ref Ref, b Builder) error {
	if done, err := c.recycle(ctx, data, ref, b); done || err != nil {
		return err
	}
	if err := makeDir(data); err != nil {
		return err
	}
	// Not before: what is half recycled cannot be gone on with.
	if err := c.writeBegun(filepath.Dir(data), ref, b); err != nil {
		return err
	}
	failpoint.Hit("cache-data-folder")
	return withContext(ctx, b.Build(ctx, data))
}

// withContext adds to an error, if there is one, that ctx has ended, if it has.
func withContext(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return errors.Join(err, ctx.Err())
	}
	return err
}

// describe writes all that an entry's folder holds besides its data and the
// folder of the users.
func (c *Cache) describe(path string, users []string, b Builder) (meta, error) {
	now := c.now()
	m := meta{Version: metaVersion, BootID: c.bootID, Built: now, Meta: b.Meta, Disposable: b.Disposable, Kin: b.Kin}
	var st unix.Stat_t
	if err := linux.Lstatat(unix.AT_FDCWD, filepath.Join(path, dataName), &st); err != nil {
		return m, fmt.Errorf("describe build: %w", err)
	}
	m.Inode = st.Ino
	if b.Stats != nil {
		if s := b.Stats(); s != (Stats{}) {
			m.Stats = &s
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		return m, fmt.Errorf("describe build: %w", err)
	}
	if len(text) >= metaLimit {
		return m, fmt.Errorf("describe build: Meta has %d bytes, at most %d fit: %w", len(b.Meta), metaLimit, unix.EFBIG)
	}
	if err := writeFile(filepath.Join(path, metaName), append(text, '\n')); err != nil {
		return m, fmt.Errorf("describe build: %w", err)
	}
	failpoint.Hit("cache-described")
	for _, user := range users {
		if err := writeFile(filepath.Join(path, usersName, user), nil); err != nil {
			return m, fmt.Errorf("register user: %w", err)
		}
	}
	used := filepath.Join(path, usedName)
	if err := writeFile(used, nil); err != nil {
		return m, fmt.Errorf("note use: %w", err)
	}
	if err := os.Chtimes(used, now, now); err != nil {
		return m, fmt.Errorf("note use: %w", err)
	}
	return m, nil
}

// publish moves a finished build to its place. The folder of the layer can
// vanish at any time, when its last other entry is trimmed or all of them are
// staged for removal.
func (c *Cache) publish(from string, ref Ref) error {
	for {
		if err := os.Mkdir(filepath.Join(c.dir, ref.Layer), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("publish: %w", err)
		}
		failpoint.Hit("cache-layer-folder")
		err := os.Rename(from, c.path(ref))
		if err == nil {
			failpoint.Hit("cache-published")
			return nil
		}
		if _, gone := os.Lstat(from); gone != nil || !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("publish: %w", err)
		}
	}
}

// discard removes an entry that cannot be trusted and returns its users, who
// still need the one that takes its place. The caller holds the key's lock.
func (c *Cache) discard(ctx context.Context, ref Ref) (users []string, err error) {
	fd, err := c.openEntry(ctx, ref, unix.LOCK_EX)
	if _, ok := errors.AsType[*MissError](err); ok {
		return nil, nil // trimmed meanwhile
	}
	if err != nil {
		return nil, err
	}
	if users, err = readNamesAt(fd, usersName); broken(err) {
		users, err = nil, nil // who they were is lost; each start registers again
	}
	var tmp *temp
	if err == nil {
		// Nobody else can publish at this path now.
		tmp, err = c.trash(unix.AT_FDCWD, c.path(ref))
	}
	unlock(fd)
	if absent(err) {
		return users, nil // the layer was removed meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("discard: %w", err)
	}
	if err := tmp.remove(); err != nil {
		c.logf("cache: %v", err) // the next sweep tries again
	}
	return users, nil
}

// makeDirs makes the folders that a build needs.
func (c *Cache) makeDirs() error {
	if err := os.MkdirAll(filepath.Dir(c.dir), 0o711); err != nil {
		return fmt.Errorf("make cache folder: %w", err)
	}
	for _, dir := range []string{c.dir, filepath.Join(c.dir, tmpName), filepath.Join(c.dir, locksName)} {
		if err := makeDir(dir); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make cache folder: %w", err)
		}
		failpoint.Hit("cache-folder")
		// An administrator's "setfacl -R -d" of the whole store would give
		// every shifted file an ACL that the image does not have.
		if err := dropACL(dir); err != nil {
			return fmt.Errorf("make cache folder: %w", err)
		}
	}
	return nil
}

// makeDir makes a folder with exactly mode 0700, whatever umask, the parent's
// default ACL and its set-group-ID bit have to say.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := dropACL(path); err != nil {
		return err
	}
	return linux.Fchmodat(unix.AT_FDCWD, path, 0o700)
}

// dropACL removes the default ACL of a folder, which new files would inherit,
// and the one it inherited itself (acl(5)).
func dropACL(path string) error {
	for _, name := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
		err := unix.Lremovexattr(path, name)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "removexattr " + name, Path: path, Err: err}
		}
	}
	return nil
}

// writeFile makes a file that must not exist.
func writeFile(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}
