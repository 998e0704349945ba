package podmandb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Facts are what a database says of itself.
type Facts struct {
	// Driver is the graph driver, "" if podman has not noted one yet.
	Driver string
	// GraphRoot and RunRoot are the store's, as podman writes them.
	GraphRoot, RunRoot string
	// Containers is how many containers it knows.
	Containers int
}

// DB is a database of podman's. Nothing is kept open between calls.
type DB interface {
	// Path is the file.
	Path() string
	// Facts reads the database.
	Facts() (Facts, error)
	// Change sets the graph driver and passes every text that may hold paths
	// through rewrite, all or nothing.
	Change(driver string, rewrite func(string) string) error
}

// Find returns the databases of a store: where podman puts them unless
// containers.conf has another static_dir, and, if extra is not "", that file.
// (podman uses bolt_state.db if there is one; one of version 5 or later
// otherwise db.sql.)
func Find(graph, run, extra string) ([]DB, error) {
	names := []string{
		filepath.Join(graph, "db.sql"), filepath.Join(graph, "libpod", "db.sql"), filepath.Join(run, "db.sql"),
		filepath.Join(graph, "libpod", "bolt_state.db"), filepath.Join(run, "libpod", "bolt_state.db"),
	}
	if extra != "" {
		if _, err := os.Stat(extra); err != nil {
			return nil, fmt.Errorf("find podman's database: %w", err)
		}
		names = append(names, extra)
	}
	var out []DB
	var seen []os.FileInfo
next:
	for _, name := range names {
		st, err := os.Stat(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find podman's database: %w", err)
		}
		for _, s := range seen {
			if os.SameFile(s, st) {
				continue next
			}
		}
		seen = append(seen, st)
		if filepath.Ext(name) == ".db" {
			out = append(out, boltDB(name))
		} else {
			out = append(out, sqliteDB(name))
		}
	}
	return out, nil
}
