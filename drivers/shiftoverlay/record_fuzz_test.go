package shiftoverlay

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// FuzzRecord checks that no record is understood that is not one: what is read
// has a version and a mapping that can be used, and is written as it was read.
func FuzzRecord(f *testing.F) {
	whole, err := json.Marshal(&record{Version: recordVersion, Engine: "erofs", Layer: "l", Key: cache.Key{1}.String(), Mapping: mapping(f, oneExtent)})
	require.NoError(f, err)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":2,"uids":[{"container_id":0,"host_id":0,"size":1}],"gids":[]}`))
	f.Add([]byte(`{"version":1,"uids":[{"container_id":0,"host_id":5,"size":10},{"container_id":3,"host_id":99,"size":1}],"gids":null,"layer":"../..","key":"00"}`))
	dir, again := f.TempDir(), f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, recordName), text, 0o600))
		rec, err := readRecord(dir)
		if err != nil {
			require.Nil(t, rec)
			require.ErrorContains(t, err, recordName)
			return
		}
		require.Equal(t, recordVersion, rec.Version)
		m, err := idshift.NewMapping(rec.UIDs, rec.GIDs)
		require.NoError(t, err)
		require.True(t, m.Equal(rec.Mapping))
		require.NoError(t, writeRecord(again, rec, true))
		back, err := readRecord(again)
		require.NoError(t, err)
		require.True(t, back.same(rec))
		if ref, ok := rec.ref(); ok {
			require.NotEmpty(t, ref.Layer)
			require.Equal(t, rec.Key, ref.Key.String())
		}
	})
}

// FuzzDescription checks that whatever stands with an entry of the cache gives
// an entry that can be listed, and no mapping that is none.
func FuzzDescription(f *testing.F) {
	f.Add([]byte(`{"engine":"erofs","format":2,"layers":["a"],"mapping":{"uids":[{"container_id":0,"host_id":0,"size":1}],"gids":[{"container_id":0,"host_id":0,"size":1}]}}`))
	f.Add([]byte(`{"engine":5}`))
	f.Add([]byte(`{"mapping":{}}`))
	f.Add([]byte(`[]`))
	c, err := cache.Open(f.TempDir(), cache.Options{})
	require.NoError(f, err)
	m := &Manager{d: &Driver{site: site{cache: c}}}
	f.Fuzz(func(t *testing.T, text []byte) {
		e := m.entry(cache.Info{Meta: text})
		if e.Mapping == nil {
			return
		}
		_, err := idshift.NewMapping(e.Mapping.UIDs, e.Mapping.GIDs)
		require.NoError(t, err)
	})
}

// FuzzWarming checks that no name but a living process's own stands for one
// that warms.
func FuzzWarming(f *testing.F) {
	f.Add("warm-1-1")
	f.Add("warm-")
	f.Add("warm--1-5")
	f.Add(WarmUser())
	f.Fuzz(func(t *testing.T, user string) {
		if warming(user) {
			require.Regexp(t, `^warm-[1-9][0-9]*-[0-9]+$`, user)
		}
	})
}
