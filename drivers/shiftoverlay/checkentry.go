package shiftoverlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containers/storage/pkg/unshare"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// shownDifferences bounds the differences in a Finding.
const shownDifferences = 10

// entries compares each entry with its layers.
func (c *checker) entries(ctx context.Context) error {
	list, err := c.m.Entries(ctx)
	if err != nil {
		return err
	}
	for i, e := range list {
		if c.o.Progress != nil {
			c.o.Progress(i, len(list), e)
		}
		if err := c.entry(ctx, e); err != nil {
			return fmt.Errorf("check %s: %w", e.Ref, err)
		}
	}
	return nil
}

// entry looks at one.
func (c *checker) entry(ctx context.Context, e Entry) error {
	bad := Finding{Kind: "entry", Subject: e.Ref.String(), Repair: "remove it; the next start makes it anew", fix: c.dropEntry(e.Ref)}
	switch {
	case !c.d.layerExists(e.Layer):
		bad.Problem, bad.Repair = "its layer is gone", "remove it"
	case e.Unusable == cache.OtherBoot:
		bad.Problem, bad.Note = "it was made before the last start of the machine and is not known to have reached the disk; the next start of a container makes it anew", true
	case e.Unusable != "":
		bad.Problem = string(e.Unusable)
	case e.Engine == "" || len(e.Layers) == 0 || e.Layers[0] != e.Layer:
		bad.Problem = "its description cannot be read"
	default:
		return c.compare(ctx, e, bad)
	}
	c.add(bad)
	return nil
}

// compare compares an entry with its layers. What is wrong with the layers is
// an error, unless they, or the entry, are being removed.
func (c *checker) compare(ctx context.Context, e Entry, bad Finding) error {
	err := c.difference(ctx, e, &bad)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && bad.Problem == "" || c.removedMeanwhile(ctx, e) {
		return nil
	}
	if err == nil {
		c.add(bad)
	}
	return err
}

// removedMeanwhile tells whether the entry, or the image that it was made of, is not
// there any more. The uppermost layer goes first.
func (c *checker) removedMeanwhile(ctx context.Context, e Entry) bool {
	if _, err := c.d.cache.Find(ctx, e.Ref); err != nil {
		return true
	}
	return !c.d.layerExists(e.Layer)
}

// difference looks for a problem of an entry, and sets it if there is one.
func (c *checker) difference(ctx context.Context, e Entry, bad *Finding) error {
	chain, err := c.m.chain(e.Layer)
	if err != nil {
		return err
	}
	var ids, dirs []string
	for _, l := range chain {
		ids, dirs = append(ids, l.ID), append(dirs, l.Dirs...)
	}
	if !slices.Equal(ids, e.Layers) {
		bad.Problem = fmt.Sprintf("it was made of the layers %s, the image has %s", strings.Join(e.Layers, ", "), strings.Join(ids, ", "))
		return nil
	}
	want, err := c.expected(ctx, e, dirs)
	if err != nil {
		return err
	}
	got, err := c.shown(ctx, e, dirs)
	if err != nil {
		bad.Problem = err.Error()
		return nil //nolint:nilerr // it is the problem
	}
	if diff := referee.Compare(want, got, c.compared()); len(diff) > 0 {
		bad.Problem = fmt.Sprintf("it differs from its layers in %d attributes of %d files", len(diff), want.Len())
		bad.Differences = diff[:min(len(diff), shownDifferences)]
	}
	return nil
}

// compared says what is compared of both trees.
func (c *checker) compared() referee.Options {
	return referee.Options{Content: c.o.Content, MergedNlink: true, OverlayXattrs: true}
}

// expected is what an entry must show.
func (c *checker) expected(ctx context.Context, e Entry, dirs []string) (*referee.Tree, error) {
	if c.plainOf != e.Layer {
		base, err := mounts.Clone(dirs[0])
		if err != nil {
			return nil, fmt.Errorf("show the image's layers: %w", err)
		}
		c.plain, err = c.scan(ctx, mounts.Overlay{Tree: base, Below: dirs[1:]})
		if err != nil {
			return nil, fmt.Errorf("show the image's layers (comparing them takes Linux 6.8): %w", err)
		}
		c.plainOf = e.Layer
	}
	if e.Mapping == nil {
		return c.plain, nil
	}
	// An entry that was made with unmapped = "refuse" has no other IDs.
	shift, err := idshift.NewShift(*e.Mapping, idshift.Overflow)
	if err != nil {
		return nil, err
	}
	return c.plain.Shift(shift)
}

// shown is what a container gets to see of an entry, before the kernel maps
// IDs if that is to do so.
func (c *checker) shown(ctx context.Context, e Entry, dirs []string) (*referee.Tree, error) {
	o := mounts.Overlay{Below: dirs}
	var err error
	switch by := c.d.shifts.ByName(e.Engine).(type) {
	case engine.Imager:
		var data bool
		if data, err = by.DataOnly(e.Path); err != nil {
			return nil, err
		}
		if data {
			o.Below, o.Data = nil, dirs
		}
		o.Tree, err = by.Mount(e.Path, -1)
	case engine.Builder:
		if r, ok := by.(engine.Redirector); ok {
			if o.Data, o.DataTrees, err = r.Data(e.Path, dirs); err != nil {
				return nil, err
			}
		}
		if len(o.Data) > 0 {
			o.Below = nil
		}
		o.Tree, err = mounts.Clone(by.Lower(e.Path))
	default:
		return nil, fmt.Errorf("engine %q is not known to this version", e.Engine)
	}
	if err != nil {
		return nil, errors.Join(err, mounts.CloseAll(o.DataTrees...))
	}
	return c.scan(ctx, o)
}

// scan mounts an overlay where nobody else sees it, and reads it. It closes
// o.Tree and o.DataTrees.
func (c *checker) scan(ctx context.Context, o mounts.Overlay) (_ *referee.Tree, err error) {
	defer func() { err = errors.Join(err, mounts.CloseAll(append(slices.Clone(o.DataTrees), o.Tree)...)) }()
	dir, err := os.MkdirTemp(c.d.runHome, "check-")
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	o.Attach = dir
	if len(o.Below) == 0 && len(o.Data) == 0 {
		// overlay wants two lowers.
		empty, err := os.MkdirTemp(c.d.runHome, "check-")
		if err != nil {
			return nil, fmt.Errorf("mount overlay: %w", err)
		}
		defer os.Remove(empty)
		o.Below = []string{empty}
	}
	o.Flags = unix.MS_RDONLY
	if unshare.IsRootless() {
		o.Options = append(o.Options, "userxattr")
	} else if v, ok := c.d.mountOptions.Value("metacopy"); ok && v == "on" || len(o.Data) > 0 {
		o.Options = append(o.Options, "metacopy=on")
	}
	t, err := o.Mount()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	return referee.Scan(ctx, t.Path(), c.compared())
}

// dropEntry removes an entry unless a container that uses it is mounted.
func (c *checker) dropEntry(ref cache.Ref) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		cleanup := func() error { return nil }
		// A container that was registered and is not mounted yet would lose it.
		err := c.locked(func() (err error) {
			cleanup, err = c.d.cache.Remove(ctx, ref, c.unmounted)
			return err
		})
		return errors.Join(err, cleanup())
	}
}

// unmounted returns an error that names a user that is mounted.
func (c *checker) unmounted(users []string) error {
	for _, user := range users {
		if warming(user) && !c.d.layerExists(user) {
			pid, _, _ := strings.Cut(strings.TrimPrefix(user, warmPrefix), "-")
			return fmt.Errorf("process %s builds with it: wait until it has ended", pid)
		}
		p, err := c.d.paths(user)
		if err != nil || !c.d.inUse(user, p.merged) {
			continue
		}
		name := "layer " + user
		if o, ok := c.o.Containers[user]; ok {
			name = "container " + o.Name
		}
		return fmt.Errorf("%s is mounted and needs it: stop it and repair again", name)
	}
	return nil
}
