package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// kinBuilder is filesBuilder(1) for entries of one kin. Its Recycle counts in
// recycled, and leaves a file that tells.
func kinBuilder(kin string, recycled *int) Builder {
	b := filesBuilder(1)
	b.Kin = kin
	b.Recycle = func(_ context.Context, dir string) error {
		*recycled++
		if _, err := os.Stat(filepath.Join(dir, "0")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "recycled"), nil, 0o600)
	}
	return b
}

// TestRecycle: what is taken and what is not.
func TestRecycle(t *testing.T) {
	old, fresh := ref("l", 1), ref("l", 2)
	release := func(t *testing.T, f *fixture) {
		t.Helper()
		require.NoError(t, f.Release(old, "u"))
		f.clock.add(recycleAfter)
	}
	tests := []struct {
		name    string
		between func(t *testing.T, f *fixture) // from the old entry's acquisition to the new one's
		ref     Ref
		kin     string
		reboot  bool
		want    bool
	}{
		{"taken", release, fresh, "k", false, true},
		{"in use", func(_ *testing.T, f *fixture) { f.clock.add(24 * time.Hour) }, fresh, "k", false, false},
		{"released a moment ago", func(t *testing.T, f *fixture) {
			t.Helper()
			f.clock.add(24 * time.Hour)
			require.NoError(t, f.Release(old, "u"))
			f.clock.add(recycleAfter - 1)
		}, fresh, "k", false, false},
		{"clock set back", func(t *testing.T, f *fixture) {
			t.Helper()
			require.NoError(t, f.Release(old, "u"))
			f.clock.add(-24 * time.Hour)
		}, fresh, "k", false, false},
		{"other layer", release, ref("m", 2), "k", false, false},
		{"other kin", release, fresh, "l", false, false},
		{"no kin", release, fresh, "", false, false},
		{"being looked at", func(t *testing.T, f *fixture) {
			t.Helper()
			release(t, f)
			fd, err := f.openEntry(t.Context(), old, unix.LOCK_SH)
			require.NoError(t, err)
			t.Cleanup(func() { unlock(fd) })
		}, fresh, "k", false, false},
		{"being built", func(t *testing.T, f *fixture) {
			t.Helper()
			release(t, f)
			unlockKey, err := lockFile(t.Context(), f.keyLock(old.Key), true)
			require.NoError(t, err)
			t.Cleanup(unlockKey)
		}, fresh, "k", false, false},
		{"damaged", func(t *testing.T, f *fixture) {
			t.Helper()
			release(t, f)
			require.NoError(t, os.Remove(filepath.Join(f.path(old), usersName)))
		}, fresh, "k", false, false},
		{"of another boot", release, fresh, "k", true, false},
		{"of another boot, durable", func(t *testing.T, f *fixture) {
			t.Helper()
			require.NoError(t, f.MarkDurable(t.Context(), old))
			release(t, f)
		}, fresh, "k", true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			recycled := 0
			_, err := f.Acquire(t.Context(), old, "u", kinBuilder("k", &recycled))
			require.NoError(t, err)
			requireList(t, f.Cache) // the size is remembered
			tt.between(t, f)
			if tt.reboot {
				f = f.reboot()
			}
			e, err := f.Acquire(t.Context(), tt.ref, "v", kinBuilder(tt.kin, &recycled))
			require.NoError(t, err)
			require.True(t, e.BuiltNow())
			require.False(t, e.Durable())
			require.FileExists(t, filepath.Join(e.Path(), "0"))
			if !tt.want {
				require.Zero(t, recycled)
				require.DirExists(t, f.path(old))
				return
			}
			require.Equal(t, 1, recycled)
			require.FileExists(t, filepath.Join(e.Path(), "recycled"))
			require.NoDirExists(t, f.path(old))
			require.Contains(t, f.log.text(), "recycled as "+tt.ref.String())
			// Nothing but the data is of the old one.
			names, err := readNames(f.path(tt.ref))
			require.NoError(t, err)
			require.ElementsMatch(t, []string{dataName, metaName, usersName, usedName}, names)
			info := requireList(t, f.Cache)[0]
			require.Equal(t, []string{"v"}, info.Users)
			require.WithinDuration(t, f.clock.now(), info.LastUsed, 0)
			require.WithinDuration(t, f.clock.now(), info.Built, 0)
			require.Empty(t, info.Unusable)
			requireNoTemp(t, f.Cache)
			require.NoError(t, f.Release(tt.ref, "v"))
			f.clock.add(recycleAfter)
			_, err = f.Acquire(t.Context(), old, "w", kinBuilder("k", &recycled))
			require.NoError(t, err)
			require.Equal(t, 2, recycled, "and back")
		})
	}
}

// TestRecycleOldest: of several the least recently used one is taken, and one
// only.
func TestRecycleOldest(t *testing.T) {
	f := newFixture(t)
	recycled := 0
	for _, i := range []byte{3, 1, 2} {
		_, err := f.Acquire(t.Context(), ref("l", i), "u", kinBuilder("k", &recycled))
		require.NoError(t, err)
		require.NoError(t, f.Release(ref("l", i), "u"))
		f.clock.add(time.Minute)
	}
	f.clock.add(recycleAfter)
	for i, left := range [][]byte{{1, 2, 4}, {2, 4, 5}, {4, 5, 6}, {4, 5, 6, 7}} {
		_, err := f.Acquire(t.Context(), ref("l", byte(4+i)), "u", kinBuilder("k", &recycled))
		require.NoError(t, err)
		require.Equal(t, left, keys(requireList(t, f.Cache)))
	}
	require.Equal(t, 3, recycled)
}

// idleEntry makes the entry 1 of layer "l", which may be recycled.
func idleEntry(t *testing.T, f *fixture) {
	t.Helper()
	_, err := f.Acquire(t.Context(), ref("l", 1), "u", kinBuilder("k", new(int)))
	require.NoError(t, err)
	require.NoError(t, f.Release(ref("l", 1), "u"))
	f.clock.add(recycleAfter)
}

// TestRecycleFails: then the entry is built from nothing.
func TestRecycleFails(t *testing.T) {
	f := newFixture(t)
	idleEntry(t, f)
	b := filesBuilder(1)
	b.Kin = "k"
	b.Recycle = func(_ context.Context, dir string) error {
		return errors.Join(errors.New("boom"), os.Mkdir(filepath.Join(dir, "half"), 0o000), os.Chmod(dir, 0o000))
	}
	e, err := f.Acquire(t.Context(), ref("l", 2), "v", b)
	require.NoError(t, err)
	require.True(t, e.BuiltNow())
	names, err := readNames(e.Path())
	require.NoError(t, err)
	require.Equal(t, []string{"0"}, names)
	require.Equal(t, []byte{2}, keys(requireList(t, f.Cache)))
	require.Contains(t, f.log.text(), "boom")
	requireNoTemp(t, f.Cache)

	// If that fails, too, nothing is left.
	require.NoError(t, f.Release(ref("l", 2), "v"))
	f.clock.add(recycleAfter)
	b.Build = func(context.Context, string) error { return unix.ENOSPC }
	_, err = f.Acquire(t.Context(), ref("l", 3), "v", b)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoDirExists(t, filepath.Join(f.Dir(), "l"))
	requireNoTemp(t, f.Cache)
}

// TestRecycleCancelled: a context that ends is an error, not a reason to
// build.
func TestRecycleCancelled(t *testing.T) {
	f := newFixture(t)
	idleEntry(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	b := noBuild(t)
	b.Kin = "k"
	b.Recycle = func(ctx context.Context, _ string) error {
		cancel()
		<-ctx.Done()
		return errors.New("told to stop")
	}
	_, err := f.Acquire(ctx, ref("l", 2), "v", b)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "told to stop")
	require.Empty(t, requireList(t, f.Cache))
	requireNoTemp(t, f.Cache)
}

// TestRecyclePanics: no lock is left and nothing else.
func TestRecyclePanics(t *testing.T) {
	f := newFixture(t)
	idleEntry(t, f)
	b := noBuild(t)
	b.Kin = "k"
	b.Recycle = func(context.Context, string) error { panic("boom") }
	require.PanicsWithValue(t, "boom", func() { _, _ = f.Acquire(t.Context(), ref("l", 2), "v", b) })
	requireNoTemp(t, f.Cache)
	require.True(t, f.acquire(ref("l", 2), "u", 1).BuiltNow())
}

// TestRecycleAgainstMark: a mark that was begun for the old entry is not the
// new one's.
func TestRecycleAgainstMark(t *testing.T) {
	f := newFixture(t)
	idleEntry(t, f)
	old := ref("l", 1)
	fd, err := f.openEntry(t.Context(), old, unix.LOCK_SH) // as MarkDurable, which then waits for the disk
	require.NoError(t, err)
	require.NoError(t, unix.Flock(fd, unix.LOCK_UN))
	defer unlock(fd)
	recycled := 0
	_, err = f.Acquire(t.Context(), ref("l", 2), "v", kinBuilder("k", &recycled))
	require.NoError(t, err)
	require.Equal(t, 1, recycled)
	_, err = f.createMark(t.Context(), fd, old)
	var miss *MissError
	require.ErrorAs(t, err, &miss)
	require.False(t, requireList(t, f.Cache)[0].Durable)
}

// writerFiles is how many files a writer's entry has.
const writerFiles = 12

// writer makes entries of one kin that hold their own name in many files, and
// looks whether each is whole.
type writer struct {
	c        *Cache
	recycled atomic.Int64
}

func (w *writer) write(dir string, r Ref) error {
	for i := range writerFiles {
		sub := filepath.Join(dir, fmt.Sprint(i%3))
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte(r.String()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// check says whether all files hold the same name, which it returns.
func (w *writer) check(dir string) (string, error) {
	var name string
	for i := range writerFiles {
		text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i%3), fmt.Sprint(i)))
		if err != nil {
			return "", err
		}
		if i > 0 && string(text) != name {
			return "", fmt.Errorf("half of %q, half of %q", name, text)
		}
		name = string(text)
	}
	return name, nil
}

// use acquires r, looks at it a few times, and releases it. mine says that
// nobody removes the layer meanwhile, and the user with it: only then can be
// told what is to be seen. What is recycled must be whole anyway.
func (w *writer) use(ctx context.Context, r Ref, user string, mine bool, slow func()) error {
	var broken error
	e, err := w.c.Acquire(ctx, r, user, Builder{
		Kin:   "k",
		Build: func(_ context.Context, dir string) error { return w.write(dir, r) },
		Recycle: func(_ context.Context, dir string) error {
			w.recycled.Add(1)
			if _, err := w.check(dir); err != nil {
				broken = fmt.Errorf("what is to be recycled is not whole: %w", err)
			}
			slow()
			if err := w.write(dir, r); err != nil {
				broken = errors.Join(broken, err)
			}
			return nil
		},
	})
	if err = errors.Join(err, broken); err != nil {
		return err
	}
	for range 3 {
		name, err := w.check(e.Path())
		if !mine {
			continue
		}
		if err != nil {
			return err
		}
		if name != r.String() {
			return fmt.Errorf("%s holds what is of %s", r, name)
		}
		time.Sleep(100 * time.Microsecond)
	}
	return w.c.Release(r, user)
}

// TestRecycleRace lets many goroutines use more entries than there are at a
// time, in a layer that stays and in one that is removed again and again,
// while others trim.
func TestRecycleRace(t *testing.T) {
	c, err := Open(filepath.Join(t.TempDir(), "shifted"), Options{RecycleAfter: 1, MaxBuilds: 6})
	require.NoError(t, err)
	w := &writer{c: c}
	racing := raceFor(2*time.Second, &w.recycled)
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := 0; racing(); i++ {
				layer := []string{"a", "b"}[(i/4)%2]
				r := ref(layer, byte((i*7+worker)%5))
				if !assert.NoError(t, w.use(t.Context(), r, fmt.Sprintf("%d-%d", worker, i), layer == "a", func() {})) {
					return
				}
			}
		})
	}
	all.Go(func() {
		for racing() {
			_, err := c.Trim(t.Context(), TrimOptions{MaxSize: 1})
			_ = c.MarkDurable(t.Context(), ref("a", 1)) // a miss is normal here
			if !assert.NoError(t, err) {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	all.Go(func() {
		for racing() {
			cleanup, err := c.StageLayerRemoval("b")
			if !assert.NoError(t, err) || !assert.NoError(t, cleanup()) {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	all.Wait()
	t.Logf("%d recycled", w.recycled.Load())
	require.Positive(t, w.recycled.Load(), "the race did not happen")
	_, err = c.Trim(t.Context(), TrimOptions{MaxSize: 1, Force: true})
	require.NoError(t, err)
	require.Empty(t, requireList(t, c))
	requireNoTemp(t, c)
}

// recycleChild is child for modes that begin with "recycle".
func recycleChild(c *Cache, mode string, r Ref) error {
	w := &writer{c: c}
	user := fmt.Sprintf("pid-%d", os.Getpid())
	switch mode {
	case "recycle-hang":
		return w.use(context.Background(), r, user, true, func() {
			fmt.Println("recycling")
			time.Sleep(time.Minute)
		})
	case "recycle-race":
		for i := range 60 {
			other := Ref{Layer: r.Layer, Key: Key{byte((i*5 + os.Getpid()) % 12)}}
			if err := w.use(context.Background(), other, user, true, func() {}); err != nil {
				return err
			}
		}
		fmt.Println(w.recycled.Load(), "recycled")
		return nil
	default:
		return fmt.Errorf("mode %q", mode)
	}
}

func TestRecycleProcesses(t *testing.T) {
	f := newFixture(t)
	text := runChildren(t, f.Cache, 5, "recycle-race", ref("l", 1))
	require.Regexp(t, `(?m)^[1-9]\d* recycled$`, text, "the race did not happen")
	requireNoTemp(t, f.Cache)
}

// TestRecycleKilled: whoever dies in the middle leaves nothing but what the
// next build deletes.
func TestRecycleKilled(t *testing.T) {
	f := newFixture(t)
	c, err := Open(f.Dir(), Options{BootID: "boot-1", RecycleAfter: 1})
	require.NoError(t, err)
	w := &writer{c: c}
	require.NoError(t, w.use(t.Context(), ref("l", 1), "u", true, func() {}))

	cmd := childCommand(t, c, "recycle-hang", ref("l", 2))
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "recycling\n", line)
	require.Empty(t, requireList(t, c))

	// It lives, so that nobody deletes what it is working on.
	require.NoError(t, w.use(t.Context(), ref("l", 1), "u", true, func() {}))
	require.Zero(t, w.recycled.Load())
	parts, err := filepath.Glob(filepath.Join(f.Dir(), tmpName, "*", dataName, "0"))
	require.NoError(t, err)
	require.Len(t, parts, 1)

	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.NoError(t, w.use(t.Context(), ref("l", 2), "v", true, func() {}))
	require.Equal(t, int64(1), w.recycled.Load())
	require.Equal(t, []byte{2}, keys(requireList(t, c)))
	requireNoTemp(t, c)
}
