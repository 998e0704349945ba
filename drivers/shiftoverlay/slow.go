package shiftoverlay

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/term"

	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
)

// extendTimeout is how long systemd is asked to go on waiting for the start of
// a service, each time: much longer than the time between two calls.
const extendTimeout = 30 * time.Second

// slow returns what tells somebody that a start takes long: a person at a
// terminal once, in one line, and systemd again and again.
func (s *site) slow() func(p shifter.Plan, since time.Duration, files int64) {
	told := false
	return func(p shifter.Plan, since time.Duration, files int64) {
		// sd_notify(3); without NOTIFY_SOCKET this does nothing.
		if _, err := daemon.SdNotify(false, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendTimeout.Microseconds())); err != nil {
			logrus.Debugf("shiftoverlay: tell systemd: %v", err)
		}
		if told {
			return
		}
		told = true
		text := s.slowText(p, since, files)
		logrus.Debugf("shiftoverlay: %s", text)
		// A Manager's user has progress bars.
		if !s.managed && term.IsTerminal(int(os.Stderr.Fd())) { //nolint:gosec // a descriptor
			fmt.Fprintln(os.Stderr, text)
		}
	}
}

// slowText is one line about what takes long.
func (s *site) slowText(p shifter.Plan, since time.Duration, files int64) string {
	doing := "waiting for another start that prepares it"
	if files > 0 {
		doing = fmt.Sprintf("%d files in %.1f s", files, since.Seconds())
	}
	return fmt.Sprintf("Preparing %s for its first start with these user IDs (engine %s): %s", s.imageName(p.Layers[0]), p.Engine.Name(), doing)
}

// imageName is the name of the image whose uppermost layer is given, as the
// storage library has noted it (images.go), or else a name of the layer.
func (s *site) imageName(layer string) string {
	var images []struct {
		ID    string   `json:"id"`
		Names []string `json:"names"`
		Layer string   `json:"layer"`
	}
	file := filepath.Join(filepath.Dir(s.home), filepath.Base(s.home)+"-images", "images.json")
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &images) == nil {
		for _, i := range images {
			if i.Layer != layer {
				continue
			}
			if len(i.Names) > 0 {
				return i.Names[0]
			}
			return "image " + i.ID[:min(len(i.ID), 12)]
		}
	}
	return "an image (layer " + layer[:min(len(layer), 12)] + ")"
}
