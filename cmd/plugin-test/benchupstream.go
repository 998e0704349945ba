package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/archive"
	"github.com/containers/storage/types"
)

// upstreamStore is a store of the storage library's overlay driver with a
// copy of one image, for bench to compare with.
type upstreamStore struct {
	root, runroot string
	mountopt      string
}

func (u *upstreamStore) driverOptions() []string {
	if u.mountopt == "" {
		return nil
	}
	return []string{"overlay.mountopt=" + u.mountopt}
}

// args are the flags that make plugin-test work on the store.
func (u *upstreamStore) args() []string {
	args := []string{"--root", u.root, "--runroot", u.runroot, "--driver", "overlay"}
	for _, o := range u.driverOptions() {
		args = append(args, "--storage-opt", o)
	}
	return args
}

func (u *upstreamStore) open() (storage.Store, error) {
	store, err := storage.GetStore(types.StoreOptions{
		GraphRoot: u.root, RunRoot: u.runroot, GraphDriverName: "overlay", GraphDriverOptions: u.driverOptions(),
	})
	if err != nil {
		return nil, fmt.Errorf("open store %s with driver overlay: %w", u.root, err)
	}
	return store, nil
}

// fill copies an image into the store, layer by layer.
func (u *upstreamStore) fill(ctx context.Context, from storage.Store, image *storage.Image) (err error) {
	if err := u.remove(); err != nil { // what an interrupted bench left
		return err
	}
	to, err := u.open()
	if err != nil {
		return err
	}
	defer func() {
		_, e := to.Shutdown(false)
		to.Free()
		err = errors.Join(err, e)
	}()
	chain, err := layerChain(from, image)
	if err != nil {
		return err
	}
	parent := ""
	for _, layer := range slices.Backward(chain) {
		if err := copyLayer(ctx, from, to, layer.ID, parent); err != nil {
			return fmt.Errorf("copy layer %s into %s: %w", layer.ID, u.root, err)
		}
		parent = layer.ID
	}
	if _, err := to.CreateImage(image.ID, image.Names, parent, "", nil); err != nil {
		return fmt.Errorf("copy image %s into %s: %w", shortID(image.ID), u.root, err)
	}
	return nil
}

func copyLayer(ctx context.Context, from, to storage.Store, id, parent string) (err error) {
	compression := archive.Uncompressed
	diff, err := from.Diff("", id, &storage.DiffOptions{Compression: &compression})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, diff.Close()) }()
	_, _, err = to.PutLayer(id, parent, nil, "", false, nil, io.Reader(&cancelReader{ctx, diff}))
	return err
}

// remove deletes the store; it need not exist.
func (u *upstreamStore) remove() error {
	if _, err := os.Stat(u.root); err == nil {
		store, err := u.open()
		if err != nil {
			return err
		}
		if err := store.Wipe(); err != nil {
			return fmt.Errorf("empty store %s: %w", u.root, err)
		}
		if _, err := store.Shutdown(true); err != nil {
			return fmt.Errorf("close store %s: %w", u.root, err)
		}
		store.Free()
	}
	for _, dir := range []string{u.root, u.runroot} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("delete store: %w", err)
		}
	}
	return nil
}
