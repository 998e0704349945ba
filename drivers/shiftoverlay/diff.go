package shiftoverlay

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/archive"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/pkg/unshare"
	"github.com/sirupsen/logrus"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/writeback"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// change finds out how the change between a layer and parent is to be
// computed. It is false for layers whose files the storage library chowned
// itself, which are the embedded driver's.
func (d *Driver) change(id, parent string, mappings *idtools.IDMappings) (c writeback.Change, ok bool, err error) {
	if d.shifts == nil || mappings != nil && !mappings.Empty() {
		return c, false, nil
	}
	p, err := d.paths(id)
	if err != nil {
		return c, false, err
	}
	if foreign, err := p.ownsShiftedLower(); err != nil || foreign {
		return c, false, err
	}
	if c.Layer, err = p.layer(); err != nil {
		return c, false, err
	}
	switch {
	case parent == "":
		c.Whole = len(p.lowers) > 0
	case len(p.lowers) == 0 || filepath.Base(filepath.Dir(p.lowers[0])) != parent:
		logrus.Debugf("shiftoverlay: layer %s is not directly above %s: comparing all of both", id, parent)
		q, err := d.paths(parent)
		if err != nil {
			return c, false, err
		}
		old, err := q.layer()
		if err != nil {
			return c, false, err
		}
		c.Against = &old
	}
	return c, true, nil
}

// layer describes a layer for package writeback.
func (p layerPaths) layer() (writeback.Layer, error) {
	l := writeback.Layer{Upper: p.upper, Overlay: engine.Overlay(unshare.IsRootless())}
	chain, err := p.chain()
	if err != nil {
		return l, err
	}
	for _, c := range chain {
		l.Lowers = append(l.Lowers, c.Dirs...)
	}
	rec, err := readRecord(p.dir)
	if err == nil && rec != nil {
		l.Shift, err = idshift.NewUnshift(rec.Mapping)
	}
	return l, err
}

// Diff implements graphdriver.Driver: a layer in container IDs, the same bytes
// every time.
func (d *Driver) Diff(id string, mappings *idtools.IDMappings, parent string, parentMappings *idtools.IDMappings, label string) (io.ReadCloser, error) {
	c, ok, err := d.change(id, parent, mappings)
	if err != nil {
		return nil, err
	}
	if !ok {
		return d.Driver.Diff(id, mappings, parent, parentMappings, label)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := writeback.Tar(ctx, c, w)
		if err != nil {
			err = fmt.Errorf("diff of layer %s: %w", id, err)
		}
		_ = w.CloseWithError(err)
	}()
	return &diffReader{PipeReader: r, cancel: cancel, done: done}, nil
}

// diffReader is the stream of a Diff. Close ends the goroutine behind it.
type diffReader struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   <-chan struct{}
}

// Close implements io.Closer.
func (r *diffReader) Close() error {
	r.cancel()
	err := r.PipeReader.Close()
	<-r.done
	return err
}

// Changes implements graphdriver.Driver.
func (d *Driver) Changes(id string, mappings *idtools.IDMappings, parent string, parentMappings *idtools.IDMappings, label string) ([]archive.Change, error) {
	c, ok, err := d.change(id, parent, mappings)
	if err != nil {
		return nil, err
	}
	if !ok {
		return d.Driver.Changes(id, mappings, parent, parentMappings, label)
	}
	var out []archive.Change
	err = c.Scan(context.Background(), func(it *writeback.Item) error {
		kinds := map[writeback.Kind]archive.ChangeType{
			writeback.Modified: archive.ChangeModify,
			writeback.Added:    archive.ChangeAdd,
			writeback.Deleted:  archive.ChangeDelete,
		}
		if k, ok := kinds[it.Kind]; ok {
			out = append(out, archive.Change{Path: filepath.Join("/", it.Path), Kind: k})
		}
		for _, name := range it.Gone {
			out = append(out, archive.Change{Path: filepath.Join("/", it.Path, name), Kind: archive.ChangeDelete})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("changes of layer %s: %w", id, err)
	}
	return out, nil
}

// DiffSize implements graphdriver.Driver: the bytes of content that the layer
// adds. A file of which only the metadata changed adds none.
func (d *Driver) DiffSize(id string, mappings *idtools.IDMappings, parent string, parentMappings *idtools.IDMappings, label string) (int64, error) {
	c, ok, err := d.change(id, parent, mappings)
	if err != nil {
		return 0, err
	}
	if !ok {
		return d.Driver.DiffSize(id, mappings, parent, parentMappings, label)
	}
	n, err := writeback.Size(context.Background(), c)
	if err != nil {
		return 0, fmt.Errorf("size of layer %s: %w", id, err)
	}
	return n, nil
}

// ApplyDiff implements graphdriver.Driver. A layer that has a mapping record
// holds host IDs, so what is put into it is translated.
func (d *Driver) ApplyDiff(id, parent string, o graphdriver.ApplyDiffOpts) (int64, error) {
	if d.shifts == nil || o.Mappings != nil && !o.Mappings.Empty() {
		return d.Driver.ApplyDiff(id, parent, o)
	}
	p, err := d.paths(id)
	if err != nil {
		return 0, err
	}
	rec, err := readRecord(p.dir)
	if err != nil {
		return 0, err
	}
	if rec == nil {
		return d.Driver.ApplyDiff(id, parent, o)
	}
	shift, err := idshift.NewShift(rec.Mapping, idshift.Refuse)
	if err != nil {
		return 0, fmt.Errorf("apply diff to layer %s: %w", id, err)
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func(in io.Reader) {
		defer close(done)
		_ = w.CloseWithError(writeback.ShiftTar(w, in, shift))
	}(o.Diff)
	o.Diff = r
	n, err := d.Driver.ApplyDiff(id, parent, o)
	_ = r.Close()
	<-done
	return n, err
}
