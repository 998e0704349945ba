package podmandb

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

func shift(text string) string {
	return strings.ReplaceAll(text, `"/graph/overlay/`, `"/graph/shiftoverlay/`)
}

// newSqlite makes a database with the tables of podman 5.6.2, as far as they matter.
func newSqlite(t *testing.T, name, driver string, version int) *sql.DB {
	t.Helper()
	if filepath.IsAbs(name) { // else it is a URL
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
	}
	db, err := sql.Open("sqlite3", name)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	for _, text := range []string{
		`CREATE TABLE DBConfig(ID INTEGER PRIMARY KEY NOT NULL, SchemaVersion INTEGER NOT NULL, OS TEXT NOT NULL, StaticDir TEXT NOT NULL,
			TmpDir TEXT NOT NULL, GraphRoot TEXT NOT NULL, RunRoot TEXT NOT NULL, GraphDriver TEXT NOT NULL, VolumeDir TEXT NOT NULL, CHECK (ID IN (1)))`,
		`CREATE TABLE ContainerConfig(ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT NOT NULL,
			FOREIGN KEY (ID) REFERENCES ContainerState(ID) DEFERRABLE INITIALLY DEFERRED)`,
		`CREATE TABLE ContainerState(ID TEXT PRIMARY KEY NOT NULL, State INTEGER NOT NULL, ExitCode INTEGER, JSON TEXT NOT NULL,
			FOREIGN KEY (ID) REFERENCES ContainerConfig(ID) DEFERRABLE INITIALLY DEFERRED)`,
		`CREATE TABLE PodConfig(ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, JSON TEXT NOT NULL)`,
		`CREATE TABLE PodState(ID TEXT PRIMARY KEY NOT NULL, InfraContainerID TEXT, JSON TEXT NOT NULL)`,
		`CREATE TABLE VolumeConfig(Name TEXT PRIMARY KEY NOT NULL, StorageID TEXT, JSON TEXT NOT NULL)`,
		`CREATE TABLE VolumeState(Name TEXT PRIMARY KEY NOT NULL, JSON TEXT NOT NULL)`,
		`INSERT INTO ContainerConfig VALUES ('c1', 'one', NULL, '{"staticDir":"/graph/overlay/c1","env":"/graph/overlay"}'), ('c2', 'two', NULL, '{}')`,
		`INSERT INTO ContainerState VALUES ('c1', 5, 0, '{"mountpoint":"/graph/overlay/m"}'), ('c2', 5, 0, '{}')`,
		`INSERT INTO VolumeState VALUES ('v', '{"mountPoint":"/graph/overlay/v"}')`,
	} {
		_, err := db.Exec(text)
		require.NoError(t, err, text)
	}
	if driver != "" {
		_, err = db.Exec(`INSERT INTO DBConfig VALUES (1, ?, 'linux', '/graph/libpod', '/tmp', '/graph', '/run', ?, '/graph/volumes')`, version, driver)
		require.NoError(t, err)
	}
	return db
}

func get(t *testing.T, db *sql.DB, query string) (out []string) {
	t.Helper()
	rows, err := db.Query(query)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var s string
		require.NoError(t, rows.Scan(&s))
		out = append(out, s)
	}
	require.NoError(t, rows.Err())
	return out
}

// find returns the one database of a store.
func find(t *testing.T, dir string) DB {
	t.Helper()
	dbs, err := Find(dir, filepath.Join(dir, "run"), "")
	require.NoError(t, err)
	require.Len(t, dbs, 1)
	return dbs[0]
}

func TestSqlite(t *testing.T) {
	dir := t.TempDir()
	// A name that a URL would take for something else.
	dir = filepath.Join(dir, "a?b#c%41")
	require.NoError(t, os.Mkdir(dir, 0o700))
	raw := newSqlite(t, "file:"+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(filepath.Join(dir, "db.sql")), "overlay", 1)
	db := find(t, dir)
	facts, err := db.Facts()
	require.NoError(t, err)
	assert.Equal(t, Facts{Driver: "overlay", GraphRoot: "/graph", RunRoot: "/run", Containers: 2}, facts)
	for range 2 { // it may be done again
		require.NoError(t, db.Change("shiftoverlay", shift))
		assert.Equal(t, []string{"shiftoverlay"}, get(t, raw, "SELECT GraphDriver FROM DBConfig"))
		assert.Equal(t, []string{`{"staticDir":"/graph/shiftoverlay/c1","env":"/graph/overlay"}`, "{}"}, get(t, raw, "SELECT JSON FROM ContainerConfig ORDER BY ID"))
		assert.Equal(t, []string{`{"mountpoint":"/graph/shiftoverlay/m"}`, "{}"}, get(t, raw, "SELECT JSON FROM ContainerState ORDER BY ID"))
		assert.Equal(t, []string{`{"mountPoint":"/graph/shiftoverlay/v"}`}, get(t, raw, "SELECT JSON FROM VolumeState"))
	}
}

func TestSqliteAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	raw := newSqlite(t, filepath.Join(dir, "db.sql"), "overlay", 1)
	_, err := raw.Exec("DROP TABLE VolumeState") // the last one
	require.NoError(t, err)
	require.ErrorContains(t, find(t, dir).Change("shiftoverlay", shift), "VolumeState")
	assert.Equal(t, []string{"overlay"}, get(t, raw, "SELECT GraphDriver FROM DBConfig"))
	assert.Equal(t, []string{`{"mountpoint":"/graph/overlay/m"}`, "{}"}, get(t, raw, "SELECT JSON FROM ContainerState ORDER BY ID"))
}

func TestSqliteOfAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	newSqlite(t, filepath.Join(dir, "db.sql"), "overlay", 2)
	_, err := find(t, dir).Facts()
	require.ErrorContains(t, err, "version 2")
}

func TestSqliteWithoutContent(t *testing.T) {
	dir := t.TempDir()
	newSqlite(t, filepath.Join(dir, "db.sql"), "", 1)
	facts, err := find(t, dir).Facts()
	require.NoError(t, err)
	assert.Equal(t, Facts{}, facts)
	dir = t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "db.sql"), nil, 0o600))
	facts, err = find(t, dir).Facts()
	require.NoError(t, err)
	assert.Equal(t, Facts{}, facts)
}

func TestBolt(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "libpod", "bolt_state.db")
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
	raw, err := bbolt.Open(name, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, raw.Update(func(tx *bbolt.Tx) error {
		conf, err1 := tx.CreateBucket([]byte("runtime-config"))
		all, err2 := tx.CreateBucket([]byte("all-ctrs"))
		ctrs, err3 := tx.CreateBucket([]byte("ctr"))
		require.NoError(t, errors.Join(err1, err2, err3))
		ctr, err := ctrs.CreateBucket([]byte("c1"))
		require.NoError(t, err)
		return errors.Join(
			conf.Put([]byte("graph-driver-name"), []byte("overlay")), conf.Put([]byte("graph-root"), []byte("/graph")), conf.Put([]byte("run-root"), []byte("/run")),
			all.Put([]byte("c1"), []byte("one")),
			ctr.Put([]byte("config"), []byte(`{"staticDir":"/graph/overlay/c1"}`)), ctr.Put([]byte("state"), []byte(`{}`)),
		)
	}))
	require.NoError(t, raw.Close())
	db := find(t, dir)
	facts, err := db.Facts()
	require.NoError(t, err)
	assert.Equal(t, Facts{Driver: "overlay", GraphRoot: "/graph", RunRoot: "/run", Containers: 1}, facts)
	for range 2 {
		require.NoError(t, db.Change("shiftoverlay", shift))
		raw, err = bbolt.Open(name, 0o600, nil)
		require.NoError(t, err)
		require.NoError(t, raw.View(func(tx *bbolt.Tx) error {
			assert.Equal(t, "shiftoverlay", string(tx.Bucket([]byte("runtime-config")).Get([]byte("graph-driver-name"))))
			ctr := tx.Bucket([]byte("ctr")).Bucket([]byte("c1"))
			assert.Equal(t, `{"staticDir":"/graph/shiftoverlay/c1"}`, string(ctr.Get([]byte("config"))))
			assert.Equal(t, `{}`, string(ctr.Get([]byte("state"))))
			return nil
		}))
		require.NoError(t, raw.Close())
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	dbs, err := Find(dir, dir, "")
	require.NoError(t, err)
	assert.Empty(t, dbs)
	_, err = Find(dir, dir, filepath.Join(dir, "nowhere"))
	require.ErrorIs(t, err, os.ErrNotExist)
	name := filepath.Join(dir, "db.sql")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	dbs, err = Find(dir, dir, name) // one file by three names
	require.NoError(t, err)
	assert.Equal(t, []DB{sqliteDB(name)}, dbs)
}
