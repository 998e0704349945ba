package writeback

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// ShiftTar copies a layer's tar with all IDs translated: owners, POSIX ACLs and
// file capabilities. Notes of overlay (trusted.overlay.*) are left out. A
// whiteout's owner means nothing and stays.
func ShiftTar(w io.Writer, r io.Reader, shift *idshift.Shift) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return fmt.Errorf("read layer archive: %w", err)
		}
		if err := shiftHeader(h, shift); err != nil {
			return idshift.AtPath(err, h.Name)
		}
		rewritable(h)
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("write layer archive: %s: %w", h.Name, err)
		}
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("copy layer archive: %s: %w", h.Name, err)
		}
	}
}

func shiftHeader(h *tar.Header, shift *idshift.Shift) error {
	if h.Typeflag == tar.TypeXGlobalHeader || strings.HasPrefix(path.Base(h.Name), whiteoutPrefix) {
		return nil
	}
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || id >= math.MaxUint32 {
			return fmt.Errorf("%d is no 32-bit ID", id)
		}
	}
	uid, gid, err := shift.Owner(uint32(h.Uid), uint32(h.Gid))
	if err != nil {
		return err
	}
	h.Uid, h.Gid = int(uid), int(gid)
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		value, keep, err := shift.Xattr(name, []byte(v))
		if err != nil {
			return err
		}
		if delete(h.PAXRecords, k); keep {
			h.PAXRecords[k] = string(value)
		}
	}
	return nil
}

// rewritable makes a header that was read one that can be written.
func rewritable(h *tar.Header) {
	// The reader fills this in, too, and the writer prefers it to PAXRecords.
	h.Xattrs = nil //nolint:staticcheck // deprecated, but in force
	// The only format that holds everything; without a choice of format the
	// writer rounds times to seconds.
	h.Format = tar.FormatPAX
	if h.Typeflag == tar.TypeGNUSparse {
		h.Typeflag = tar.TypeReg // the reader gives the holes as zeros
	}
}
