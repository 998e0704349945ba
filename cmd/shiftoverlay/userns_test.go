package main

import (
	"fmt"
	"testing"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// TestRanges compares sets of IDs with sets of single numbers.
func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (idRanges, map[uint64]bool) {
			var list []idRange
			in := map[uint64]bool{}
			for range rapid.IntRange(0, 5).Draw(t, name) {
				start := rapid.Uint64Range(0, 40).Draw(t, "start")
				end := start + rapid.Uint64Range(0, 10).Draw(t, "size")
				list = append(list, idRange{start, end})
				for i := start; i < end; i++ {
					in[i] = true
				}
			}
			return newRanges(list), in
		}
		a, inA := draw("a")
		b, inB := draw("b")
		var want []uint64
		for i := range uint64(60) {
			if inA[i] && !inB[i] {
				want = append(want, i)
			}
		}
		left := a.minus(b)
		require.EqualValues(t, len(want), left.size())
		n := rapid.IntRange(1, 12).Draw(t, "n")
		extents, rest, ok := left.take(uint64(n))
		require.Equal(t, len(want) >= n, ok)
		if !ok {
			require.Equal(t, left, rest)
			return
		}
		var got []uint64
		for _, e := range extents {
			require.EqualValues(t, len(got), e.ContainerID)
			for i := range e.Size {
				got = append(got, uint64(e.HostID+i))
			}
		}
		require.Equal(t, want[:n], got, "the lowest")
		require.EqualValues(t, len(want)-n, rest.size())
		for _, r := range rest {
			require.Less(t, r.Start, r.End)
			require.Greater(t, r.Start, got[n-1])
		}
	})
}

// TestAutoMappings compares the mappings that warm makes with those that the
// storage library then gives to containers, with gaps in between that are too
// small for one.
func TestAutoMappings(t *testing.T) {
	w := newWorld(t, "metacopy")
	if _, err := idtools.NewIDMappings(storage.RootAutoUserNsUser, storage.RootAutoUserNsUser); err != nil {
		testutil.Skip(t, fmt.Sprintf("needs ranges of user %s: %v", storage.RootAutoUserNsUser, err))
	}
	w.image("localhost/one:latest")
	auto := types.IDMappingOptions{AutoUserNs: true, AutoUserNsOpts: types.AutoUserNsOptions{Size: 1000}}
	var ids []string
	for i := range 4 {
		id, _ := w.container(fmt.Sprint("first", i), "localhost/one:latest", auto)
		w.unmount(id)
		ids = append(ids, id)
	}
	for _, i := range []int{0, 2} {
		require.NoError(t, w.open().DeleteContainer(ids[i]))
	}
	type line struct {
		ID      string
		Built   bool
		Mapping *mappingText
	}
	lines := decode[[]line](w, "warm", "--userns", "auto:size=1500", "--count", "4", "one")
	require.Len(t, lines, 4)
	assert.Len(t, lines[0].Mapping.UIDMap, 2, "the first is in two gaps")
	before := w.list()
	for i, l := range lines {
		assert.True(t, l.Built)
		id, _ := w.container(fmt.Sprint("then", i), "localhost/one:latest", types.IDMappingOptions{
			AutoUserNs: true, AutoUserNsOpts: types.AutoUserNsOptions{Size: 1500},
		})
		c, err := w.open().Container(id)
		require.NoError(t, err)
		m, err := mappingOf(c)
		require.NoError(t, err)
		assert.Equal(t, l.Mapping, textOf(m), "container %d", i)
	}
	after := w.list()
	require.Len(t, after, len(before), "the starts were cache hits")
	users := map[string]string{}
	for _, e := range after {
		for _, c := range e.Containers {
			users[c.Name] = e.ID
		}
	}
	for i, l := range lines {
		assert.Equal(t, l.ID, users[fmt.Sprint("then", i)])
	}
}

// TestRemedy checks that what is refused for a reason that a setting gave names
// that setting.
func TestRemedy(t *testing.T) {
	for reason, want := range map[string]string{
		"the kernel allows EROFS mounts to root only":                                     "rootful",
		"idmapped mounts are disabled by _CONTAINERS_OVERLAY_DISABLE_IDMAP":               "environment",
		`idmapped mounts cannot refuse unmapped IDs (unmapped = "refuse")`:                "overflow",
		"mountopt in storage.conf has metacopy=off, which excludes metacopy=on":           "mountopt",
		"nfs on kernel 4.18 does not allow idmapped mounts: mount_setattr: not supported": "5.19",
	} {
		i := describe(shifter.EngineState{Name: "idmap", Refused: reason}, "")
		assert.False(t, i.Works)
		assert.Contains(t, i.Reason, reason)
		assert.Contains(t, i.Remedy, want)
	}
	i := describe(shifter.EngineState{Name: "idmap", Avoided: "no ACLs"}, "")
	assert.True(t, i.Works)
	assert.Contains(t, i.Remedy, "engine = \"idmap\"")
}
