package cache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// keys returns the first byte of each entry's key.
func keys(infos []Info) []byte {
	var list []byte
	for _, info := range infos {
		list = append(list, info.Key[0])
	}
	return list
}

func alive(users ...string) func(string) bool {
	set := make(map[string]bool)
	for _, user := range users {
		set[user] = true
	}
	return func(user string) bool { return set[user] }
}

func TestTrim(t *testing.T) {
	const n = 25 // files in each entry
	// Entries 1, 2, 3 in one layer and 4 in another, one hour between them,
	// used in the order 2, 3, 4, 1. User u<i> has entry i.
	setup := func(t *testing.T) *fixture {
		t.Helper()
		f := newFixture(t)
		for _, i := range []byte{1, 2, 3, 4, 1} {
			f.clock.add(time.Hour)
			layer := "a"
			if i == 4 {
				layer = "b"
			}
			f.acquire(ref(layer, i), fmt.Sprintf("u%d", i), n)
		}
		return f
	}
	const half = 1 // of an entry; what that is in bytes depends on the file system
	tests := []struct {
		name string
		o    TrimOptions // MaxSize in halves of an entry
		gone []byte
	}{
		{"nothing asked", TrimOptions{UserAlive: alive()}, nil},
		{"no opinion on users keeps all", TrimOptions{MaxAge: 1, MaxSize: half}, nil},
		{"age", TrimOptions{UserAlive: alive(), MaxAge: 2 * time.Hour}, []byte{2, 3}},
		{"age of all", TrimOptions{UserAlive: alive(), MaxAge: 1}, []byte{2, 3, 4}},
		{"age and user", TrimOptions{UserAlive: alive("u2"), MaxAge: 2 * time.Hour}, []byte{3}},
		{"user of another entry", TrimOptions{UserAlive: alive("u4", "zz"), MaxAge: 2 * time.Hour}, []byte{2, 3}},
		{"age forced", TrimOptions{UserAlive: alive("u2"), MaxAge: 2 * time.Hour, Force: true}, []byte{2, 3}},
		{"size", TrimOptions{UserAlive: alive(), MaxSize: 5 * half}, []byte{2, 3}},
		{"size enough", TrimOptions{UserAlive: alive(), MaxSize: 8 * half}, nil},
		{"size and user", TrimOptions{UserAlive: alive("u2", "u4"), MaxSize: 5 * half}, []byte{3, 1}},
		{"size of all", TrimOptions{UserAlive: alive(), MaxSize: half}, []byte{2, 3, 4, 1}},
		{"size but all needed", TrimOptions{UserAlive: alive("u1", "u2", "u3", "u4"), MaxSize: half}, nil},
		{"size forced", TrimOptions{MaxSize: 5 * half, Force: true}, []byte{2, 3}},
		{"layer", TrimOptions{UserAlive: alive("u4"), LayerExists: alive("b")}, []byte{2, 3, 1}},
		{"layer and user", TrimOptions{UserAlive: alive("u1"), LayerExists: alive()}, []byte{2, 3, 4}},
		{"layer forced", TrimOptions{LayerExists: alive("a"), Force: true}, []byte{4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := setup(t)
			tt.o.MaxSize *= requireList(t, f.Cache)[0].Bytes / 2
			removed, err := f.Trim(t.Context(), tt.o)
			require.NoError(t, err)
			require.Equal(t, tt.gone, keys(removed))
			left := requireList(t, f.Cache)
			require.Len(t, left, 4-len(tt.gone))
			for _, info := range removed {
				require.NoDirExists(t, f.path(info.Ref))
				require.Greater(t, info.Bytes, int64(n*4096))
			}
			for _, info := range left {
				user := fmt.Sprintf("u%d", info.Key[0])
				if tt.o.UserAlive == nil || tt.o.UserAlive(user) {
					require.Equal(t, []string{user}, info.Users)
				} else {
					require.Empty(t, info.Users, "dead users are forgotten")
				}
				e, err := f.Acquire(t.Context(), info.Ref, "new", noBuild(t))
				require.NoError(t, err)
				require.FileExists(t, filepath.Join(e.Path(), "0"))
			}
			if len(left) == 0 {
				names, err := readNames(f.Dir())
				require.NoError(t, err)
				require.ElementsMatch(t, []string{tmpName, locksName}, names, "no empty folder of a layer is left")
			}
			requireNoTemp(t, f.Cache)
		})
	}
}

// TestTrimDisposable: what is made again in no time goes first when there is
// too much, but not before what goes for another reason.
func TestTrimDisposable(t *testing.T) {
	const half = 1 // of an entry
	tests := []struct {
		name string
		o    TrimOptions // MaxSize in halves of an entry
		gone []byte
	}{
		{"one", TrimOptions{MaxSize: 7 * half}, []byte{2}},
		{"all that are", TrimOptions{MaxSize: 5 * half}, []byte{2, 4}},
		{"others, too", TrimOptions{MaxSize: 3 * half}, []byte{2, 4, 1}},
		{"needed", TrimOptions{MaxSize: 7 * half, UserAlive: alive("u2")}, []byte{4}},
		{"age made room", TrimOptions{MaxSize: 7 * half, MaxAge: 4 * time.Hour}, []byte{1}},
		{"age alone", TrimOptions{MaxAge: 2 * time.Hour}, []byte{1, 2, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			for _, i := range []byte{1, 2, 3, 4} { // an hour between them, 1 is the oldest
				f.clock.add(time.Hour)
				b := filesBuilder(25)
				b.Disposable = i%2 == 0
				_, err := f.Acquire(t.Context(), ref("l", i), fmt.Sprintf("u%d", i), b)
				require.NoError(t, err)
			}
			f.clock.add(time.Hour)
			infos := requireList(t, f.Cache)
			for _, info := range infos {
				require.Equal(t, info.Key[0]%2 == 0, info.Disposable)
			}
			if tt.o.UserAlive == nil {
				tt.o.UserAlive = alive()
			}
			tt.o.MaxSize *= infos[0].Bytes / 2
			removed, err := f.Trim(t.Context(), tt.o)
			require.NoError(t, err)
			require.Equal(t, tt.gone, keys(removed))
			requireNoTemp(t, f.Cache)
		})
	}
}

func TestTrimUnusable(t *testing.T) {
	f := newFixture(t)
	f.acquire(ref("l", 1), "dead", 1)
	f.acquire(ref("l", 2), "stopped", 1)
	f.acquire(ref("l", 3), "dead", 1)
	require.NoError(t, f.MarkDurable(t.Context(), ref("l", 3)))
	g := f.reboot()
	removed, err := g.Trim(t.Context(), TrimOptions{UserAlive: alive("stopped")})
	require.NoError(t, err)
	require.Equal(t, []byte{1}, keys(removed))
	require.Equal(t, []byte{2, 3}, keys(requireList(t, g.Cache)))
}

func TestTrimGoesOnAfterAnError(t *testing.T) {
	f := newFixture(t)
	f.acquire(ref("l", 1), "u", 1)
	f.acquire(ref("l", 2), "u", 1)
	user := filepath.Join(f.path(ref("l", 1)), usersName, "u")
	require.NoError(t, os.Remove(user))
	require.NoError(t, os.Mkdir(user, 0o700)) // EISDIR
	removed, err := f.Trim(t.Context(), TrimOptions{UserAlive: alive(), MaxSize: 1})
	require.ErrorContains(t, err, ref("l", 1).String())
	require.Equal(t, []byte{2}, keys(removed))
}

func TestTrimCancelled(t *testing.T) {
	f := newFixture(t)
	f.acquire(ref("l", 1), "u", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	removed, err := f.Trim(ctx, TrimOptions{UserAlive: alive(), MaxSize: 1})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, removed)
	require.Len(t, requireList(t, f.Cache), 1)
}

func TestTrimLeavesWhatIsBeingAcquired(t *testing.T) {
	f := newFixture(t)
	r := ref("l", 1)
	f.acquire(r, "u", 1)
	fd, err := f.openEntry(t.Context(), r, 1 /* LOCK_SH */)
	require.NoError(t, err)
	removed, err := f.Trim(t.Context(), TrimOptions{UserAlive: alive(), MaxSize: 1})
	require.NoError(t, err)
	require.Empty(t, removed)
	unlock(fd)
	removed, err = f.Trim(t.Context(), TrimOptions{UserAlive: alive(), MaxSize: 1})
	require.NoError(t, err)
	require.Len(t, removed, 1)
}

func TestStageLayerRemoval(t *testing.T) {
	f := newFixture(t)
	f.acquire(ref("a", 1), "u", 3)
	f.acquire(ref("a", 2), "u", 3)
	f.acquire(ref("b", 3), "u", 3)
	e := f.acquire(ref("a", 1), "u", 0)
	require.NoError(t, os.Chmod(e.Path(), 0o000))

	cleanup, err := f.StageLayerRemoval("a")
	require.NoError(t, err)
	require.Equal(t, []byte{3}, keys(requireList(t, f.Cache)), "gone at once")
	// Until the clean-up it belongs to this process.
	f.acquire(ref("b", 4), "u", 1)
	names, err := readNames(filepath.Join(f.Dir(), tmpName))
	require.NoError(t, err)
	require.Len(t, names, 2)
	// A new entry of the same name is not what is deleted.
	f.acquire(ref("a", 1), "u", 1)
	require.NoError(t, cleanup())
	require.NoError(t, cleanup())
	require.False(t, f.acquire(ref("a", 1), "u", 1).BuiltNow())
	requireNoTemp(t, f.Cache)
}

// TestStageLayerRemovalSweeps: a builder that is killed when it has published leaves
// its locks, and nobody builds after it.
func TestStageLayerRemovalSweeps(t *testing.T) {
	f := newFixture(t)
	f.acquire(ref("a", 1), "u", 3)
	for _, name := range []string{f.keyLock(Key{1, 0xab}), filepath.Join(f.Dir(), tmpName, "DEAD"+lockSuffix)} {
		require.NoError(t, os.WriteFile(name, nil, 0o600))
	}
	living, err := f.newTemp()
	require.NoError(t, err)
	cleanup, err := f.StageLayerRemoval("a")
	require.NoError(t, err)
	require.NoError(t, cleanup())
	names, err := readNames(filepath.Join(f.Dir(), tmpName))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Base(living.path) + lockSuffix}, names)
	require.NoError(t, living.remove())
	requireNoTemp(t, f.Cache)
}

func TestRemoveTree(t *testing.T) {
	root := t.TempDir()
	tree := filepath.Join(root, "tree")
	require.NoError(t, removeTree(tree), "nothing there")
	for _, dir := range []string{"a/b/c/d/e/f", "a/b/x", "empty", "a/0"} {
		require.NoError(t, os.MkdirAll(filepath.Join(tree, dir), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(tree, dir, "file"), nil, 0o000))
	}
	outside := filepath.Join(root, "outside")
	require.NoError(t, os.MkdirAll(filepath.Join(outside, "keep"), 0o700))
	require.NoError(t, os.Symlink(outside, filepath.Join(tree, "a/link")))
	for _, dir := range []string{"a/b/c/d/e/f", "a/b/c", "a/0", "a", "."} {
		require.NoError(t, os.Chmod(filepath.Join(tree, dir), 0o000))
	}
	require.NoError(t, removeTree(tree))
	require.NoDirExists(t, tree)
	require.DirExists(t, filepath.Join(outside, "keep"))

	file := filepath.Join(root, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o000))
	require.NoError(t, removeTree(file))
	require.NoFileExists(t, file)
}
