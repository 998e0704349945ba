package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
)

// trimEvery is how often the limits of the cache are looked at, and trimBuilds
// after how many builds at the latest, of a large cache after as many as a
// sixteenth of its entries: it is no more than that beyond its limits, and
// looking at all entries costs each build no more than looking at sixteen.
const (
	trimEvery  = time.Hour
	trimBuilds = 16
	trimPart   = 16
)

// trimStamp is the file that was written when the cache was trimmed, with the
// number of entries left, builtCount one that has a byte for each build since then.
func (s *site) trimStamp() string  { return filepath.Join(s.runHome, "shiftoverlay-trimmed") }
func (s *site) builtCount() string { return filepath.Join(s.runHome, "shiftoverlay-built") }

// countBuild notes that something was added to the cache.
func (s *site) countBuild() {
	f, err := os.OpenFile(s.builtCount(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.Write([]byte{'.'})
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		logrus.Debugf("shiftoverlay: count builds: %v", err)
	}
}

// trimDue tells whether it is time to trim the cache.
func (s *site) trimDue() bool {
	st, err := os.Stat(s.trimStamp())
	return err != nil || time.Since(st.ModTime()) >= trimEvery || s.builtTimes(1)
}

// trimOverdue tells whether it has been time for so long that those who have begun
// to trim the cache cannot have come to their end.
func (s *site) trimOverdue() bool { return s.builtTimes(2) }

// builtTimes tells whether there were n times as many builds as there may be
// without the cache being trimmed.
func (s *site) builtTimes(n int64) bool {
	text, _ := os.ReadFile(s.trimStamp())                // none before the first time
	entries, _ := strconv.ParseInt(string(text), 10, 64) // 0 of an older program
	built, err := os.Stat(s.builtCount())
	return err == nil && built.Size() >= n*max(trimBuilds, entries/trimPart)
}

// toTrim tells whether a driver or mount program is to trim the cache now.
func (s *site) toTrim() bool { return s.cache != nil && !s.managed && s.trimDue() }

// trimCache applies the limits of the cache if it is time to.
func (s *site) trimCache() {
	if s.toTrim() {
		s.trimNow()
	}
}

// trimNow applies the limits of the cache, unless another process does so just
// now. What goes wrong is for the debug log: a cache that is too large is no
// reason to fail. A process that ends meanwhile leaves the rest to the next one, and
// has shortened that by what it removed, but each has to look at all entries first.
func (s *site) trimNow() {
	if err := s.trimOnce(); err != nil {
		logrus.Debugf("shiftoverlay: trim the cache: %v", err)
	}
}

func (s *site) trimOnce() error {
	lock, err := os.OpenFile(filepath.Join(s.runHome, "shiftoverlay-trim.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor
		return fmt.Errorf("somebody else does it: %w", err)
	}
	removed, err := s.cache.Trim(context.Background(), s.trim)
	for _, e := range removed {
		logrus.Debugf("shiftoverlay: trimmed shifted lower %s of layer %s", e.Key, e.Layer)
	}
	left, lerr := s.cache.Len()
	failpoint.Hit("trim-stamp")
	// Also after an error, which the next one would only meet again.
	return errors.Join(err, lerr, os.WriteFile(s.trimStamp(), []byte(strconv.Itoa(left)), 0o600), os.WriteFile(s.builtCount(), nil, 0o600))
}

// orphans tells whether the cache has entries of layers that are gone: nobody
// tells a mount program when an image is removed.
func (s *site) orphans() bool {
	list, _ := os.ReadDir(s.home + cacheSuffix)
	return slices.ContainsFunc(list, func(l os.DirEntry) bool {
		return len(l.Name()) == layerIDLength && !s.layerExists(l.Name())
	})
}

// layerIDLength is the length of the storage library's names for layers.
const layerIDLength = 64
