package shiftoverlay

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/archive"
	"github.com/containers/storage/pkg/idtools"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
)

// fsSize is the size of the file system of a store, in bytes.
const fsSize = 512 << 20

// TestRoundTrip changes a container at random, makes an image of the change
// and looks at it without a mapping and under another one: the tree is the one
// that the container saw, in every attribute. SHIFT_ROUNDTRIP_N is the number
// of sequences for each of the setups; SHIFT_ROUNDTRIP_SEED repeats them.
func TestRoundTrip(t *testing.T) {
	testutil.RequireRoot(t)
	seed, n := fsop.Sequences(t, 60/len(setups()))
	for _, c := range setups() {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, testutil.LoopFS(t, "ext4", fsSize), c)
			s.image("base", "", fsop.MakeImage)
			s.image("image", "base", func(o fsop.Ops) error {
				return fsop.All(
					func() error { return o.Write("etc/second", "second layer") },
					func() error { return o.Remove("void") },
					func() error { return o.Remove("usr/share/doc/x") },
					func() error { return o.Chown("usr/share", 33, 33) },
				)
			})
			start, operations := time.Now(), 0
			for i := range n {
				if !roundTrip(t, s, c, seed+uint64(i), &operations) {
					return
				}
			}
			require.Positive(t, operations)
			t.Logf("%d sequences, %d operations, %s", n, operations, time.Since(start).Round(time.Millisecond))
		})
	}
}

// roundTrip does one sequence. It counts the operations that were done.
func roundTrip(t *testing.T, s *store, with setup, seed uint64, operations *int) bool {
	t.Helper()
	own, third := mapping(t, oneExtent), mapping(t, threeExtents)
	if seed%3 == 0 {
		own, third = third, own
	}
	c, committed, again := fmt.Sprint("c", seed), fmt.Sprint("n", seed), fmt.Sprint("m", seed)
	defer func() {
		for _, id := range []string{again, committed, c} {
			if s.Exists(id) {
				_ = s.Put(id)
				assert.NoError(t, s.Remove(id))
			}
		}
	}()
	merged := s.container(c, "image", own)
	var log string
	if seed%2 == 0 {
		log = inside(t, merged, with.engine, own, seed, 25)
	} else {
		p := fsop.NewPlayer(fsop.Ops{Root: merged, Mapping: own, NoLowerACL: with.engine == "erofs"}, seed)
		p.Devices = true
		p.Log = func(operation string) { log += operation + "\n" }
		if !assert.NoError(t, p.Play(25)) {
			t.Logf("%s=%d:\n%s", fsop.EnvSeed, seed, log)
			return false
		}
	}
	*operations += strings.Count(log, "\n")
	want := seen(t, merged, &own)
	if seed%5 < 2 {
		require.NoError(t, s.Put(c)) // otherwise a running container is committed
	}
	change := s.diff(c, "image")
	assert.Equal(t, change, s.diff(c, "image"), "two diffs of one container")
	changes, err := s.Changes(c, nil, "image", nil, "")
	require.NoError(t, err)

	s.commit(committed, "image", change)
	plain := s.get(committed, graphdriver.MountOpts{})
	equal(t, want, seen(t, plain, nil), "the container saw != the new image has", ofRoot, beforeEpoch(want))
	sameAsNaive(t, s, changes, plain)
	require.NoError(t, s.Put(committed))

	other := s.container(again, committed, third)
	equal(t, want, seen(t, other, &third), "the container saw != another mapping shows", ofRoot, beforeEpoch(want))
	require.NoError(t, s.Put(again))
	if t.Failed() {
		t.Logf("%s=%d:\n%s", fsop.EnvSeed, seed, log)
		for _, x := range changes {
			t.Log(x.String())
		}
	}
	return !t.Failed()
}

// sameAsNaive compares the changes of a container with those that a comparison
// of the image and the new image finds. It does not look at ACLs, and calls
// directories changed for what is in them; and a file that was touched but not
// changed is none for it.
func sameAsNaive(t *testing.T, s *store, changes []archive.Change, newTree string) {
	t.Helper()
	oldTree := s.get("image", graphdriver.MountOpts{})
	defer func() { require.NoError(t, s.Put("image")) }()
	naive, err := archive.ChangesDirs(newTree, &idtools.IDMappings{}, oldTree, &idtools.IDMappings{})
	require.NoError(t, err)
	ours := make(map[string]archive.ChangeType)
	for _, c := range changes {
		_, twice := ours[c.Path]
		assert.False(t, twice, "changes name %q twice", c.Path)
		ours[c.Path] = c.Kind
	}
	for _, c := range naive {
		kind, ok := ours[c.Path]
		delete(ours, c.Path)
		if !ok && c.Kind == archive.ChangeModify && isDir(filepath.Join(newTree, c.Path)) {
			continue
		}
		if assert.True(t, ok, "not among the changes: %s", c.String()) {
			assert.Equal(t, c.Kind, kind, "%s", c.String())
		}
	}
	for p, kind := range ours {
		if !assert.True(t, kind == archive.ChangeModify, "did not change: %q", p) {
			continue
		}
		_, err := os.Lstat(filepath.Join(oldTree, p))
		assert.NoError(t, err)
	}
}
