package shiftoverlay

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
)

// trimEvery is how often the limits of the cache are looked at.
const trimEvery = time.Hour

// trimStamp is the file that was written when the cache was trimmed.
func (s *site) trimStamp() string { return filepath.Join(s.runHome, "shiftoverlay-trimmed") }

// trimDue tells whether it is time to trim the cache.
func (s *site) trimDue() bool {
	st, err := os.Stat(s.trimStamp())
	return err != nil || time.Since(st.ModTime()) >= trimEvery
}

// trimCache applies the limits of the cache, at most once in trimEvery over
// all processes.
func (s *site) trimCache() {
	if s.cache != nil && !s.managed && s.trimDue() {
		s.trimNow()
	}
}

// trimNow applies the limits of the cache. What goes wrong is for the debug log:
// a cache that is too large is no reason to fail.
func (s *site) trimNow() {
	if err := os.WriteFile(s.trimStamp(), nil, 0o600); err != nil {
		logrus.Debugf("shiftoverlay: trim the cache: %v", err)
		return
	}
	removed, err := s.cache.Trim(context.Background(), s.trim)
	if err != nil {
		logrus.Debugf("shiftoverlay: trim the cache: %v", err)
	}
	for _, e := range removed {
		logrus.Debugf("shiftoverlay: trimmed shifted lower %s of layer %s", e.Key, e.Layer)
	}
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
