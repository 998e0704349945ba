package idshift_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// drawExtents draws up to 12 valid extents in any order, some of which may
// continue each other: sizes and gaps on both sides, and the order of the host
// ranges.
func drawExtents(t *rapid.T, label string) idshift.Extents {
	n := rapid.IntRange(1, 12).Draw(t, label+" extents")
	most := uint32(1) << rapid.IntRange(1, 26).Draw(t, label+" magnitude")
	// 12 sizes and gaps of at most 2^26 stay below 2^31.
	start := func(side string) uint32 {
		return rapid.SampledFrom([]uint32{0, 0, 1, 1000, 100000, 1 << 31}).Draw(t, label+side)
	}
	gap := rapid.OneOf(rapid.Just(uint32(0)), rapid.Uint32Range(0, most))
	list := make(idshift.Extents, n)
	at := start(" container start")
	for i := range list {
		at += gap.Draw(t, label+" gap")
		list[i].ContainerID = at
		list[i].Size = rapid.Uint32Range(1, most).Draw(t, label+" size")
		at += list[i].Size
	}
	order := rapid.OneOf(
		rapid.Just(indexes(n)),
		rapid.Permutation(indexes(n)),
	).Draw(t, label+" host order")
	at = start(" host start")
	for _, i := range order {
		at += gap.Draw(t, label+" host gap")
		list[i].HostID = at
		at += list[i].Size
	}
	return rapid.Permutation(list).Draw(t, label+" order")
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func drawMapping(t *rapid.T) idshift.Mapping {
	m, err := idshift.NewMapping(drawExtents(t, "uid"), drawExtents(t, "gid"))
	require.NoError(t, err)
	return m
}

// drawID draws an ID that is likely to be at or near the edge of an extent.
func drawID(t *rapid.T, e idshift.Extents, label string) uint32 {
	x := rapid.SampledFrom(e).Draw(t, label+" extent")
	return rapid.OneOf(
		rapid.Uint32(),
		rapid.Uint32Range(x.ContainerID, x.ContainerID+x.Size-1),
		rapid.SampledFrom([]uint32{x.ContainerID - 1, x.ContainerID, x.ContainerID + x.Size - 1, x.ContainerID + x.Size, 0, 1<<32 - 1}),
	).Draw(t, label)
}

// lookup is ToHost in its most obvious form.
func lookup(e idshift.Extents, id uint32) (uint32, bool) {
	for _, x := range e {
		if id >= x.ContainerID && uint64(id) < uint64(x.ContainerID)+uint64(x.Size) {
			return x.HostID + (id - x.ContainerID), true
		}
	}
	return 0, false
}

func TestPropLookup(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e, err := drawExtents(t, "side").Normalize()
		require.NoError(t, err)
		id := drawID(t, e, "id")
		wantID, wantOK := lookup(e, id)
		host, ok := e.ToHost(id)
		require.Equal(t, wantOK, ok)
		inverted, okInverted := e.Invert().ToContainer(id)
		require.Equal(t, wantOK, okInverted)
		if !ok {
			return
		}
		require.Equal(t, wantID, host)
		require.Equal(t, host, inverted)
		back, ok := e.ToContainer(host)
		require.True(t, ok)
		require.Equal(t, id, back)
		back, ok = e.Invert().ToHost(host)
		require.True(t, ok)
		require.Equal(t, id, back)
	})
}

func TestPropNormalizeIsIdempotent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := drawExtents(t, "side")
		once, err := e.Normalize()
		require.NoError(t, err)
		twice, err := once.Normalize()
		require.NoError(t, err)
		require.Equal(t, once, twice)
		id := drawID(t, e, "id")
		wantID, wantOK := lookup(e, id)
		gotID, gotOK := lookup(once, id)
		require.Equal(t, wantOK, gotOK)
		require.Equal(t, wantID, gotID)
	})
}

func TestPropInvertTwice(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := drawMapping(t)
		inverted := m.Invert()
		require.Equal(t, m, inverted.Invert())
		checked, err := idshift.NewMapping(inverted.UIDs, inverted.GIDs)
		require.NoError(t, err, "an inverted mapping is valid")
		require.Equal(t, checked, inverted, "and normalised")
	})
}

// split cuts extents in pieces and shuffles them: another spelling of the same
// mapping.
func split(t *rapid.T, e idshift.Extents, label string) idshift.Extents {
	var out idshift.Extents
	for _, x := range e {
		for x.Size > 1 && rapid.Bool().Draw(t, label+" split") {
			n := rapid.Uint32Range(1, x.Size-1).Draw(t, label+" at")
			out = append(out, idshift.Extent{ContainerID: x.ContainerID, HostID: x.HostID, Size: n})
			x.ContainerID, x.HostID, x.Size = x.ContainerID+n, x.HostID+n, x.Size-n
		}
		out = append(out, x)
	}
	return rapid.Permutation(out).Draw(t, label+" order")
}

func TestPropSpellingsHaveOneKey(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := drawMapping(t)
		uids, gids := split(t, m.UIDs, "uid"), split(t, m.GIDs, "gid")
		again, err := idshift.NewMapping(uids, gids)
		require.NoError(t, err)
		require.Equal(t, m, again)
		require.Equal(t, m.Key(), again.Key())
		require.Equal(t, m.Key(), idshift.Mapping{UIDs: uids, GIDs: gids}.Key(), "also of a value made by hand")
		parsed, err := idshift.ParseMapping(uids.String(), gids.String())
		require.NoError(t, err)
		require.True(t, parsed.Equal(m))
	})
}

func TestPropKeyEqualIffEqual(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a := drawMapping(t)
		b := idshift.Mapping{UIDs: slices.Clone(a.UIDs), GIDs: slices.Clone(a.GIDs)}
		side := rapid.SampledFrom([]idshift.Extents{b.UIDs, b.GIDs}).Draw(t, "side")
		x := &side[rapid.IntRange(0, len(side)-1).Draw(t, "extent")]
		switch rapid.IntRange(0, 4).Draw(t, "change") {
		case 0:
			x.Size--
		case 1:
			x.HostID++
		case 2:
			x.ContainerID++
		case 3:
			b.UIDs, b.GIDs = b.GIDs, b.UIDs
		}
		require.Equal(t, a.Equal(b), a.Key() == b.Key())
		require.Equal(t, a.Equal(b), b.Equal(a))
	})
}

func TestPropOverlapIsFound(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := drawExtents(t, "side")
		x := rapid.SampledFrom(e).Draw(t, "extent")
		at := x.ContainerID + rapid.Uint32Range(0, x.Size-1).Draw(t, "offset")
		more := idshift.Extent{ContainerID: at, HostID: 4294967294, Size: 1}
		if rapid.Bool().Draw(t, "on the host side") {
			more.ContainerID, more.HostID = 4294967294, x.HostID+(at-x.ContainerID)
		}
		_, err := append(slices.Clone(e), more).Normalize()
		require.ErrorIs(t, err, idshift.ErrOverlap)
		require.ErrorContains(t, err, more.String())
		require.ErrorContains(t, err, x.String())
	})
}
