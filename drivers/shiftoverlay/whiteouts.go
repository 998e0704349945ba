package shiftoverlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
)

// Whiteouts in the form of archives (OCI image specification, "Layer"). With a
// mount program the storage library leaves them in layers as they come; the
// kernel's overlay has others.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // of AUFS, and nobody else's
)

// convertedName is the file in a layer's folder that says that its whiteouts
// are the kernel's. What looks like one of the others then is a file that a
// container has made.
const convertedName = "shiftoverlay-whiteouts"

// convertLayer gives a layer's folders the kernel's whiteouts, once: layerDir is the
// layer's own folder, remember a folder for notes about layers that can only
// be read. It may run at the same time in several processes.
func convertLayer(layerDir, remember string) error {
	done := filepath.Join(layerDir, convertedName)
	note := filepath.Join(remember, filepath.Base(layerDir))
	for _, name := range []string{done, note} {
		if _, err := os.Lstat(name); err == nil {
			return nil
		}
	}
	dirs, err := folders(filepath.Join(layerDir, "diff"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := convertTree(dir); err != nil {
			return fmt.Errorf("convert whiteouts of layer %s: %w", filepath.Base(layerDir), err)
		}
	}
	failpoint.Hit("layer-converted")
	err = os.WriteFile(done, nil, 0o600)
	if errors.Is(err, unix.EROFS) {
		if err = os.MkdirAll(remember, 0o700); err == nil {
			err = os.WriteFile(note, nil, 0o600)
		}
	}
	return err
}

// convertTree converts a folder and those below it.
func convertTree(dir string) error {
	fd, err := linux.OpenDir(unix.AT_FDCWD, dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = linux.Close(fd) }()
	var buf linux.DirBuffer
	return buf.Walk(fd, dir, func(fd int, path string, names []linux.Dirent) error {
		var whiteouts []string
		for _, n := range names {
			if n.Type == unix.DT_REG && strings.HasPrefix(n.Name, whiteoutPrefix) {
				whiteouts = append(whiteouts, n.Name)
			}
		}
		if len(whiteouts) == 0 {
			return nil
		}
		return convertNames(fd, path, whiteouts)
	})
}

// convertNames converts whiteouts of one folder, whose times stay.
func convertNames(fd int, path string, names []string) error {
	var st unix.Stat_t
	if err := linux.Fstat(fd, path, &st); err != nil {
		return err
	}
	for _, name := range names {
		if err := convertName(fd, path, name); err != nil {
			return &os.PathError{Op: "convert whiteout", Path: filepath.Join(path, name), Err: err}
		}
	}
	failpoint.Hit("whiteouts-converted")
	return linux.Lutimesat(fd, ".", st.Atim, st.Mtim)
}

// convertName converts one whiteout: first the new one is there, then the old
// one goes. A name that is both taken away and given anew hides what is below.
func convertName(fd int, path, name string) error {
	hidden := name[len(whiteoutPrefix):]
	switch {
	case name == whiteoutOpaque:
		if err := linux.Fset(fd, path, ovl.Opaque, []byte("y")); err != nil {
			return err
		}
	case strings.HasPrefix(name, whiteoutMeta) || hidden == "":
		return nil
	default:
		var st unix.Stat_t
		if err := linux.Lstatat(fd, name, &st); err != nil || st.Size != 0 {
			return ignoreGone(err)
		}
		err := unix.Mknodat(fd, hidden, unix.S_IFCHR, 0)
		if errors.Is(err, unix.EEXIST) {
			err = makeOpaque(fd, hidden)
		}
		if err != nil {
			return err
		}
	}
	failpoint.Hit("whiteout-made")
	return ignoreGone(unix.Unlinkat(fd, name, 0))
}

// makeOpaque marks a folder; what is no folder hides what is below anyway.
func makeOpaque(fd int, name string) error {
	dir, err := linux.OpenDir(fd, name)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = linux.Close(dir) }()
	return linux.Fset(dir, name, ovl.Opaque, []byte("y"))
}

// ignoreGone forgives that another process was faster.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
