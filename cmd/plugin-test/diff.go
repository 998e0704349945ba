package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/archive"
	"github.com/spf13/cobra"
)

// diffResult is the output of diff. Its field names are stable.
type diffResult struct {
	ID      string
	Bytes   int64
	Seconds float64
}

func newDiffCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "diff [flags] ID",
		Short: "Write what a container changed as a layer, and say how long it took",
		Long: "diff makes the uncompressed layer of a container's changes, as commit would put it into an\n" +
			"image, and prints its size and the seconds from the call until its last byte.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.diff(args[0], output) },
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write the layer to this `file` (default: nowhere)")
	return cmd
}

func (a *app) diff(id, output string) (err error) {
	store, err := a.open()
	if err != nil {
		return err
	}
	container, err := findContainer(store, id)
	if err != nil {
		return err
	}
	sink := io.Discard
	if output != "" {
		f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return fmt.Errorf("diff container %s: %w", shortID(container.ID), err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		sink = f
	}
	uncompressed := archive.Uncompressed
	start := time.Now()
	r, err := store.Diff("", container.LayerID, &storage.DiffOptions{Compression: &uncompressed})
	if err != nil {
		return fmt.Errorf("diff container %s: %w", shortID(container.ID), err)
	}
	n, err := io.Copy(sink, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("diff container %s: %w", shortID(container.ID), err)
	}
	result := diffResult{ID: container.ID, Bytes: n, Seconds: time.Since(start).Seconds()}
	return a.print(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "container: %s\nbytes: %d\nseconds: %.6f\n", result.ID, result.Bytes, result.Seconds)
		return err
	})
}
