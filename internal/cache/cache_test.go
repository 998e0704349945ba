package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

func TestOpen(t *testing.T) {
	_, err := Open("relative", Options{})
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, `"relative"`)

	_, err = Open(t.TempDir(), Options{MaxBuilds: -1})
	require.ErrorIs(t, err, os.ErrInvalid)

	_, err = Open(t.TempDir(), Options{RecycleAfter: -1})
	require.ErrorIs(t, err, os.ErrInvalid)

	dir := filepath.Join(t.TempDir(), "a")
	c, err := Open(dir, Options{})
	require.NoError(t, err)
	want, err := os.ReadFile(bootIDFile)
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(want)), c.bootID)

	// Nothing but a build makes the folder.
	require.Empty(t, requireList(t, c))
	removed, err := c.Trim(t.Context(), TrimOptions{MaxSize: 1, MaxAge: 1})
	require.NoError(t, err)
	require.Empty(t, removed)
	require.NoError(t, c.Release(ref("l", 1), "u"))
	cleanup, err := c.StageLayerRemoval("l")
	require.NoError(t, err)
	require.NoError(t, cleanup())
	var miss *MissError
	require.ErrorAs(t, c.MarkDurable(t.Context(), ref("l", 1)), &miss)
	require.NoDirExists(t, dir)
}

func TestNames(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"", ".", "..", "a/b", "/", "a\x00", strings.Repeat("x", 256), "tmp", "locks"} {
		_, err := f.Acquire(t.Context(), ref(name, 1), "u", noBuild(t))
		require.ErrorIs(t, err, os.ErrInvalid, "layer %q", name)
		_, err = f.StageLayerRemoval(name)
		require.ErrorIs(t, err, os.ErrInvalid, "layer %q", name)
		require.ErrorIs(t, f.MarkDurable(t.Context(), ref(name, 1)), os.ErrInvalid, "layer %q", name)
		if name == "tmp" || name == "locks" {
			continue
		}
		_, err = f.Acquire(t.Context(), ref("l", 1), name, noBuild(t))
		require.ErrorIs(t, err, os.ErrInvalid, "user %q", name)
		require.ErrorIs(t, f.Release(ref("l", 1), name), os.ErrInvalid, "user %q", name)
	}
	require.NoDirExists(t, f.Dir())
}

func TestHitAndMiss(t *testing.T) {
	f := newFixture(t)
	r := ref("layer", 1)
	b := filesBuilder(2)
	b.Meta = json.RawMessage(`{"engine":"metacopy"}`)

	_, err := f.Acquire(t.Context(), r, "u", Builder{})
	var miss *MissError
	require.ErrorAs(t, err, &miss)
	require.Equal(t, MissError{Ref: r, Reason: Absent}, *miss)
	require.NoDirExists(t, f.Dir())

	e, err := f.Acquire(t.Context(), r, "u", b)
	require.NoError(t, err)
	require.True(t, e.BuiltNow())
	require.False(t, e.Durable())
	require.Zero(t, e.Age())
	require.Equal(t, r.Key, e.Key())
	require.Equal(t, r, e.Ref())
	require.Equal(t, filepath.Join(f.Dir(), "layer", r.Key.String(), "data"), e.Path())
	require.FileExists(t, filepath.Join(e.Path(), "1"))
	require.Contains(t, f.log.text(), "absent", "the log says why there was a build")
	requireNoTemp(t, f.Cache)

	f.clock.add(time.Hour)
	again, err := f.Acquire(t.Context(), r, "v", noBuild(t))
	require.NoError(t, err)
	require.False(t, again.BuiltNow())
	require.Equal(t, time.Hour, again.Age())
	require.Equal(t, e.Path(), again.Path())
	require.JSONEq(t, `{"engine":"metacopy"}`, string(again.Meta()))

	infos := requireList(t, f.Cache)
	require.Len(t, infos, 1)
	require.Equal(t, []string{"u", "v"}, infos[0].Users)
	require.Equal(t, r, infos[0].Ref)
	require.WithinDuration(t, f.clock.now(), infos[0].LastUsed, 0)
	require.WithinDuration(t, f.clock.now().Add(-time.Hour), infos[0].Built, 0)

	// The same key of another layer is another entry.
	other := f.acquire(ref("other", 1), "u", 1)
	require.True(t, other.BuiltNow())
	require.NotEqual(t, e.Path(), other.Path())

	for range 2 { // idempotent
		require.NoError(t, f.Release(r, "u"))
	}
	require.Equal(t, []string{"v"}, requireList(t, f.Cache)[0].Users)
}

func TestModesWhateverTheParent(t *testing.T) {
	f := newFixture(t)
	parent := filepath.Dir(f.Dir())
	require.NoError(t, os.Chmod(parent, 0o755|os.ModeSetgid))
	// user::rwx, user:1234:rwx, group::rwx, mask::rwx, other::rwx
	acl := []byte{
		2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0xd2, 4, 0, 0,
		4, 0, 7, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255,
	}
	err := unix.Setxattr(parent, "system.posix_acl_default", acl, 0)
	if errors.Is(err, unix.ENOTSUP) {
		testutil.Skip(t, "the file system of the temporary folder has no ACLs")
	}
	require.NoError(t, err)
	e, err := f.Acquire(t.Context(), ref("l", 1), "u", Builder{Build: func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)
	}})
	require.NoError(t, err)
	for dir := e.Path(); dir != parent; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, os.ModeDir|0o700, st.Mode(), dir)
	}
	n, err := unix.Listxattr(filepath.Join(e.Path(), "file"), nil)
	require.NoError(t, err)
	names := make([]byte, n)
	_, err = unix.Listxattr(filepath.Join(e.Path(), "file"), names)
	require.NoError(t, err)
	require.NotContains(t, string(names), "posix_acl")

	// An ACL that is put there later goes at the next build.
	require.NoError(t, unix.Setxattr(f.Dir(), "system.posix_acl_default", acl, 0))
	require.NoError(t, unix.Setxattr(filepath.Join(f.Dir(), tmpName), "system.posix_acl_default", acl, 0))
	f.acquire(ref("l", 2), "u", 1)
	_, err = unix.Getxattr(filepath.Join(f.path(ref("l", 2)), dataName), "system.posix_acl_default", nil)
	require.ErrorIs(t, err, unix.ENODATA)
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	for name, build := range map[string]func(context.Context, string) error{
		"error": func(_ context.Context, dir string) error {
			return errors.Join(boom, os.Mkdir(filepath.Join(dir, "a"), 0o000))
		},
		"folder removed": func(_ context.Context, dir string) error { return errors.Join(boom, os.Remove(dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			_, err := f.Acquire(t.Context(), ref("l", 1), "u", Builder{Build: build})
			require.ErrorIs(t, err, boom)
			require.ErrorContains(t, err, ref("l", 1).String())
			requireNoTemp(t, f.Cache)
			require.NoDirExists(t, filepath.Join(f.Dir(), "l"))
		})
	}
	t.Run("panic", func(t *testing.T) {
		f := newFixture(t)
		require.PanicsWithValue(t, "boom", func() {
			_, _ = f.Acquire(t.Context(), ref("l", 1), "u", Builder{Build: func(context.Context, string) error { panic("boom") }})
		})
		requireNoTemp(t, f.Cache)
		require.True(t, f.acquire(ref("l", 1), "u", 1).BuiltNow(), "no lock is left")
	})
	t.Run("cancelled", func(t *testing.T) {
		f := newFixture(t)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := f.Acquire(ctx, ref("l", 1), "u", Builder{Build: func(ctx context.Context, _ string) error {
			cancel()
			<-ctx.Done()
			return errors.New("told to stop")
		}})
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "told to stop")
		requireNoTemp(t, f.Cache)

		_, err = f.Acquire(ctx, ref("l", 1), "u", noBuild(t))
		require.ErrorIs(t, err, context.Canceled, "cancelled before the build")
	})
	t.Run("invalid meta", func(t *testing.T) {
		f := newFixture(t)
		b := filesBuilder(1)
		b.Meta = json.RawMessage(`{`)
		_, err := f.Acquire(t.Context(), ref("l", 1), "u", b)
		require.ErrorContains(t, err, "describe build")
		requireNoTemp(t, f.Cache)
		b.Meta = json.RawMessage(`"` + strings.Repeat("x", metaLimit) + `"`)
		_, err = f.Acquire(t.Context(), ref("l", 1), "u", b)
		require.ErrorIs(t, err, unix.EFBIG)
		requireNoTemp(t, f.Cache)
	})
}

func TestCancelWhileWaiting(t *testing.T) {
	f := newFixture(t)
	building, finish := make(chan struct{}), make(chan struct{})
	var first sync.WaitGroup
	first.Go(func() {
		_, err := f.Acquire(t.Context(), ref("l", 1), "u", Builder{Build: func(context.Context, string) error {
			close(building)
			<-finish
			return nil
		}})
		assert.NoError(t, err)
	})
	<-building
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := f.Acquire(ctx, ref("l", 1), "v", noBuild(t))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, ".lock", "says what it waited for")
	close(finish)
	first.Wait()
	require.Equal(t, []string{"u"}, requireList(t, f.Cache)[0].Users)
	requireNoTemp(t, f.Cache)
}

func TestOneBuildForManyGoroutines(t *testing.T) {
	f := newFixture(t)
	var builds atomic.Int32
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			e, err := f.Acquire(t.Context(), ref("l", 1), "u", Builder{Build: func(context.Context, string) error {
				builds.Add(1)
				time.Sleep(20 * time.Millisecond)
				return nil
			}})
			if assert.NoError(t, err) {
				assert.DirExists(t, e.Path())
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, builds.Load())
	requireNoTemp(t, f.Cache)
}

func TestWaiterTakesOverAfterFailure(t *testing.T) {
	f := newFixture(t)
	building, finish := make(chan struct{}), make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		_, err := f.Acquire(t.Context(), ref("l", 1), "u", Builder{Build: func(context.Context, string) error {
			close(building)
			<-finish
			return unix.ENOSPC
		}})
		assert.ErrorIs(t, err, unix.ENOSPC)
	})
	<-building
	both.Go(func() {
		e, err := f.Acquire(t.Context(), ref("l", 1), "v", filesBuilder(1))
		if assert.NoError(t, err) {
			assert.True(t, e.BuiltNow())
		}
	})
	close(finish)
	both.Wait()
}

func TestBuildsAreBounded(t *testing.T) {
	f := newFixture(t)
	f.maxBuilds = 2
	var running, most atomic.Int32
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			_, err := f.Acquire(t.Context(), ref("l", byte(i)), "u", Builder{Build: func(context.Context, string) error {
				n := running.Add(1)
				defer running.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(20 * time.Millisecond)
				return nil
			}})
			assert.NoError(t, err)
		})
	}
	all.Wait()
	require.EqualValues(t, 2, most.Load())

	// Whoever waits for a slot can be cancelled.
	f.maxBuilds = 1
	_, err := f.Acquire(t.Context(), ref("l", 100), "u", Builder{Build: func(context.Context, string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond) // not the build's context
		defer cancel()
		_, err := f.Acquire(ctx, ref("l", 101), "u", noBuild(t))
		return err
	}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "slot")
	requireNoTemp(t, f.Cache)
}

func TestBuildThatNeedsAnotherEntry(t *testing.T) {
	f := newFixture(t)
	f.maxBuilds = 1
	e, err := f.Acquire(t.Context(), ref("l", 1), "u", Builder{Build: func(ctx context.Context, dir string) error {
		inner, err := f.Acquire(ctx, ref("l", 2), "template", filesBuilder(1))
		if err != nil {
			return err
		}
		return os.Link(filepath.Join(inner.Path(), "0"), filepath.Join(dir, "0"))
	}})
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(e.Path(), "0"))
	require.Len(t, requireList(t, f.Cache), 2)
}

// TestAbandoned checks that who abandons a build does not wait for its removal,
// and that the next build removes it.
func TestAbandoned(t *testing.T) {
	f := newFixture(t)
	r := ref("l", 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := f.Acquire(ctx, r, "u", Builder{Build: func(_ context.Context, dir string) error {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "half"), nil, 0o600))
		cancel(fmt.Errorf("late: %w", ErrAbandoned))
		return ctx.Err()
	}})
	require.ErrorIs(t, err, context.Canceled)
	left, err := f.Leftovers()
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.True(t, f.acquire(r, "u", 1).BuiltNow())
	requireNoTemp(t, f.Cache)
}
