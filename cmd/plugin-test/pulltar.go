package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/containers/storage"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// pullTar makes an image of one layer from a tar archive and returns its ID.
// The image gets a minimal OCI configuration and manifest, so that any engine
// can use it.
func (a *app) pullTar(ctx context.Context, store storage.Store, file, name string) (id string, err error) {
	input, size, err := openTar(file)
	if err != nil {
		return "", err
	}
	defer input.Close()
	stream, finish := a.progress(&cancelReader{ctx, input}, size, file)
	layer, _, err := store.PutLayer("", "", nil, "", false, nil, stream)
	finish(err == nil)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", file, errors.Join(err, ctx.Err()))
	}
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, store.DeleteLayer(layer.ID))
		}
	}()
	id, keep, err = tarImage(store, layer, name)
	if err != nil {
		return "", fmt.Errorf("make image of %s: %w", file, err)
	}
	return id, nil
}

// openTar opens an archive; its size is 0 if it is not known.
func openTar(file string) (io.ReadCloser, int64, error) {
	if file == "-" {
		return io.NopCloser(os.Stdin), 0, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, fmt.Errorf("open archive: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open archive: %w", err), f.Close())
	}
	if st.IsDir() {
		return nil, 0, errors.Join(fmt.Errorf("open archive %s: it is a folder: pack it with tar first", file), f.Close())
	}
	if !st.Mode().IsRegular() {
		return f, 0, nil
	}
	return f, st.Size(), nil
}

// cancelReader stops reading when its context is done.
type cancelReader struct {
	ctx context.Context //nolint:containedctx // io.Reader has no room for it
	io.Reader
}

func (r *cancelReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// progress shows on standard error how far r has been read: a bar on a
// terminal, else one line. The bar ends when finish is called.
func (a *app) progress(r io.Reader, size int64, name string) (_ io.Reader, finish func(ok bool)) {
	f, ok := a.stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(a.stderr, "Copying archive %s\n", name)
		return r, func(bool) {}
	}
	p := mpb.New(mpb.WithWidth(40), mpb.WithOutput(f))
	bar := p.AddBar(size,
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name("Copying archive "+name)),
		mpb.AppendDecorators(decor.CountersKibiByte("%.1f / %.1f")))
	return bar.ProxyReader(r), func(ok bool) {
		if ok {
			bar.SetTotal(-1, true)
			bar.EnableTriggerComplete()
		} else {
			bar.Abort(true)
		}
		p.Wait()
	}
}

// tarImage makes an image of a layer. If the store has the same image, that
// one gets the name, and used is false: the layer is not needed.
func tarImage(store storage.Store, layer *storage.Layer, name string) (id string, used bool, err error) {
	created := time.Unix(0, 0).UTC() // the same archive makes the same image
	config, err := json.Marshal(imgspec.Image{
		Created:  &created,
		Platform: imgspec.Platform{Architecture: runtime.GOARCH, OS: runtime.GOOS},
		RootFS:   imgspec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.UncompressedDigest}},
		History:  []imgspec.History{{Created: &created, CreatedBy: "plugin-test pull tar:"}},
	})
	if err != nil {
		return "", false, fmt.Errorf("encode configuration: %w", err)
	}
	configDigest := digest.FromBytes(config)
	manifest, err := json.Marshal(imgspec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: imgspec.MediaTypeImageManifest,
		Config:    imgspec.Descriptor{MediaType: imgspec.MediaTypeImageConfig, Digest: configDigest, Size: int64(len(config))},
		Layers:    []imgspec.Descriptor{{MediaType: imgspec.MediaTypeImageLayer, Digest: layer.UncompressedDigest, Size: layer.UncompressedSize}},
	})
	if err != nil {
		return "", false, fmt.Errorf("encode manifest: %w", err)
	}
	manifestDigest := digest.FromBytes(manifest)
	image, err := store.CreateImage(configDigest.Encoded(), []string{name}, layer.ID, "", &storage.ImageOptions{
		Digest: manifestDigest,
		BigData: []storage.ImageBigDataOption{
			{Key: configDigest.String(), Data: config, Digest: configDigest},
			{Key: storage.ImageDigestBigDataKey, Data: manifest, Digest: manifestDigest},
			{Key: storage.ImageDigestManifestBigDataNamePrefix + "-" + manifestDigest.String(), Data: manifest, Digest: manifestDigest},
		},
	})
	if errors.Is(err, storage.ErrDuplicateID) {
		if err := store.AddNames(configDigest.Encoded(), []string{name}); err != nil {
			return "", false, fmt.Errorf("name image: %w", err)
		}
		return configDigest.Encoded(), false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("create image: %w", err)
	}
	return image.ID, true, nil
}
