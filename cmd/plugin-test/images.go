package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containers/storage"
	"github.com/distribution/reference"
	"github.com/spf13/cobra"
)

// imageRow is one image in the output of images. Its field names are stable.
type imageRow struct {
	ID      string
	Names   []string
	Layers  int
	Created time.Time
}

func newImagesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "images",
		Short: "List the images of the store",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.images() },
	}
}

func (a *app) images() error {
	store, err := a.open()
	if err != nil {
		return err
	}
	images, err := store.Images()
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	rows := make([]imageRow, 0, len(images))
	for i := range images {
		chain, err := layerChain(store, &images[i])
		if err != nil {
			return err
		}
		rows = append(rows, imageRow{ID: images[i].ID, Names: images[i].Names, Layers: len(chain), Created: images[i].Created})
	}
	return a.print(rows, func(w io.Writer) error {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "NAME\tID\tLAYERS\tCREATED")
		for _, r := range rows {
			name := "<none>"
			if len(r.Names) > 0 {
				name = strings.Join(r.Names, ",")
			}
			fmt.Fprintf(tw, "%s\t%s\t%d\t%s\n", name, shortID(r.ID), r.Layers, r.Created.Format(time.RFC3339))
		}
		return tw.Flush()
	})
}

func shortID(id string) string { return id[:min(12, len(id))] }

// fullName completes a name as podman does with the name of a local image:
// bash becomes localhost/bash:latest.
func fullName(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("parse image name %q: %w", name, err)
	}
	if first, _, found := strings.Cut(name, "/"); !found || !strings.ContainsAny(first, ".:") && first != "localhost" {
		if named, err = reference.ParseNormalizedNamed("localhost/" + name); err != nil {
			return "", fmt.Errorf("parse image name %q: %w", name, err)
		}
	}
	return reference.TagNameOnly(named).String(), nil
}

// findImage looks an image up by its name as given, completed, or by its ID.
func findImage(store storage.Store, name string) (*storage.Image, error) {
	candidates := []string{name}
	if full, err := fullName(name); err == nil {
		candidates = append(candidates, full)
	}
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		candidates = append(candidates, reference.TagNameOnly(named).String())
	}
	for _, c := range candidates {
		image, err := store.Image(c)
		if err == nil {
			return image, nil
		}
		if !errors.Is(err, storage.ErrImageUnknown) {
			return nil, fmt.Errorf("find image %q: %w", name, err)
		}
	}
	return nil, fmt.Errorf("find image %q in %s: %w; `plugin-test images` lists the images, `plugin-test pull` adds one",
		name, store.GraphRoot(), storage.ErrImageUnknown)
}

// layerChain lists the layers of an image, the uppermost first.
func layerChain(store storage.Store, image *storage.Image) ([]*storage.Layer, error) {
	var chain []*storage.Layer
	for id := image.TopLayer; id != ""; {
		layer, err := store.Layer(id)
		if err != nil {
			return nil, fmt.Errorf("read layer %s of image %s: %w; the store is damaged: remove the image and pull it again", id, shortID(image.ID), err)
		}
		chain = append(chain, layer)
		id = layer.Parent
	}
	return chain, nil
}
