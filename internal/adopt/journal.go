package adopt

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// JournalName is the file in the graph root that says that a move is under way.
const JournalName = "shiftoverlay-adopt.json"

// journalVersion is the version of the file's format.
const journalVersion = 1

// Move is a change of drivers, by their names.
type Move struct {
	From string `json:"from"`
	To   string `json:"to"`
}

type journal struct {
	Version int `json:"version"`
	Move
}

// UnfinishedError says that a move did not come to its end.
type UnfinishedError struct {
	Move
	Graph string
}

func (e *UnfinishedError) Error() string {
	return fmt.Sprintf("the move of the store %s from driver %s to %s did not come to its end: run `shiftoverlay adopt` to have the store for driver shiftoverlay, or `shiftoverlay adopt --back` for overlay",
		e.Graph, e.From, e.To)
}

// Unfinished returns an UnfinishedError if a move of the store whose graph root
// is given has begun and not ended.
func Unfinished(graph string) error {
	name := filepath.Join(graph, JournalName)
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	var j journal
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("read journal %s: %w", name, err)
	}
	if j.Version != journalVersion {
		return fmt.Errorf("journal %s has version %d, which is not known to this version of shiftoverlay (%d)", name, j.Version, journalVersion)
	}
	return &UnfinishedError{Move: j.Move, Graph: graph}
}

// writeJournal has the journal on the disk when it returns.
func writeJournal(graph string, m Move) error {
	b, err := json.Marshal(journal{journalVersion, m})
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return replaceFile(filepath.Join(graph, JournalName), append(b, '\n'), 0o600)
}

// aside is where a file is written before it takes its place. Always the same
// name, so that what a crash has left is written over.
func aside(name string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
}

// Tidy removes what a crash has left of a journal that was never in place. The
// caller holds the store's locks.
func (s Store) Tidy() error { return removeAside(filepath.Join(s.Graph, JournalName)) }

func removeAside(name string) error {
	if err := os.Remove(aside(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what a crash has left: %w", err)
	}
	return nil
}

// replaceFile puts a file in place in one piece, and to the disk.
func replaceFile(name string, b []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(aside(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// syncDir has the names in a folder on the disk when it returns.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
