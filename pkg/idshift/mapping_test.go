package idshift_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// mapping parses a mapping whose sides are the same.
func mapping(tb testing.TB, text string) idshift.Mapping {
	tb.Helper()
	m, err := idshift.ParseMapping(text, text)
	require.NoError(tb, err)
	return m
}

func TestExtentsNormalize(t *testing.T) {
	t.Parallel()
	given := idshift.Extents{{10, 110, 5}, {0, 100, 10}, {30, 0, 1}, {15, 200, 1}}
	want := idshift.Extents{{0, 100, 15}, {15, 200, 1}, {30, 0, 1}}
	got, err := given.Normalize()
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.Equal(t, idshift.Extent{10, 110, 5}, given[0], "the input is not changed")

	_, err = idshift.Extents{}.Normalize()
	require.ErrorIs(t, err, idshift.ErrNoExtents)
	_, err = idshift.Extents{{0, 5, 0}}.Normalize()
	require.EqualError(t, err, "extent 0:5:0: size is zero; an extent maps at least one ID")
	_, err = idshift.Extents{{0, 0, 10}, {100, 9, 1}}.Normalize()
	require.EqualError(t, err, "extent 0:0:10 overlaps extent 100:9:1 in host ID 9")
}

func TestExtentsContinuousOnOneSideOnly(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"0:100:10,10:200:10", "0:100:10,20:110:10"} {
		got, err := idshift.ParseExtents(text)
		require.NoError(t, err)
		assert.Equal(t, text, got.String())
	}
}

func TestExtentsLookup(t *testing.T) {
	t.Parallel()
	short, err := idshift.ParseExtents("0:100000:1000,1000:5:1,1001:101001:64535")
	require.NoError(t, err)
	long, err := idshift.ParseExtents("0:100000:1000,1000:5:1,1001:101001:64535,70000:10:1,80000:20:1,90000:30:1,4294967294:40:1")
	require.NoError(t, err)
	require.Greater(t, len(long), 5, "long enough for the binary search")
	tests := []struct {
		container, host uint32
	}{{0, 100000}, {999, 100999}, {1000, 5}, {1001, 101001}, {65535, 165535}}
	for _, e := range []idshift.Extents{short, long, short.Invert().Invert()} {
		for _, tt := range tests {
			host, ok := e.ToHost(tt.container)
			assert.True(t, ok)
			assert.Equal(t, tt.host, host)
			container, ok := e.ToContainer(tt.host)
			assert.True(t, ok)
			assert.Equal(t, tt.container, container)
		}
		for _, id := range []uint32{65536, 69999, 1<<32 - 1} {
			_, ok := e.ToHost(id)
			assert.False(t, ok, "%d", id)
		}
		for _, id := range []uint32{0, 4, 6, 99999, 101000, 165536, 1<<32 - 1} {
			_, ok := e.ToContainer(id)
			assert.False(t, ok, "%d", id)
		}
	}
	host, ok := long.ToHost(4294967294)
	assert.True(t, ok)
	assert.Equal(t, uint32(40), host)
	_, ok = long.ToHost(70001)
	assert.False(t, ok)

	_, ok = idshift.Extents(nil).ToHost(0)
	assert.False(t, ok)
	above, err := idshift.ParseExtents("10:1:1,12:3:1,14:5:1,16:7:1,18:9:1,20:11:1")
	require.NoError(t, err)
	_, ok = above.ToHost(9)
	assert.False(t, ok, "below the first extent")
}

func TestNewMappingErrors(t *testing.T) {
	t.Parallel()
	one := []idshift.Extent{{0, 1, 1}}
	_, err := idshift.NewMapping(nil, one)
	require.EqualError(t, err, "check uid mapping: mapping has no extents")
	_, err = idshift.NewMapping(one, nil)
	require.EqualError(t, err, "check gid mapping: mapping has no extents")
	_, err = idshift.ParseMapping("0:0:0", "0:0:1")
	require.ErrorIs(t, err, idshift.ErrExtentSize)
	require.ErrorContains(t, err, "parse uid mapping: extent 0:0:0: ")
	_, err = idshift.ParseMapping("0:0:1", "x")
	require.ErrorIs(t, err, idshift.ErrSyntax)
	require.ErrorContains(t, err, "parse gid mapping: extent \"x\": ")
}

func TestMapping(t *testing.T) {
	t.Parallel()
	m, err := idshift.ParseMapping("0:100000:65536", "0:200000:10,10:5:1")
	require.NoError(t, err)
	assert.Equal(t, "uids=0:100000:65536 gids=0:200000:10,10:5:1", m.String())
	assert.False(t, m.IsZero())
	assert.False(t, m.IsIdentity())

	uid, gid, ok := m.ToHost(7, 10)
	assert.True(t, ok)
	assert.Equal(t, [2]uint32{100007, 5}, [2]uint32{uid, gid})
	uid, gid, ok = m.ToContainer(100007, 5)
	assert.True(t, ok)
	assert.Equal(t, [2]uint32{7, 10}, [2]uint32{uid, gid})
	_, _, ok = m.ToHost(7, 11)
	assert.False(t, ok)
	_, _, ok = m.ToHost(65536, 0)
	assert.False(t, ok)
	_, _, ok = m.ToContainer(7, 5)
	assert.False(t, ok)
	_, _, ok = m.ToContainer(100007, 6)
	assert.False(t, ok)

	assert.Equal(t, "uids=100000:0:65536 gids=5:10:1,200000:0:10", m.Invert().String())
	assert.True(t, m.Invert().Invert().Equal(m))

	assert.True(t, idshift.Mapping{}.IsZero())
	assert.False(t, idshift.Mapping{}.IsIdentity())
	assert.True(t, idshift.Mapping{}.Invert().IsZero())
	assert.True(t, mapping(t, "0:0:1000,5000:5000:1").IsIdentity())
	mixed, err := idshift.ParseMapping("0:0:10", "0:1:10")
	require.NoError(t, err)
	assert.False(t, mixed.IsIdentity())
}

func TestMappingEqual(t *testing.T) {
	t.Parallel()
	a := mapping(t, "0:100:20")
	byHand := idshift.Mapping{
		UIDs: idshift.Extents{{10, 110, 10}, {0, 100, 10}},
		GIDs: idshift.Extents{{0, 100, 20}},
	}
	assert.True(t, a.Equal(byHand))
	assert.Equal(t, a.Key(), byHand.Key())
	swapped := idshift.Mapping{UIDs: idshift.Extents{{0, 100, 20}}, GIDs: idshift.Extents{{0, 100, 21}}}
	other := idshift.Mapping{UIDs: swapped.GIDs, GIDs: swapped.UIDs}
	assert.False(t, swapped.Equal(other))
	assert.NotEqual(t, swapped.Key(), other.Key())
	assert.False(t, a.Equal(idshift.Mapping{}))
	assert.True(t, idshift.Mapping{}.Equal(idshift.Mapping{}))
	invalid := idshift.Mapping{UIDs: idshift.Extents{{0, 0, 0}}, GIDs: a.GIDs}
	assert.True(t, invalid.Equal(invalid))
	assert.False(t, invalid.Equal(a))
	assert.NotEqual(t, invalid.Key(), a.Key())
}

func TestMappingJSON(t *testing.T) {
	t.Parallel()
	m, err := idshift.ParseMapping("0:100000:65536", "0:200000:1000,1000:5:1")
	require.NoError(t, err)
	text, err := json.Marshal(m)
	require.NoError(t, err)
	assert.JSONEq(t, `{"uids":[{"container_id":0,"host_id":100000,"size":65536}],
		"gids":[{"container_id":0,"host_id":200000,"size":1000},{"container_id":1000,"host_id":5,"size":1}]}`, string(text))
	var got idshift.Mapping
	require.NoError(t, json.Unmarshal(text, &got))
	assert.Equal(t, m, got)

	// Embedded, the mapping's fields stand among those of the record.
	var record struct {
		Version int `json:"version"`
		idshift.Mapping
	}
	require.NoError(t, json.Unmarshal([]byte(`{"version":1,"uids":[{"container_id":5,"host_id":15,"size":5},
		{"container_id":0,"host_id":10,"size":5}],"gids":null}`), &record))
	assert.Equal(t, 1, record.Version)
	assert.Equal(t, idshift.Extents{{0, 10, 10}}, record.UIDs)
	assert.Nil(t, record.GIDs)

	for text, kind := range map[string]error{
		`{"uids":[{"container_id":0,"host_id":1}]}`:                                                              idshift.ErrExtentSize,
		`{"uids":[{"container_id":4294967295,"host_id":1,"size":1}]}`:                                            idshift.ErrExtentRange,
		`{"uids":[{"container_id":0,"host_id":1,"size":2},{"container_id":1,"host_id":9,"size":1}],"gids":null}`: idshift.ErrOverlap,
	} {
		require.ErrorIs(t, json.Unmarshal([]byte(text), &got), kind, text)
	}
	require.ErrorContains(t, json.Unmarshal([]byte(`{"uids":"0:0:1"}`), &got), "decode mapping: ")
}

func TestKey(t *testing.T) {
	t.Parallel()
	// The key is part of the cache's format: it must never change for a mapping.
	assert.Equal(t, "3e9c708e4998a5dae385ac375d3eb289b2639a651cb6351c52e041edbf0dab5b", mapping(t, "0:100000:65536").Key().String())
	assert.Equal(t, mapping(t, "0:100000:65536").Key(), mapping(t, "1000:101000:64536 , 0:100000:1000").Key())
	assert.NotEqual(t, mapping(t, "0:100000:65536").Key(), mapping(t, "0:100000:65535").Key())
}
