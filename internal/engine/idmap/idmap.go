// Package idmap is the engine that builds nothing: overlay mounts the image's
// layers through idmapped mounts of the kernel (mount_setattr(2),
// MOUNT_ATTR_IDMAP; overlay takes them as lowers since 5.19).
package idmap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
)

// Engine is the idmap engine.
type Engine struct {
	// Detached says that the kernel's overlay takes idmapped mounts that are in no
	// mount table. Otherwise the storage library's overlay driver makes them, in
	// the layer's folder.
	Detached bool
}

var (
	_ engine.Lossy  = Engine{}
	_ engine.Mapper = Engine{}
)

// New returns the engine as it works best in env.
func New(env engine.Env) Engine { return Engine{Detached: env.IdmapDetached == ""} }

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

// MakesParts implements engine.Mapper.
func (e Engine) MakesParts() bool { return e.Detached }

// composefsData is what the storage library's overlay driver keeps in the folder of
// a layer that it mounts in a way of its own.
const composefsData = "composefs-data"

// Parts implements engine.Mapper: one mount of each folder that has layers in it.
func (Engine) Parts(chain []string, userns int) (parts []mount.Part, err error) {
	trees := map[string]*mount.Tree{}
	defer func() {
		if err != nil {
			for _, t := range trees {
				err = errors.Join(err, t.Close())
			}
		}
	}()
	for _, dir := range chain {
		layer := filepath.Dir(dir)
		if _, err := os.Lstat(filepath.Join(layer, composefsData)); !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("layer %s is one of composefs, or cannot be looked at: %w", layer, errors.Join(err, errors.ErrUnsupported))
		}
		home := filepath.Dir(layer)
		if trees[home] == nil {
			if trees[home], err = mount.CloneOne(home); err != nil {
				return nil, err
			}
			if err := trees[home].Idmap(userns); err != nil {
				return nil, err
			}
		}
		parts = append(parts, mount.Part{Tree: trees[home], Path: filepath.Join(filepath.Base(layer), filepath.Base(dir))})
	}
	return parts, nil
}
