// Package idmap is the engine that builds nothing: overlay mounts the image's
// layers through idmapped mounts of the kernel (mount_setattr(2),
// MOUNT_ATTR_IDMAP; overlay takes them as lowers since 5.19).
package idmap

import (
	"errors"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
)

// Engine is the idmap engine.
type Engine struct{}

var _ engine.Lossy = Engine{}

// Name implements engine.Engine.
func (Engine) Name() string { return "idmap" }

// Check implements engine.Engine.
func (Engine) Check(env engine.Env) error {
	if env.Idmap != "" {
		return errors.New(env.Idmap)
	}
	return nil
}

// Avoid implements engine.Lossy: before Linux 6.2 overlay gives the container
// the layers' ACLs with IDs that the kernel has not mapped.
func (Engine) Avoid(env engine.Env) error {
	if env.IdmapACL != "" {
		return errors.New(env.IdmapACL)
	}
	return nil
}
