package shiftoverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/shiftoverlay/shiftoverlay/internal/engine/copyup"
	"github.com/shiftoverlay/shiftoverlay/internal/probe"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
)

// copying tells an ordinary user that images are copied for him, and why, once in a
// boot: it takes time and room that nobody expects. Whoever asks for the engine by
// name knows.
type copying struct {
	stamp string // a file that says that it was told
	level logrus.Level
	text  string
}

// newCopying returns nil if nothing is to be told.
func newCopying(runHome string, report probe.Report, state []shifter.EngineState) *copying {
	if !report.Rootless {
		return nil
	}
	reason := ""
	for _, e := range state {
		switch {
		case e.Name == "metacopy":
			reason = e.Refused
		case e.Name == (copyup.Engine{}).Name() && !e.Chosen:
			return nil
		}
	}
	if reason == "" {
		return nil
	}
	c := &copying{stamp: filepath.Join(runHome, "shiftoverlay-told-copying"), level: logrus.WarnLevel}
	c.text = fmt.Sprintf("shiftoverlay: the first start of an image with new user IDs copies the whole image, since an overlay without copies is not possible here: %s. Remedy: Linux 6.16 or later, a graphroot on a file system that shares data (btrfs, xfs), or mount_program = \"/usr/bin/fuse-overlayfs\" in storage.conf", reason)
	if report.Reflink.OK() {
		c.level = logrus.InfoLevel
		c.text = fmt.Sprintf("shiftoverlay: the first start of an image with new user IDs copies its files, which share their data with the image (reflink), since an overlay without copies is not possible here: %s", reason)
	}
	return c
}

// tell says it, unless that was done in this boot. It may be called for nil.
func (c *copying) tell(p shifter.Plan) {
	if c == nil || p.Engine.Name() != (copyup.Engine{}).Name() {
		return
	}
	f, err := os.OpenFile(c.stamp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		logrus.Debugf("shiftoverlay: %v", err)
	}
	logrus.StandardLogger().Log(c.level, c.text)
}
