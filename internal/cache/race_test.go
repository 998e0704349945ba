package cache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// raceFor returns what tells whether a race goes on: for a while, a tenth of it in
// short runs, and up to a minute until everything has happened that it is about.
func raceFor(while time.Duration, happened ...*atomic.Int64) (racing func() bool) {
	start := time.Now()
	if testing.Short() {
		while /= 10
	}
	return func() bool {
		took := time.Since(start)
		never := func(n *atomic.Int64) bool { return n.Load() == 0 }
		return took < while || took < time.Minute && slices.ContainsFunc(happened, never)
	}
}

// TestAcquireAgainstTrim lets many goroutines use few entries for a short
// time each while others trim everything that is not needed: what Acquire
// returned must be whole and stay until its user is released.
func TestAcquireAgainstTrim(t *testing.T) {
	f := newFixture(t)
	var living sync.Map
	var builds, hits, trimmed, staged atomic.Int64
	racing := raceFor(2*time.Second, &builds, &hits, &trimmed, &staged)
	build := Builder{Build: func(_ context.Context, dir string) error {
		if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "sub/file"), []byte("content"), 0o600)
	}}
	use := func(user string, r Ref) error {
		living.Store(user, true)
		defer living.Delete(user)
		e, err := f.Acquire(t.Context(), r, user, build)
		if err != nil {
			return err
		}
		if e.BuiltNow() {
			builds.Add(1)
		} else {
			hits.Add(1)
		}
		for range 3 {
			text, err := os.ReadFile(filepath.Join(e.Path(), "sub/file"))
			if err != nil {
				return err
			}
			if string(text) != "content" {
				return fmt.Errorf("content is %q", text)
			}
			time.Sleep(100 * time.Microsecond)
		}
		return f.Release(r, user)
	}
	var all sync.WaitGroup
	for worker := range 12 {
		all.Go(func() {
			for i := 0; racing(); i++ {
				// Three entries in two layers, so that folders of layers come and go.
				r := []Ref{ref("a", 1), ref("a", 2), ref("b", 3)}[(i+worker)%3]
				if !assert.NoError(t, use(fmt.Sprintf("%d-%d", worker, i), r)) {
					return
				}
			}
		})
	}
	for range 3 {
		all.Go(func() {
			for racing() {
				removed, err := f.Trim(t.Context(), TrimOptions{MaxAge: 1, MaxSize: 1, UserAlive: func(user string) bool {
					_, ok := living.Load(user)
					return ok
				}})
				if !assert.NoError(t, err) {
					return
				}
				trimmed.Add(int64(len(removed)))
				f.clock.add(time.Second)
			}
		})
	}
	// Layers that nobody uses while they are removed, beside the others.
	all.Go(func() {
		for i := 0; racing(); i++ {
			r := ref("c", 4)
			if !assert.NoError(t, use(fmt.Sprintf("c-%d", i), r)) {
				return
			}
			cleanup, err := f.StageLayerRemoval("c")
			if !assert.NoError(t, err) || !assert.NoError(t, cleanup()) {
				return
			}
			staged.Add(1)
		}
	})
	all.Wait()
	t.Logf("%d builds, %d hits, %d trimmed, %d layers removed", builds.Load(), hits.Load(), trimmed.Load(), staged.Load())
	require.Positive(t, builds.Load())
	require.Positive(t, hits.Load())
	require.Positive(t, trimmed.Load(), "nothing was trimmed: the race did not happen")
	require.Positive(t, staged.Load())
	_, err := f.Trim(t.Context(), TrimOptions{MaxAge: 1, UserAlive: alive()})
	require.NoError(t, err)
	f.clock.add(time.Hour)
	_, err = f.Trim(t.Context(), TrimOptions{MaxAge: 1, UserAlive: alive()})
	require.NoError(t, err)
	require.Empty(t, requireList(t, f.Cache))
	requireNoTemp(t, f.Cache)
}

// TestMarkAgainstTrim marks entries while they are removed: the mark must not
// keep a tree from being deleted, nor land in an entry it was not meant for.
func TestMarkAgainstTrim(t *testing.T) {
	f := newFixture(t)
	r := ref("l", 1)
	deadline := time.Now().Add(300 * time.Millisecond)
	var both sync.WaitGroup
	both.Go(func() {
		for time.Now().Before(deadline) {
			_ = f.MarkDurable(t.Context(), r) // a miss is normal here
		}
	})
	for range 30 {
		f.acquire(r, "u", 1)
		removed, err := f.Trim(t.Context(), TrimOptions{MaxSize: 1, Force: true})
		require.NoError(t, err)
		require.LessOrEqual(t, len(removed), 1)
	}
	both.Wait()
	_, err := f.Trim(t.Context(), TrimOptions{MaxSize: 1, Force: true})
	require.NoError(t, err)
	requireNoTemp(t, f.Cache)
}

// BenchmarkHit measures what a container start pays when its entry is there.
func BenchmarkHit(b *testing.B) {
	c, err := Open(filepath.Join(b.TempDir(), "shifted"), Options{})
	require.NoError(b, err)
	r := ref("l", 1)
	_, err = c.Acquire(b.Context(), r, "u", filesBuilder(1))
	require.NoError(b, err)
	for b.Loop() {
		if _, err := c.Acquire(b.Context(), r, "u", Builder{}); err != nil {
			b.Fatal(err)
		}
	}
}
