package shiftoverlay

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
)

// trimEvery is how often the limits of the cache are looked at.
const trimEvery = time.Hour

// trimCache applies the limits of the cache, at most once in trimEvery over
// all processes. What goes wrong is for the debug log: a cache that is too
// large is no reason to fail.
func (d *Driver) trimCache() {
	if d.cache == nil || d.managed {
		return
	}
	stamp := filepath.Join(d.runHome, "shiftoverlay-trimmed")
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < trimEvery {
		return
	}
	if err := os.WriteFile(stamp, nil, 0o600); err != nil {
		logrus.Debugf("shiftoverlay: trim the cache: %v", err)
		return
	}
	removed, err := d.cache.Trim(context.Background(), d.trim)
	if err != nil {
		logrus.Debugf("shiftoverlay: trim the cache: %v", err)
	}
	for _, e := range removed {
		logrus.Debugf("shiftoverlay: trimmed shifted lower %s of layer %s", e.Key, e.Layer)
	}
}
