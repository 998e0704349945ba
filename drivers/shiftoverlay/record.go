package shiftoverlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/shifter"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// recordName is the file in a layer's folder that says under which mapping
// its upper was written. It dies with the layer.
const recordName = "shiftoverlay.json"

// newRecordName is a record that is not in its place yet.
const newRecordName = "." + recordName + "-new"

// recordVersion is the version of the file's format.
const recordVersion = 1

// record is what recordName holds.
type record struct {
	Version int `json:"version"`
	// Mapping is the container's.
	idshift.Mapping
	// Engine is the engine of the last mount, or engineOverlay.
	Engine string `json:"engine"`
	// Layer and Key name the entry of the cache that the last mount used;
	// empty if it used none.
	Layer string `json:"layer,omitempty"`
	Key   string `json:"key,omitempty"`
}

// newRecord notes a mount with a shifted lower.
func newRecord(m idshift.Mapping, l shifter.Lower) *record {
	rec := &record{Mapping: m, Engine: l.Engine}
	if l.Ref != (cache.Ref{}) {
		rec.Layer, rec.Key = l.Ref.Layer, l.Ref.Key.String()
	}
	return rec
}

// ref returns the entry of the cache that the record names.
func (r *record) ref() (cache.Ref, bool) {
	k, err := cache.ParseKey(r.Key)
	return cache.Ref{Layer: r.Layer, Key: k}, err == nil && r.Layer != ""
}

// same tells whether the two say the same.
func (r *record) same(o *record) bool {
	return r.Mapping.Equal(o.Mapping) && r.Engine == o.Engine && r.Layer == o.Layer && r.Key == o.Key
}

// readRecord returns the record in a layer's folder, nil if there is none. A
// record that cannot be understood is an error: without it nobody can tell
// whose the files of the upper are.
func readRecord(layerDir string) (*record, error) {
	file := filepath.Join(layerDir, recordName)
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // no record is a normal answer
	}
	if err != nil {
		return nil, fmt.Errorf("read mapping record: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read mapping record %s: %w", file, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("read mapping record %s: version %d is not known to this version of shiftoverlay (%d)", file, r.Version, recordVersion)
	}
	if r.Mapping, err = idshift.NewMapping(r.UIDs, r.GIDs); err != nil {
		return nil, fmt.Errorf("read mapping record %s: %w", file, err)
	}
	return &r, nil
}

// writeRecord puts the record in place in one piece. Unless it is volatile, it
// is on the disk before anything that is written under the mapping can be:
// the file's data is synced, and the file systems that keep a journal write
// the rename before later changes. What overlay has written about the layer
// without waiting for the disk is there before it, too: a container of which the
// list of layers is lost is lost.
func writeRecord(layerDir string, r *record, volatile bool) (err error) {
	r.Version = recordVersion
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write mapping record: %w", err)
	}
	// Always the same name, under the library's lock of the layer: what somebody
	// has left who died here is written over.
	f, err := os.OpenFile(filepath.Join(layerDir, newRecordName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("write mapping record: %w", err)
	}
	failpoint.Hit("record-file")
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write mapping record: %w", err)
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err == nil && !volatile {
		if err = errors.Join(writeOut(layerDir, lowerList), writeOut(layerDir, linkName)); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	failpoint.Hit("record-written")
	err = os.Rename(f.Name(), filepath.Join(layerDir, recordName))
	failpoint.Hit("record-placed")
	return err
}

// writeOut has a small file's data written, if there is such a file, and waits for
// that, but not for a flush of the disk or the journal, which the sync that
// follows does for all (sync_file_range(2); the size of the file goes into the
// journal when the data is written).
func writeOut(dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(int(f.Fd()), 0, 0, flags); err != nil { //nolint:gosec // a descriptor
		return &os.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
	}
	return nil
}
