package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containers/storage/pkg/unshare"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// exitDifferent is the exit code of verify when there are differences.
const exitDifferent = 1

// verifyFlags are the flags of the verb verify.
type verifyFlags struct {
	maps     mappingFlags
	content  bool
	readOnly bool
}

// verifyResult is the output of verify. Its field names are stable.
type verifyResult struct {
	Image       string
	Mapping     idshift.Mapping
	Engine      string `json:",omitempty"` // as the driver says
	Truth       string // "kernel" or "arithmetic"
	TruthReason string `json:",omitempty"` // why not the kernel
	Paths       int
	LeftOut     []string `json:",omitempty"` // devices of the image, which nobody can make in a user namespace
	Differences []referee.Difference
}

func newVerifyCommand(a *app) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [flags] NAME --uidmap CONTAINER:HOST:SIZE",
		Short: "Compare an image mounted with a mapping with the kernel's idmapped mount of its layers",
		Long: "Mount an image with a mapping through the driver, and the same layers through idmapped mounts of the\n" +
			"kernel, and compare both, path by path. Where the kernel has no idmapped mounts for the file system, the\n" +
			"image is compared with its unmapped mount, shifted by arithmetic. Every difference is one line (the truth\n" +
			"on the left); the last line is `differences: N`. The exit code is 1 if there are any.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verify(cmd.Context(), args[0], &f) },
	}
	f.maps.register(cmd.Flags())
	cmd.Flags().BoolVar(&f.content, "content", false, "compare contents of files, too")
	cmd.Flags().BoolVar(&f.readOnly, "read-only", false, "mount the image read-only")
	return cmd
}

func (a *app) verify(ctx context.Context, name string, f *verifyFlags) error {
	mapping, err := f.maps.mapping()
	if err != nil {
		return err
	}
	store, image, err := a.openImage(name)
	if err != nil {
		return err
	}
	options := referee.Options{Content: f.content, MergedNlink: true, OverlayXattrs: true}
	m, err := mountImage(store, image, "", containerRequest{mapping: mapping, readOnly: f.readOnly})
	if err != nil {
		return err
	}
	tree, err := referee.Scan(ctx, m.path, options)
	if err = errors.Join(err, m.remove()); err != nil {
		return err
	}
	want, err := groundTruth(ctx, store, image, mapping, options)
	if err != nil {
		return err
	}
	result := verifyResult{
		Image: image.ID, Mapping: mapping, Truth: want.source, TruthReason: want.reason, Paths: want.tree.Len(),
	}
	for _, d := range referee.Compare(want.tree, tree, options) {
		if unshare.IsRootless() && isDevice(want.tree, d.Path) && !has(tree, d.Path) {
			result.LeftOut = append(result.LeftOut, d.Path)
			continue
		}
		result.Differences = append(result.Differences, d)
	}
	if status, err := store.Status(); err == nil {
		result.Engine = engineOf(status)
	}
	if err := a.print(result, result.write); err != nil {
		return err
	}
	if len(result.Differences) > 0 {
		return &exitError{exitDifferent}
	}
	return nil
}

// isDevice tells whether a path of a tree is a device.
func isDevice(t *referee.Tree, path string) bool {
	n, ok := t.Lookup(path)
	return ok && (n.Mode&unix.S_IFMT == unix.S_IFCHR || n.Mode&unix.S_IFMT == unix.S_IFBLK)
}

// has tells whether a tree has a path.
func has(t *referee.Tree, path string) bool {
	_, ok := t.Lookup(path)
	return ok
}

func (r *verifyResult) write(w io.Writer) error {
	for _, path := range r.LeftOut {
		fmt.Fprintf(w, "left out: %s: a device, which nobody can make in a user namespace\n", path)
	}
	for _, d := range r.Differences {
		fmt.Fprintln(w, d)
	}
	if r.Engine != "" {
		fmt.Fprintf(w, "engine: %s\n", r.Engine)
	}
	fmt.Fprintf(w, "truth: %s", r.Truth)
	if r.TruthReason != "" {
		fmt.Fprintf(w, " (the kernel cannot: %s)", r.TruthReason)
	}
	_, err := fmt.Fprintf(w, "\npaths: %d\ndifferences: %d\n", r.Paths, len(r.Differences))
	return err
}
