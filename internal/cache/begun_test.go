package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// begunBuilder builds two files, and can go on when the first is there. It notes what
// it did.
func begunBuilder(state string, did *[]string, fail error) Builder {
	build := func(what string) func(context.Context, string) error {
		return func(_ context.Context, dir string) error {
			*did = append(*did, what)
			if what == "resume" && fail != nil {
				return fail
			}
			if what == "build" {
				if err := os.WriteFile(filepath.Join(dir, "part"), nil, 0o600); err != nil {
					return err
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "part")); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o600)
		}
	}
	return Builder{State: func() (string, error) { return state, nil }, Build: build("build"), Resume: build("resume")}
}

// killBegun starts a build in another process and kills it.
func killBegun(t *testing.T, f *fixture, r Ref) {
	t.Helper()
	cmd := startChild(t, f, r, "begun")
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
}

// TestBegun checks who goes on with a build whose builder was killed.
func TestBegun(t *testing.T) {
	r := ref("l", 1)
	failed := errors.New("cannot go on")
	for name, c := range map[string]struct {
		prepare func(f *fixture) *fixture
		state   string
		fail    error
		want    []string
	}{
		"next":         {state: "same", want: []string{"resume"}},
		"other inodes": {state: "other", want: []string{"build"}},
		"fails":        {state: "same", fail: failed, want: []string{"resume", "build"}},
		"other boot":   {prepare: (*fixture).reboot, state: "same", want: []string{"build"}},
		"others build": {prepare: func(f *fixture) *fixture {
			f.acquire(ref("l", 2), "u", 1)
			_, err := f.Trim(f.t.Context(), TrimOptions{})
			require.NoError(f.t, err)
			return f
		}, state: "same", want: []string{"resume"}},
		"late": {prepare: func(f *fixture) *fixture {
			f.clock.add(begunKept + time.Second)
			f.acquire(ref("l", 2), "u", 1)
			return f
		}, state: "same", want: []string{"build"}},
		"pruned": {prepare: func(f *fixture) *fixture {
			_, err := f.Trim(f.t.Context(), TrimOptions{MaxAge: 1})
			require.NoError(f.t, err)
			requireNoTemp(f.t, f.Cache)
			return f
		}, state: "same", want: []string{"build"}},
		"layer removed": {prepare: func(f *fixture) *fixture {
			cleanup, err := f.StageLayerRemoval("l")
			require.NoError(f.t, err)
			require.NoError(f.t, cleanup())
			names, err := readNames(filepath.Join(f.Dir(), tmpName))
			require.NoError(f.t, err)
			require.Empty(f.t, names)
			return f
		}, state: "same", want: []string{"build"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.clock.add(time.Since(f.clock.now())) // the child has the real one
			killBegun(t, f, r)
			left, err := f.Leftovers()
			require.NoError(t, err)
			for _, path := range left {
				require.Contains(t, path, locksName, "somebody may go on with the build")
			}
			if c.prepare != nil {
				f = c.prepare(f)
			}
			var did []string
			e, err := f.Acquire(t.Context(), r, "u", begunBuilder(c.state, &did, c.fail))
			require.NoError(t, err)
			require.Equal(t, c.want, did)
			require.FileExists(t, filepath.Join(e.Path(), "whole"))
			require.NoFileExists(t, filepath.Join(filepath.Dir(e.Path()), begunName))
			require.Equal(t, []string{"u"}, requireInfo(t, f, r).Users)
			_, err = f.Trim(t.Context(), TrimOptions{})
			require.NoError(t, err)
			requireNoTemp(t, f.Cache)
		})
	}
}

// TestBegunAgain checks that a build that is killed again and again is gone on with
// each time, whatever the killed had written already.
func TestBegunAgain(t *testing.T) {
	f := newFixture(t)
	f.clock.add(time.Since(f.clock.now()))
	r := ref("l", 1)
	for range 3 {
		killBegun(t, f, r)
		names, err := filepath.Glob(filepath.Join(f.Dir(), tmpName, "*", dataName, "part"))
		require.NoError(t, err)
		require.Len(t, names, 1)
		// As one that died while it described what it had built.
		dir := filepath.Dir(filepath.Dir(names[0]))
		require.NoError(t, os.WriteFile(filepath.Join(dir, metaName), []byte("{"), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, usersName, "dead"), nil, 0o600))
	}
	var did []string
	_, err := f.Acquire(t.Context(), r, "u", begunBuilder("same", &did, nil))
	require.NoError(t, err)
	require.Equal(t, []string{"resume"}, did)
	require.Equal(t, []string{"u"}, requireInfo(t, f, r).Users)
}

func requireInfo(t *testing.T, f *fixture, r Ref) Info {
	t.Helper()
	info, err := f.Find(t.Context(), r)
	require.NoError(t, err)
	return info
}
