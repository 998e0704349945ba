//go:build conformance

// Package graphtest runs the storage library's tests of graph drivers on the
// driver that STORAGE_DRIVER names, overlay or ours, on the file system of
// TMPDIR. hack/conformance/suite.sh calls it.
package graphtest

import (
	"os"
	"testing"

	"github.com/containers/storage/drivers/graphtest"
	_ "github.com/containers/storage/drivers/overlay"
	"github.com/containers/storage/pkg/reexec"

	_ "github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

func TestDriver(t *testing.T) {
	name := os.Getenv("STORAGE_DRIVER")
	graphtest.GetDriver(t, name) // the others use it, too
	deepLayerRead := func(n int) func(testing.TB, string, ...string) {
		return func(t testing.TB, name string, options ...string) {
			graphtest.DriverTestDeepLayerRead(t, n, name, options...)
		}
	}
	diffApply := func(n int) func(testing.TB, string, ...string) {
		return func(t testing.TB, name string, options ...string) {
			graphtest.DriverTestDiffApply(t, n, name, options...)
		}
	}
	for _, c := range []struct {
		name string
		test func(t testing.TB, name string, options ...string)
	}{
		{"CreateEmpty", graphtest.DriverTestCreateEmpty},
		{"CreateBase", graphtest.DriverTestCreateBase},
		{"CreateSnap", graphtest.DriverTestCreateSnap},
		{"CreateFromTemplate", graphtest.DriverTestCreateFromTemplate},
		{"DeepLayerRead10", deepLayerRead(10)},
		{"DeepLayerRead128", deepLayerRead(128)},
		{"DiffApply10", diffApply(10)},
		{"DiffApply1000", diffApply(1000)},
		{"Changes", graphtest.DriverTestChanges},
		{"Echo", graphtest.DriverTestEcho},
		{"ListLayers", graphtest.DriverTestListLayers},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, name) })
	}
	graphtest.PutDriver(t)
}
