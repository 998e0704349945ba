package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/containers/storage"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/shiftoverlay/shiftoverlay/internal/worstcase"
)

// worstCaseResult is the output of worst-case. Its field names are stable.
type worstCaseResult struct {
	ID      string
	LeftOut []worstcase.LeftOut
}

func newWorstCaseCommand(a *app) *cobra.Command {
	var o worstcase.Options
	var list strings.Builder
	for _, f := range worstcase.Features() {
		fmt.Fprintf(&list, "  %-20s %s\n", f.Name, f.What)
	}
	cmd := &cobra.Command{
		Use:   "worst-case [flags] NAME",
		Short: "Make an image of five layers with everything that could go wrong",
		Long: "Make an image whose five layers have everything that a change of owners or the merging of layers could\n" +
			"get wrong, for verify. It is written into the layers' folders, since no archive can hold it. What the file\n" +
			"system cannot hold, or no store can have, is left out and named. Its features:\n\n" + list.String(),
		Example: "  plugin-test worst-case worst && plugin-test verify --content worst --uidmap 0:100000:65536",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.worstCase(cmd.Context(), args[0], o) },
	}
	cmd.Flags().StringArrayVar(&o.Without, "without", nil, "leave a `feature` out (repeatable)")
	cmd.Flags().StringVar(&o.Program, "program", "", "statically linked `program` with several names, such as /bin/busybox, for run")
	return cmd
}

// noStore are features that the layers of a store cannot have, and why.
func noStore() []worstcase.LeftOut {
	return []worstcase.LeftOut{
		{Feature: worstcase.Immutable, Reason: "the storage library cannot delete a layer with an immutable file, whichever driver it is in: it stays in tempdirs and fails all that comes after"},
		{Feature: worstcase.RootXattrs, Reason: "a container has a root folder of its own, and neither overlay nor the storage library gives it the attributes of the image's"},
		{Feature: worstcase.SharedInode, Reason: "no store has an inode in two layers, and the kernel would show its names as hard links"},
	}
}

func (a *app) worstCase(ctx context.Context, name string, o worstcase.Options) error {
	full, err := fullName(name)
	if err != nil {
		return err
	}
	store, err := a.open()
	if err != nil {
		return err
	}
	if _, err := store.Image(full); err == nil {
		return fmt.Errorf("make image %s: there is one of this name; `plugin-test rmi %s` removes it", full, name)
	}
	for _, f := range noStore() {
		o.Without = append(o.Without, f.Feature)
	}
	id, left, err := makeWorstCase(ctx, store, full, o)
	if err != nil {
		return fmt.Errorf("make image %s: %w", full, err)
	}
	result := worstCaseResult{ID: id, LeftOut: append(noStore(), left...)}
	return a.print(result, func(w io.Writer) error {
		for _, l := range result.LeftOut {
			fmt.Fprintf(w, "left out: %s: %s\n", l.Feature, l.Reason)
		}
		_, err := fmt.Fprintln(w, result.ID)
		return err
	})
}

// makeWorstCase makes layers, fills them, and makes an image of them.
func makeWorstCase(ctx context.Context, store storage.Store, name string, o worstcase.Options) (id string, left []worstcase.LeftOut, err error) {
	var layers []string // the lowest first
	defer func() {
		for i := len(layers) - 1; i >= 0 && err != nil; i-- {
			err = errors.Join(err, store.DeleteLayer(layers[i]))
		}
	}()
	top := ""
	for range worstcase.Layers {
		layer, err := store.CreateLayer("", top, nil, "", false, nil)
		if err != nil {
			return "", nil, fmt.Errorf("create layer: %w", err)
		}
		top = layer.ID
		layers = append(layers, top)
	}
	folders, err := layerFolders(store, &storage.Image{TopLayer: top})
	if err != nil {
		return "", nil, err
	}
	if left, err = worstcase.Write(ctx, folders, o); err != nil {
		return "", nil, err
	}
	if id, err = worstCaseImage(store, layers, name); err != nil {
		return "", nil, err
	}
	return id, left, nil
}

// worstCaseImage makes an image of layers, the lowest first, with what other
// programs look for in one. It can be used but not pushed: the digests are of
// archives that do not exist.
func worstCaseImage(store storage.Store, layers []string, name string) (string, error) {
	created := time.Unix(0, 0).UTC()
	config := imgspec.Image{
		Created:  &created,
		Platform: imgspec.Platform{Architecture: runtime.GOARCH, OS: runtime.GOOS},
		RootFS:   imgspec.RootFS{Type: "layers"},
	}
	manifest := imgspec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest}
	for _, layer := range layers {
		d := digest.FromString("no archive can hold layer " + layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		config.History = append(config.History, imgspec.History{Created: &created, CreatedBy: "plugin-test worst-case"})
		manifest.Layers = append(manifest.Layers, imgspec.Descriptor{MediaType: imgspec.MediaTypeImageLayer, Digest: d})
	}
	configData, err := json.Marshal(config)
	if err != nil {
		return "", fmt.Errorf("encode configuration: %w", err)
	}
	configDigest := digest.FromBytes(configData)
	manifest.Config = imgspec.Descriptor{MediaType: imgspec.MediaTypeImageConfig, Digest: configDigest, Size: int64(len(configData))}
	manifestData, err := json.Marshal(manifest)
	if err != nil {
		return "", fmt.Errorf("encode manifest: %w", err)
	}
	manifestDigest := digest.FromBytes(manifestData)
	image, err := store.CreateImage(configDigest.Encoded(), []string{name}, layers[len(layers)-1], "", &storage.ImageOptions{
		Digest: manifestDigest,
		BigData: []storage.ImageBigDataOption{
			{Key: configDigest.String(), Data: configData, Digest: configDigest},
			{Key: storage.ImageDigestBigDataKey, Data: manifestData, Digest: manifestDigest},
			{Key: storage.ImageDigestManifestBigDataNamePrefix + "-" + manifestDigest.String(), Data: manifestData, Digest: manifestDigest},
		},
	})
	if err != nil {
		return "", fmt.Errorf("create image: %w", err)
	}
	return image.ID, nil
}
