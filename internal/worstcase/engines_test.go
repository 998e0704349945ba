package worstcase_test

import (
	"fmt"
	"testing"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/copyup"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/enginetest"
	engineerofs "github.com/shiftoverlay/shiftoverlay/internal/engine/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/idmap"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/internal/erofs"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
)

// engines is every engine in every way that differs in what it reads or makes.
func engines() []engine.Engine {
	return []engine.Engine{
		idmap.Engine{},
		metacopy.Engine{},
		copyup.Engine{},
		engineerofs.Engine{Layout: erofs.Opaque, Via: mount.Loop, Owners: true},
		engineerofs.Engine{Layout: erofs.Opaque, Via: mount.File},
		engineerofs.Engine{Layout: erofs.DataOnly, Via: mount.File, Owners: true},
		engineerofs.Engine{Layout: erofs.DataOnly, Via: mount.File},
	}
}

// TestEngines checks that every engine shows the worst-case image as the kernel
// does.
func TestEngines(t *testing.T) {
	for _, fileSystem := range fileSystems {
		t.Run(fileSystem, func(t *testing.T) { enginetest.WorstCase(t, fileSystem, engines()...) })
	}
}

// each runs a test for each engine.
func each(t *testing.T, test func(t *testing.T, e engine.Engine)) {
	for _, e := range engines() {
		name := e.Name()
		if s, ok := e.(fmt.Stringer); ok {
			name = s.String()
		}
		t.Run(name, func(t *testing.T) { test(t, e) })
	}
}

// TestHostile checks that hostile layers do no harm.
func TestHostile(t *testing.T) {
	each(t, func(t *testing.T, e engine.Engine) { enginetest.Hostile(t, "ext4", e) })
}

// TestRootless does both for the engines of ordinary users.
func TestRootless(t *testing.T) {
	for _, b := range []engine.Builder{metacopy.Engine{}, copyup.Engine{}} {
		e := enginetest.Rootless(b)
		t.Run(e.Name(), func(t *testing.T) {
			enginetest.WorstCase(t, "ext4", e)
			enginetest.Hostile(t, "ext4", e)
		})
	}
}

// TestImmutable checks which engines keep files immutable.
func TestImmutable(t *testing.T) { each(t, enginetest.Immutable) }
