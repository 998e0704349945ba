package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestForesee checks with random caches and options that Foresee says what
// Trim then does, and that it changes nothing itself.
func TestForesee(t *testing.T) {
	foreseen := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 0))
		f := newFixture(t)
		for i := range byte(8) {
			f.clock.add(time.Duration(r.IntN(3)) * time.Hour)
			b := Builder{Disposable: r.IntN(2) == 0, Build: func(_ context.Context, dir string) error {
				return os.WriteFile(filepath.Join(dir, "f"), make([]byte, 1+r.IntN(40000)), 0o600)
			}}
			ref := ref([]string{"a", "b", "c"}[r.IntN(3)], i)
			user := fmt.Sprint("u", i)
			_, err := f.Acquire(t.Context(), ref, user, b)
			require.NoError(t, err)
			if r.IntN(2) == 0 {
				require.NoError(t, f.Release(ref, user))
			}
			if r.IntN(6) == 0 {
				require.NoError(t, os.Truncate(filepath.Join(f.path(ref), metaName), 3))
			}
		}
		o := TrimOptions{Force: r.IntN(5) == 0}
		if r.IntN(2) == 0 {
			o.MaxSize = int64(r.IntN(200000))
		}
		if r.IntN(2) == 0 {
			o.MaxAge = time.Duration(r.IntN(10)) * time.Hour
		}
		if r.IntN(4) > 0 {
			o.UserAlive = alive("u1", "u3", "u5")
		}
		if r.IntN(3) == 0 {
			o.LayerExists = alive("a", "b")
		}
		before := requireList(t, f.Cache)
		doomed, err := f.Foresee(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, before, requireList(t, f.Cache), "seed %d: changed", seed)
		removed, err := f.Trim(t.Context(), o)
		require.NoError(t, err)
		var want []byte
		for _, d := range doomed {
			assert.NotEmpty(t, d.Why)
			want = append(want, d.Key[0])
		}
		require.Equal(t, want, keys(removed), "seed %d, %+v", seed, o)
		foreseen += len(doomed)
	}
	require.Greater(t, foreseen, 50)
}

// TestRemove checks that the word of allow counts, that it is asked while
// nobody can register, and that cleaning up takes the files.
func TestRemove(t *testing.T) {
	f := newFixture(t)
	r := ref("a", 1)
	cleanup, err := f.Remove(t.Context(), r, func([]string) error { return errors.New("asked for nothing") })
	require.NoError(t, err)
	require.NoError(t, cleanup())
	f.acquire(r, "u", 3)
	no := errors.New("no")
	cleanup, err = f.Remove(t.Context(), r, func(users []string) error {
		assert.Equal(t, []string{"u"}, users)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := f.Acquire(ctx, r, "other", noBuild(t))
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		return no
	})
	require.ErrorIs(t, err, no)
	require.NoError(t, cleanup())
	info, err := f.Find(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, []string{"u"}, info.Users)
	require.FileExists(t, filepath.Join(f.Path(r), "0"))

	cleanup, err = f.Remove(t.Context(), r, func([]string) error { return nil })
	require.NoError(t, err)
	require.NoDirExists(t, f.path(r), "at once")
	require.NoError(t, cleanup())
	requireNoTemp(t, f.Cache)
	var miss *MissError
	_, err = f.Find(t.Context(), r)
	require.ErrorAs(t, err, &miss)
	require.Equal(t, Absent, miss.Reason)
	_, err = f.Find(t.Context(), Ref{Layer: "../x"})
	require.ErrorIs(t, err, os.ErrInvalid)
	_, err = f.Remove(t.Context(), Ref{Layer: tmpName}, nil)
	require.ErrorIs(t, err, os.ErrInvalid)
}

// TestLeftovers checks that what a living process has is not listed, and what
// a dead one left is, until it is swept.
func TestLeftovers(t *testing.T) {
	f := newFixture(t)
	list, err := f.Leftovers()
	require.NoError(t, err)
	require.Empty(t, list)
	_, err = f.Acquire(t.Context(), ref("a", 1), "u", Builder{Build: func(context.Context, string) error {
		list, err := f.Leftovers()
		assert.NoError(t, err)
		assert.Empty(t, list, "a build that is under way")
		return nil
	}})
	require.NoError(t, err)
	tmp, locks := filepath.Join(f.Dir(), tmpName), filepath.Join(f.Dir(), locksName)
	held, err := tryLock(unix.AT_FDCWD, filepath.Join(tmp, "HELD.lock"), unix.O_RDWR|unix.O_CREAT, unix.LOCK_EX)
	require.NoError(t, err)
	defer unlock(held)
	require.NoError(t, os.Mkdir(filepath.Join(tmp, "HELD"), 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(tmp, "DEAD"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(tmp, "DEAD.lock"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(tmp, "NOLOCK"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(locks, "key.lock"), nil, 0o600))
	list, err = f.Leftovers()
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(tmp, "DEAD"), filepath.Join(tmp, "NOLOCK"), filepath.Join(locks, "key.lock")}, list)
	require.NoError(t, f.Sweep(t.Context()))
	list, err = f.Leftovers()
	require.NoError(t, err)
	require.Empty(t, list)
	require.DirExists(t, filepath.Join(tmp, "HELD"))
}

// TestDoubt checks that nothing that was built before the disk failed is made
// durable, and what is built after it, or in another boot, is.
func TestDoubt(t *testing.T) {
	f := newFixture(t)
	before, after := ref("l", 1), ref("l", 2)
	f.acquire(before, "u", 1)
	f.clock.add(time.Second)
	require.NoError(t, f.doubt())
	f.clock.add(time.Second)
	f.acquire(after, "u", 1)
	for range 2 {
		require.ErrorIs(t, f.MarkDurable(t.Context(), before), ErrDoubtful)
	}
	require.NoError(t, f.MarkDurable(t.Context(), after))
	_, err := f.Trim(t.Context(), TrimOptions{})
	require.NoError(t, err)
	require.ErrorIs(t, f.MarkDurable(t.Context(), before), ErrDoubtful, "trimming takes no doubt away")
	f = f.reboot()
	f.acquire(before, "u", 1)
	require.NoError(t, f.MarkDurable(t.Context(), before))
	_, err = f.Trim(t.Context(), TrimOptions{})
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(f.Dir(), locksName, doubtName))
}
