package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containers/storage"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// containerRequest says how a container is made of an image.
type containerRequest struct {
	mapping  idshift.Mapping // zero: none
	readOnly bool
	volatile bool // need not survive a crash
}

// createContainer makes a container of an image.
func createContainer(store storage.Store, image *storage.Image, r containerRequest) (*storage.Container, error) {
	options := &storage.ContainerOptions{IDMappingOptions: storeMapping(r.mapping), Volatile: r.volatile}
	if r.readOnly {
		options.MountOpts = []string{"ro"}
	}
	container, err := store.CreateContainer("", nil, image.ID, "", "", options)
	if err != nil {
		return nil, fmt.Errorf("create container of image %s: %w%s", shortID(image.ID), err, layerRemedy(err))
	}
	return container, nil
}

// mounted is a container that is mounted.
type mounted struct {
	store     storage.Store
	container *storage.Container
	path      string
}

// mountImage makes a container of an image and mounts it.
func mountImage(store storage.Store, image *storage.Image, label string, r containerRequest) (*mounted, error) {
	container, err := createContainer(store, image, r)
	if err != nil {
		return nil, err
	}
	path, err := mountContainer(store, container, label)
	if err != nil {
		return nil, errors.Join(err, deleteContainer(store, container.ID))
	}
	return &mounted{store, container, path}, nil
}

// mountContainer mounts a container, with its own SELinux label if none is
// given.
func mountContainer(store storage.Store, container *storage.Container, label string) (string, error) {
	if label == "" {
		label = container.MountLabel()
	}
	path, err := store.Mount(container.ID, label)
	if err != nil {
		return "", fmt.Errorf("mount container %s: %w%s", shortID(container.ID), err, layerRemedy(err))
	}
	return path, nil
}

// layerRemedy says what helps where the folder of a layer is gone.
func layerRemedy(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "; a layer of the image is damaged: remove the image with `plugin-test rmi` and pull it again"
	}
	return ""
}

// remove unmounts and deletes the container.
func (m *mounted) remove() error {
	return deleteContainer(m.store, m.container.ID)
}

// deleteContainer unmounts a container, however often it is mounted, and
// deletes it.
func deleteContainer(store storage.Store, id string) error {
	if _, err := store.Unmount(id, true); err != nil && !errors.Is(err, storage.ErrLayerNotMounted) {
		return fmt.Errorf("unmount container %s: %w", shortID(id), err)
	}
	if err := store.DeleteContainer(id); err != nil {
		return fmt.Errorf("delete container %s: %w", shortID(id), err)
	}
	return nil
}

// findContainer looks a container up by its ID, a beginning of it, or a name.
func findContainer(store storage.Store, id string) (*storage.Container, error) {
	container, err := store.Container(id)
	if err != nil {
		return nil, fmt.Errorf("find container %q in %s: %w; `plugin-test mount` prints the ID of the container that it makes",
			id, store.GraphRoot(), err)
	}
	return container, nil
}
