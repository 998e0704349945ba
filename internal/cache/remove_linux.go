package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// removeDepth is how deep a tree is taken apart for parallel deletion:
	// <trash>/<key>/data/usr/share.
	removeDepth = 4
	// removeTries bounds how often a deletion starts again because somebody
	// (another sweep, MarkDurable) made or took away something in the tree.
	removeTries = 5
)

// removeTree deletes path and everything below it, also folders that their
// owner may not write. Nothing there is no error, and symbolic links are not
// followed.
func removeTree(path string) error {
	var err error
	for range removeTries {
		removeParts(path)
		if err = os.RemoveAll(path); err == nil {
			return nil
		}
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			openFolders(path)
		}
	}
	return err
}

// removeParts deletes the parts of a tree in parallel. Its errors are those
// that the deletion of the whole will show.
func removeParts(path string) {
	parts := make(chan string)
	var workers sync.WaitGroup
	for range min(runtime.NumCPU(), 8) {
		workers.Go(func() {
			for part := range parts {
				_ = os.RemoveAll(part)
			}
		})
	}
	feedParts(path, removeDepth, parts)
	close(parts)
	workers.Wait()
}

// feedParts sends the entries of a tree: those at a depth, and above it those
// that are not folders.
func feedParts(path string, depth int, parts chan<- string) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return
	}
	for _, entry := range entries {
		part := filepath.Join(path, entry.Name())
		if entry.IsDir() && depth > 1 {
			feedParts(part, depth-1, parts)
		} else {
			parts <- part
		}
	}
}

// openFolders gives the owner of a tree all rights to its folders. Root does
// not need it; an ordinary user cannot list a folder of mode 000 of his own.
func openFolders(path string) {
	_ = filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case entry == nil || !entry.IsDir():
			return nil
		case err != nil: // second call: the folder could not be listed
			return fs.SkipDir
		}
		// WalkDir lists the folder after this call, with the new mode.
		_ = os.Chmod(path, 0o700) //nolint:gosec // a folder needs x
		return nil
	})
}
