package adopt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Step is a part of a move. Doing it again, or when it was done in part, is
// right.
type Step struct {
	// What says what it does, in a few words that follow "would".
	What string
	Do   func() error
}

// Steps are the renames of a move and what goes with them.
func (s Store) Steps(m Move) []Step {
	var out []Step
	add := func(what string, do func() error) { out = append(out, Step{what, do}) }
	for _, suffix := range graphSuffixes {
		from, to := filepath.Join(s.Graph, m.From+suffix), filepath.Join(s.Graph, m.To+suffix)
		add(fmt.Sprintf("rename %s to %s", from, filepath.Base(to)), func() error { return rename(from, to) })
	}
	for _, suffix := range runSuffixes {
		from, to := filepath.Join(s.Run, m.From+suffix), filepath.Join(s.Run, m.To+suffix)
		add(fmt.Sprintf("rename %s to %s", from, filepath.Base(to)), func() error { return renameRun(from, to) })
	}
	add("remove notes in the run root "+s.Run, func() error {
		// What a driver found out about this boot, and where layers were mounted:
		// nothing is mounted.
		var failed error
		for _, name := range []string{m.From, m.From + "-locks", m.To, filepath.Join(m.To+"-layers", "mountpoints.json")} {
			failed = errors.Join(failed, os.RemoveAll(filepath.Join(s.Run, name)))
		}
		return failed
	})
	add("change paths in the containers' own files", func() error { return s.rewriteUserdata(m, NewPaths(m, s)) })
	for _, driver := range []string{m.From, m.To} {
		dir := filepath.Join(s.Graph, driver+shifted)
		if _, err := os.Lstat(dir); err == nil {
			add("remove the cache "+dir+", which is made again when it is needed", func() error { return os.RemoveAll(dir) })
		}
	}
	return out
}

// renameRun moves a folder in the run root. Where both are there, nothing that is
// in the way is worth more than what moves: all of it is made again after a
// reboot, too.
func renameRun(from, to string) error {
	list, err := os.ReadDir(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.MkdirAll(to, 0o700)
	}
	for _, e := range list {
		if err == nil {
			err = os.RemoveAll(filepath.Join(to, e.Name()))
		}
		if err == nil {
			err = os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
		}
	}
	if err == nil {
		err = os.Remove(from)
	}
	if err != nil {
		return fmt.Errorf("move folder: %w", err)
	}
	return nil
}

// Carry carries out a move: it notes that it is under way, takes the steps, and removes
// the note. After an error, or if it is killed, the same call, or the one for the
// way back, goes on.
func (s Store) Carry(ctx context.Context, m Move, steps []Step) error {
	if err := writeJournal(s.Graph, m); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %w", err, Unfinished(s.Graph))
		}
		if err := step.Do(); err != nil {
			return fmt.Errorf("%s: %w", step.What, err)
		}
	}
	if err := os.Remove(filepath.Join(s.Graph, JournalName)); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	return syncDir(s.Graph)
}

// rewriteUserdata changes the paths in the files that programs keep with their
// containers: buildah.json, config.json and state.json, whoever reads them.
func (s Store) rewriteUserdata(m Move, p Paths) error {
	for _, driver := range []string{m.To, m.From} {
		for _, root := range []string{s.Graph, s.Run} {
			files, err := filepath.Glob(filepath.Join(globEscape(root), driver+"-containers", "*", "userdata", "*.json"))
			if err != nil {
				return fmt.Errorf("list files of containers: %w", err)
			}
			for _, name := range files {
				if err := p.rewriteFile(name); err != nil {
					return fmt.Errorf("change paths: %w", err)
				}
			}
		}
	}
	return nil
}

// globEscape makes a pattern that matches a path only.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
