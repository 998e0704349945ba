package worstcase

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Layers is the number of layers of the image.
const Layers = 5

// Options say what is written. The zero value is everything.
type Options struct {
	// Without are features that are to be left out; they are not told of.
	Without []string
	// Program is a statically linked program with several names, busybox, for
	// those who want to run something in the image. None if empty.
	Program string
}

// LeftOut is a feature that is not in the image, and why.
type LeftOut struct {
	Feature string
	Reason  string
}

// Feature is something that an image can have.
type Feature struct {
	// Name is short and stable.
	Name string
	// What says in a few words what it is.
	What string

	add func(t *tree, l limits)
	// certain features are held by every file system that can hold layers,
	// and are not tried before.
	certain bool
}

// Features lists everything that is in the image, in the order in which it is
// written.
func Features() []Feature {
	return slices.Concat(inodeFeatures(), attributeFeatures(), nameFeatures(), sizeFeatures(), layerFeatures(), hostileFeatures())
}

// Write writes the image into folders, which are empty, on one file system,
// and given as a chain: the uppermost layer first. It returns what had to be
// left out. What it writes depends on the file system and the options only.
func Write(ctx context.Context, folders []string, o Options) ([]LeftOut, error) {
	if len(folders) != Layers {
		return nil, fmt.Errorf("write worst-case image: %d folders for %d layers", len(folders), Layers)
	}
	folders = slices.Clone(folders)
	slices.Reverse(folders) // here the lowest is the first
	all := Features()
	for _, name := range o.Without {
		if !slices.ContainsFunc(all, func(f Feature) bool { return f.Name == name }) {
			return nil, fmt.Errorf("write worst-case image: no feature %q: use some of %s", name, names(all))
		}
	}
	var t tree
	left, err := collect(ctx, folders, &t, slices.DeleteFunc(all, func(f Feature) bool { return slices.Contains(o.Without, f.Name) }))
	if err == nil && o.Program != "" {
		err = program(&t, o.Program)
	}
	if err == nil {
		err = writeTo(ctx, folders, &t)
	}
	if err != nil {
		return nil, fmt.Errorf("write worst-case image: %w", err)
	}
	return left, nil
}

func names(list []Feature) string {
	var out []string
	for _, f := range list {
		out = append(out, f.Name)
	}
	return strings.Join(out, ", ")
}

// collect puts those features into a tree that can be written.
func collect(ctx context.Context, folders []string, t *tree, features []Feature) (left []LeftOut, err error) {
	l, err := findLimits(folders[0])
	if err != nil {
		return nil, err
	}
	for layer := range Layers {
		t.on(layer).dir(".")
	}
	for _, f := range features {
		if !f.certain {
			reason, err := try(ctx, folders, f, l)
			if err != nil {
				return nil, err
			}
			if reason != nil {
				left = append(left, LeftOut{f.Name, reason.Error()})
				continue
			}
		}
		f.add(t, l)
	}
	return left, nil
}

// try writes a feature into folders beside which it is going to be, and
// returns the error as the reason if that fails.
func try(ctx context.Context, folders []string, f Feature, l limits) (reason, err error) {
	scratch := make([]string, len(folders))
	for i, folder := range folders {
		if scratch[i], err = os.MkdirTemp(folder, ".try-"); err != nil {
			return nil, fmt.Errorf("try %s: %w", f.Name, err)
		}
		defer func() { err = errors.Join(err, Remove(scratch[i])) }()
	}
	var t tree
	f.add(&t, l)
	reason = writeTo(ctx, scratch, &t)
	return reason, ctx.Err()
}

func writeTo(ctx context.Context, folders []string, t *tree) error {
	w, err := open(folders)
	if err != nil {
		return err
	}
	defer w.close()
	return w.write(ctx, t)
}

// program adds a program with names for it.
func program(t *tree, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	name := filepath.Base(file)
	t.on(0).file("bin/"+name, string(content), mode(0o755))
	for _, s := range []string{"sh", "cat", "find", "id", "ls", "stat", "true"} {
		t.on(0).symlink("bin/"+s, name)
	}
	return nil
}
