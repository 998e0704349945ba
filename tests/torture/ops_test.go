//go:build torture

package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containers/storage"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
)

// stop unmounts a container, whoever has mounted it.
func (w *world) stop(name string) error {
	c, err := w.store.Container(name)
	if errors.Is(err, storage.ErrContainerUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := w.store.Unmount(c.ID, true); err != nil && !errors.Is(err, storage.ErrLayerNotMounted) && !errors.Is(err, storage.ErrLayerUnknown) {
		return err
	}
	return nil
}

func (w *world) remove(name string) error {
	if err := w.stop(name); err != nil {
		return err
	}
	c, err := w.store.Container(name)
	if errors.Is(err, storage.ErrContainerUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	return w.store.DeleteContainer(c.ID)
}

// removeImage removes an image with the layers that only it has, also those
// that a try to make it has left.
func (w *world) removeImage(id string) error {
	if id == imageID {
		if err := w.removeImage(resultID); err != nil {
			return err
		}
	}
	if _, err := w.store.Image(id); err == nil {
		if _, err := w.store.DeleteImage(id, true); err != nil && !errors.Is(err, storage.ErrImageUnknown) {
			return err
		}
	}
	layers := []string{resultID}
	if id == imageID {
		layers = []string{upperLayer, lowerLayer}
	}
	for _, l := range layers {
		if _, err := w.store.Layer(l); err == nil {
			if err := w.store.DeleteLayer(l); err != nil && !errors.Is(err, storage.ErrLayerUnknown) {
				return err
			}
		}
	}
	return nil
}

// warm makes ahead what containers need under a mapping.
func (w *world) warm(ctx context.Context, mapped string) error {
	m, err := w.manager()
	if err != nil {
		return err
	}
	warmed, err := m.Warm(ctx, upperLayer, mapping(mapped), shiftoverlay.WarmUser())
	if err != nil || warmed.Ref.Layer == "" {
		return err
	}
	return errors.Join(m.Settle(ctx, warmed.Ref), m.Release(warmed.Ref, shiftoverlay.WarmUser()))
}

// durable has everything in the cache written out.
func (w *world) durable(ctx context.Context) error {
	m, err := w.manager()
	if err != nil {
		return err
	}
	list, err := m.Entries(ctx)
	for _, e := range list {
		if e.Unusable == "" {
			err = errors.Join(err, m.Settle(ctx, e.Ref))
		}
	}
	return err
}

// trim removes what no container needs.
func (w *world) trim(ctx context.Context) error {
	if w.program != "" {
		out, err := exec.CommandContext(ctx, w.program, "--upkeep", w.store.GraphRoot()).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("upkeep: %w: %s", err, out)
		}
		return err
	}
	m, err := w.manager()
	if err != nil {
		return err
	}
	_, err = m.Prune(ctx, 0, 1)
	return err
}

// age lets an hour go by since the entries of the cache were used.
func (w *world) age() error {
	names, err := filepath.Glob(filepath.Join(w.root, "graph", driverOf(w.program)+"-shifted", "*", "*", "used"))
	old := time.Now().Add(-time.Hour)
	for _, name := range names {
		err = errors.Join(err, os.Chtimes(name, old, old))
	}
	return err
}

// sync has everything in the store written out, as the storage library's newer
// versions do after a pull with the option sync = "filesystem".
func (w *world) sync() error {
	f, err := os.Open(w.store.GraphRoot())
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
