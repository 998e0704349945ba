package shiftoverlay

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/idtools"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	r, err := readRecord(dir)
	require.NoError(t, err)
	assert.Nil(t, r)

	for _, volatile := range []bool{true, false} {
		want := &record{Mapping: mapping(t, threeExtents), Engine: "metacopy", Layer: "top", Key: strings.Repeat("ab", 32)}
		require.NoError(t, writeRecord(dir, want, volatile))
		got, err := readRecord(dir)
		require.NoError(t, err)
		assert.Equal(t, want, got)
		ref, ok := got.ref()
		require.True(t, ok)
		assert.Equal(t, "top", ref.Layer)
		assert.Equal(t, want.Key, ref.Key.String())
	}
	require.NoError(t, writeRecord(dir, &record{Mapping: mapping(t, oneExtent), Engine: "idmap"}, false))
	got, err := readRecord(dir)
	require.NoError(t, err)
	_, ok := got.ref()
	assert.False(t, ok, "idmap uses no entry")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing but the record is left")
	text, err := os.ReadFile(filepath.Join(dir, recordName))
	require.NoError(t, err)
	assert.JSONEq(t, `{"version":1,"uids":[{"container_id":0,"host_id":200000,"size":65536}],"gids":[{"container_id":0,"host_id":200000,"size":65536}],"engine":"idmap"}`, string(text))

	require.Error(t, writeRecord(filepath.Join(dir, "missing"), got, false))
}

func TestRecordSame(t *testing.T) {
	a := record{Mapping: mapping(t, oneExtent), Engine: "metacopy", Layer: "l", Key: "k"}
	assert.True(t, a.same(&record{Version: 7, Mapping: mapping(t, "0:200000:1,1:200001:65535"), Engine: "metacopy", Layer: "l", Key: "k"}))
	for name, change := range map[string]func(r *record){
		"mapping": func(r *record) { r.Mapping = mapping(t, threeExtents) },
		"engine":  func(r *record) { r.Engine = "copyup" },
		"layer":   func(r *record) { r.Layer = "other" },
		"key":     func(r *record) { r.Key = "other" },
	} {
		b := a
		change(&b)
		assert.False(t, a.same(&b), name)
	}
}

func TestBadRecords(t *testing.T) {
	const maps = `"uids":[{"container_id":0,"host_id":1,"size":5}],"gids":[{"container_id":0,"host_id":1,"size":5}]`
	for name, c := range map[string]struct{ text, want string }{
		"empty":           {"", "unexpected end"},
		"cut":             {`{"version":1,"uids":[{"conta`, "unexpected end"},
		"not JSON":        {"mapping", "invalid character"},
		"no version":      {"{" + maps + "}", "version 0"},
		"later version":   {`{"version":2,` + maps + "}", "version 2"},
		"no mapping":      {`{"version":1}`, ""},
		"half a mapping":  {`{"version":1,"uids":[{"container_id":0,"host_id":1,"size":5}]}`, ""},
		"overlap":         {`{"version":1,"uids":[{"container_id":0,"host_id":1,"size":5},{"container_id":4,"host_id":100,"size":5}],"gids":[{"container_id":0,"host_id":1,"size":5}]}`, "4"},
		"negative":        {strings.ReplaceAll(`{"version":1,`+maps+"}", `"host_id":1`, `"host_id":-1`), "-1"},
		"another version": {`{"version":"1"}`, "version"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, recordName)
			require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
			_, err := readRecord(dir)
			require.ErrorContains(t, err, c.want)
			assert.ErrorContains(t, err, file)
		})
	}
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, recordName), 0o700))
	_, err := readRecord(dir)
	assert.Error(t, err, "a folder is no record")
}

func TestMappingOf(t *testing.T) {
	one := []idtools.IDMap{{ContainerID: 0, HostID: 1000, Size: 10}}
	_, given, err := mappingOf(graphdriver.MountOpts{})
	require.NoError(t, err)
	assert.False(t, given)

	m, given, err := mappingOf(graphdriver.MountOpts{UidMaps: one})
	require.NoError(t, err)
	assert.True(t, given)
	assert.Equal(t, idshift.Extents{{ContainerID: 0, HostID: 1000, Size: 10}}, m.UIDs)
	assert.Equal(t, everyID, m.GIDs, "a side without extents is every ID itself")
	m, _, err = mappingOf(graphdriver.MountOpts{GidMaps: one})
	require.NoError(t, err)
	assert.Equal(t, everyID, m.UIDs)

	three := []idtools.IDMap{{ContainerID: 1100, HostID: 700000, Size: 65000}, {ContainerID: 500, HostID: 400500, Size: 600}, {ContainerID: 0, HostID: 300000, Size: 500}}
	m, _, err = mappingOf(graphdriver.MountOpts{UidMaps: three, GidMaps: three})
	require.NoError(t, err)
	assert.True(t, m.Equal(mapping(t, threeExtents)), "order does not matter")
	back, _, err := mappingOf(mapped(m))
	require.NoError(t, err)
	assert.Equal(t, m, back)

	for name, bad := range map[string][]idtools.IDMap{
		"negative":       {{ContainerID: -1, HostID: 0, Size: 1}},
		"too large":      {{ContainerID: 0, HostID: math.MaxUint32 + 1, Size: 1}},
		"empty":          {{ContainerID: 0, HostID: 0, Size: 0}},
		"beyond 32 bits": {{ContainerID: 0, HostID: math.MaxUint32 - 1, Size: 10}},
		"overlap":        {{ContainerID: 0, HostID: 0, Size: 10}, {ContainerID: 5, HostID: 100, Size: 10}},
		"host overlap":   {{ContainerID: 0, HostID: 0, Size: 10}, {ContainerID: 50, HostID: 5, Size: 10}},
	} {
		_, _, err := mappingOf(graphdriver.MountOpts{UidMaps: bad, GidMaps: one})
		assert.Error(t, err, name)
		_, _, err = mappingOf(graphdriver.MountOpts{UidMaps: one, GidMaps: bad})
		assert.Error(t, err, name)
	}
}
