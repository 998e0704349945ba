package shiftoverlay

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/storage/drivers/graphtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// TestGraphDriver is the storage library's conformance suite, with every
// engine.
func TestGraphDriver(t *testing.T) {
	testutil.RequireRoot(t)
	for _, c := range setups() {
		t.Run(c.name, func(t *testing.T) {
			fs := testutil.LoopFS(t, "ext4", fsSize)
			t.Setenv("TMPDIR", fs) // where the suite makes its stores
			conf := filepath.Join(fs, "shiftoverlay.conf")
			require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "[shiftoverlay]\nengine = %q\n", c.engine), 0o600))
			t.Setenv(config.EnvConf, conf)
			for name, test := range map[string]func(t testing.TB, name string, options ...string){
				"CreateEmpty":        graphtest.DriverTestCreateEmpty,
				"CreateBase":         graphtest.DriverTestCreateBase,
				"CreateSnap":         graphtest.DriverTestCreateSnap,
				"CreateFromTemplate": graphtest.DriverTestCreateFromTemplate,
				"DeepLayerRead": func(t testing.TB, name string, options ...string) {
					graphtest.DriverTestDeepLayerRead(t, 128, name, options...)
				},
				"DiffApply": func(t testing.TB, name string, options ...string) {
					graphtest.DriverTestDiffApply(t, 10, name, options...)
				},
				"Changes":    graphtest.DriverTestChanges,
				"Echo":       graphtest.DriverTestEcho,
				"ListLayers": graphtest.DriverTestListLayers,
			} {
				t.Run(name, func(t *testing.T) {
					t.Cleanup(func() { assert.False(t, t.Skipped(), "the suite skips what it cannot start") })
					test(t, driverName, c.options...)
				})
			}
			assert.Empty(t, mountsBelow(t, fs), "left mounted")
		})
	}
}
