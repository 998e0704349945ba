package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
)

// begunName is the file in the folder of a build that says what is being built
// there, for whoever goes on when the builder has died.
const begunName = "begun.json"

// begunKept is how long a build whose builder has died is kept for the next one.
const begunKept = 10 * time.Minute

// begun is what it holds.
type begun struct {
	Version int    `json:"version"`
	BootID  string `json:"boot_id"`
	Entry   string `json:"entry"`
	State   string `json:"state"`
}

// begunNow is what it holds for a build that starts now; false if nobody could go
// on with that.
func (c *Cache) begunNow(ref Ref, b Builder) (now begun, ok bool) {
	if b.Resume == nil {
		return begun{}, false
	}
	state, err := b.State()
	if err != nil {
		c.logf("cache: nobody could go on with the build of %s: %v", ref, err)
		return begun{}, false
	}
	return begun{Version: metaVersion, BootID: c.bootID, Entry: ref.String(), State: state}, true
}

// writeBegun writes it, if somebody could go on.
func (c *Cache) writeBegun(path string, ref Ref, b Builder) error {
	have, ok := c.begunNow(ref, b)
	if !ok {
		return nil
	}
	text, err := json.Marshal(have)
	if err != nil {
		return fmt.Errorf("describe build: %w", err)
	}
	name, now := filepath.Join(path, begunName), c.now()
	if err = writeFile(name, text); err == nil {
		err = os.Chtimes(name, now, now)
	}
	failpoint.Hit("cache-begun")
	return err
}

// eachBegun calls do for each build that match wants and whose builder has died,
// until do returns false. What do is given is locked, and do gives it back.
func (c *Cache) eachBegun(match func(begun) bool, do func(t *temp) bool) error {
	dir := filepath.Join(c.dir, tmpName)
	names, err := readNames(dir)
	for _, name := range names {
		path := filepath.Join(dir, name)
		if have, ok := readBegun(filepath.Join(path, begunName)); !ok || !match(have) {
			continue
		}
		lock, err := tryLock(unix.AT_FDCWD, path+lockSuffix, unix.O_RDWR, unix.LOCK_EX)
		if err != nil {
			continue // it lives, or somebody sweeps
		}
		if !do(&temp{path: path, lock: lock}) {
			break
		}
	}
	return err
}

// takeBegun finds a build of an entry whose builder has died, and that b can go on
// with, and makes it the caller's; nil if there is none. The caller holds the key's
// lock. Whatever fails is left to the next sweep.
func (c *Cache) takeBegun(ref Ref, b Builder) (found *temp) {
	want, ok := c.begunNow(ref, b)
	if !ok {
		return nil
	}
	ours := func(have begun) bool { return have.Entry == want.Entry }
	_ = c.eachBegun(ours, func(t *temp) bool {
		// Somebody may have swept it before it was locked; what is here now stays.
		name, now := filepath.Join(t.path, begunName), c.now()
		have, ok := readBegun(name)
		if ok && have == want && c.clearBegun(t.path) == nil && os.Chtimes(name, now, now) == nil {
			found = t
			return false
		}
		if err := t.remove(); err != nil { // nobody else can go on with it either
			c.logf("cache: %v", err)
		}
		return true
	})
	return found
}

// clearBegun takes away all but the data and the folder of users, which is empty
// then: what describe has written is written anew.
func (c *Cache) clearBegun(path string) error {
	users, err := readNames(filepath.Join(path, usersName))
	for _, user := range users {
		err = errors.Join(err, unlink(filepath.Join(path, usersName, user)))
	}
	for _, name := range []string{metaName, usedName} {
		err = errors.Join(err, unlink(filepath.Join(path, name)))
	}
	if _, serr := os.Lstat(filepath.Join(path, usersName)); err == nil {
		err = serr
	}
	return err
}

// endBegun takes away what says that the build may be gone on with.
func (c *Cache) endBegun(path string) error { return unlink(filepath.Join(path, begunName)) }

// begunWithin says whether a folder is that of a build that was begun in this boot,
// or gone on with, less than a time ago.
func (c *Cache) begunWithin(path string, ago time.Duration) bool {
	name := filepath.Join(path, begunName)
	st, err := os.Lstat(name)
	if err != nil {
		return false
	}
	since := c.now().Sub(st.ModTime())
	have, ok := readBegun(name)
	return ok && have.Version == metaVersion && have.BootID == c.bootID && since.Abs() < ago
}

// readBegun reads what says that a build was begun.
func readBegun(name string) (have begun, ok bool) {
	text, err := os.ReadFile(name)
	return have, err == nil && json.Unmarshal(text, &have) == nil
}

// dropBegun deletes the builds of a layer's entries whose builders have died.
func (c *Cache) dropBegun(layer string) error {
	var failed error
	err := c.eachBegun(func(have begun) bool { return strings.HasPrefix(have.Entry, layer+"/") }, func(t *temp) bool {
		failed = errors.Join(failed, t.remove())
		return true
	})
	return errors.Join(err, failed)
}

// unlink removes a file, if it is there.
func unlink(path string) error {
	if err := unix.Unlink(path); err != nil && !absent(err) {
		return &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

// resume goes on with the folder data. It returns false, and there is no such
// folder, if that cannot be done. An error means that there is no point in
// building either.
func (c *Cache) resume(ctx context.Context, data string, ref Ref, b Builder) (done bool, err error) {
	if _, err := os.Lstat(data); absent(err) {
		return false, nil
	}
	err = b.Resume(ctx, data)
	if err == nil {
		c.logf("cache: %s gone on with where its builder died", ref)
		return true, nil
	}
	if ctx.Err() != nil {
		return false, withContext(ctx, err)
	}
	c.logf("cache: %s could not be gone on with: %v", ref, err)
	if err := errors.Join(c.endBegun(filepath.Dir(data)), removeTree(data)); err != nil {
		return false, fmt.Errorf("remove what could not be gone on with: %w", err)
	}
	return false, nil
}
