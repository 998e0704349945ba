package podmandb

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"

	_ "github.com/mattn/go-sqlite3" // podman's own
)

// schemaVersion is the one that this package knows (libpod/sqlite_state.go).
const schemaVersion = 1

// documents are the tables with a text in JSON in the column JSON, and their keys.
var documents = [][2]string{
	{"ContainerConfig", "ID"},
	{"ContainerState", "ID"},
	{"PodConfig", "ID"},
	{"PodState", "ID"},
	{"VolumeConfig", "Name"},
	{"VolumeState", "Name"},
}

type sqliteDB string

func (f sqliteDB) Path() string { return string(f) }

// open opens an existing database with podman's options: exclusive transactions,
// on the disk when they end, and patience with others.
func (f sqliteDB) open() (*sql.DB, error) {
	u := url.URL{Scheme: "file", Path: string(f), RawQuery: "mode=rw&_sync=FULL&_foreign_keys=1&_txlock=exclusive&_busy_timeout=10000"}
	db, err := sql.Open("sqlite3", u.String())
	if err != nil {
		return nil, fmt.Errorf("open podman's database %s: %w", f, err)
	}
	return db, nil
}

// Facts implements DB.
func (f sqliteDB) Facts() (facts Facts, err error) {
	db, err := f.open()
	if err != nil {
		return facts, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer func() {
		if err != nil {
			err = fmt.Errorf("read podman's database %s: %w", f, err)
		}
	}()
	var tables int
	if err := db.QueryRow("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'DBConfig'").Scan(&tables); err != nil || tables == 0 {
		return facts, err
	}
	var version int
	err = db.QueryRow("SELECT SchemaVersion, GraphDriver, GraphRoot, RunRoot FROM DBConfig").Scan(&version, &facts.Driver, &facts.GraphRoot, &facts.RunRoot)
	if errors.Is(err, sql.ErrNoRows) {
		return facts, nil
	}
	if err != nil {
		return facts, err
	}
	if version != schemaVersion {
		return facts, fmt.Errorf("its schema has version %d, and this version of shiftoverlay knows %d: nothing was changed", version, schemaVersion)
	}
	return facts, db.QueryRow("SELECT COUNT(*) FROM ContainerConfig").Scan(&facts.Containers)
}

// Change implements DB.
func (f sqliteDB) Change(driver string, rewrite func(string) string) (err error) {
	db, err := f.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.Begin()
	if err == nil {
		if err = changeAll(tx, driver, rewrite); err == nil {
			err = tx.Commit()
		} else {
			err = errors.Join(err, tx.Rollback())
		}
	}
	if err != nil {
		return fmt.Errorf("change podman's database %s: %w", f, err)
	}
	return nil
}

func changeAll(tx *sql.Tx, driver string, rewrite func(string) string) error {
	for _, d := range documents {
		if err := changeTable(tx, d[0], d[1], rewrite); err != nil {
			return fmt.Errorf("table %s: %w", d[0], err)
		}
	}
	_, err := tx.Exec("UPDATE DBConfig SET GraphDriver = ?", driver)
	return err
}

// changeTable changes the documents of one table.
func changeTable(tx *sql.Tx, table, key string, rewrite func(string) string) (err error) {
	rows, err := tx.Query("SELECT " + key + ", JSON FROM " + table) //nolint:gosec // names of ours
	if err != nil {
		return err
	}
	changed := map[string]string{}
	for rows.Next() {
		var id, text string
		if err := rows.Scan(&id, &text); err != nil {
			return errors.Join(err, rows.Close())
		}
		if now := rewrite(text); now != text {
			changed[id] = now
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for id, text := range changed {
		if _, err := tx.Exec("UPDATE "+table+" SET JSON = ? WHERE "+key+" = ?", text, id); err != nil { //nolint:gosec // names of ours
			return err
		}
	}
	return nil
}
