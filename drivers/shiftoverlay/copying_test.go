package shiftoverlay

import (
	"bytes"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"

	"github.com/shiftoverlay/shiftoverlay/internal/engine/copyup"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/internal/probe"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
)

// TestCopying checks who is told what, and how often.
func TestCopying(t *testing.T) {
	refused := []shifter.EngineState{{Name: "metacopy", Refused: "the reason"}, {Name: "copyup", Chosen: true}}
	for name, c := range map[string]struct {
		report probe.Report
		state  []shifter.EngineState
		level  logrus.Level
		words  string
	}{
		"all data":         {probe.Report{Rootless: true, Reflink: "no"}, refused, logrus.WarnLevel, "copies the whole image"},
		"shared data":      {probe.Report{Rootless: true}, refused, logrus.InfoLevel, "reflink"},
		"root":             {probe.Report{Reflink: "no"}, refused, 0, ""},
		"nothing to copy":  {probe.Report{Rootless: true, Reflink: "no"}, []shifter.EngineState{{Name: "metacopy", Chosen: true}, {Name: "copyup"}}, 0, ""},
		"another's choice": {probe.Report{Rootless: true, Reflink: "no"}, []shifter.EngineState{{Name: "metacopy"}, {Name: "copyup", Chosen: true}}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			old := logrus.StandardLogger().Out
			logrus.SetOutput(&out)
			logrus.SetLevel(logrus.InfoLevel)
			defer func() {
				logrus.SetOutput(old)
				logrus.SetLevel(logrus.WarnLevel)
			}()
			n := newCopying(t.TempDir(), c.report, c.state)
			n.tell(shifter.Plan{Engine: metacopy.Engine{}})
			assert.Empty(t, out.String())
			n.tell(shifter.Plan{Engine: copyup.Engine{}})
			if c.words == "" {
				assert.Empty(t, out.String())
				return
			}
			assert.Contains(t, out.String(), "level="+c.level.String())
			assert.Contains(t, out.String(), c.words)
			assert.Contains(t, out.String(), "the reason")
			out.Reset()
			n.tell(shifter.Plan{Engine: copyup.Engine{}})
			assert.Empty(t, out.String(), "once is enough")
		})
	}
}
