package idmap_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/idmap"
)

// TestEngine checks the engine that builds nothing.
func TestEngine(t *testing.T) {
	var e engine.Engine = idmap.Engine{}
	_, builds := e.(engine.Builder)
	assert.False(t, builds)
	assert.Equal(t, "idmap", e.Name())
	assert.NoError(t, e.Check(engine.Env{Metacopy: "no"}))
	assert.EqualError(t, e.Check(engine.Env{Idmap: "kernel too old"}), "kernel too old")
	assert.NoError(t, idmap.Engine{}.Avoid(engine.Env{}))
	assert.EqualError(t, idmap.Engine{}.Avoid(engine.Env{IdmapACL: "ACLs"}), "ACLs")
}
