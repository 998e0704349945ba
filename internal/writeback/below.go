package writeback

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// part is one layer's folder of a merged directory of the layers below. It is
// held open.
type part struct {
	layer int
	fd    int
	ns    idshift.Namespace
}

// below is a merged directory of the layers below, uppermost part first. The
// empty below is a directory that does not exist there.
type below []part

func (b below) close() {
	for _, p := range b {
		_ = linux.Close(p.fd)
	}
}

// found is what the layers below show under a name.
type found struct {
	part part // the part that holds it
	name string
	st   unix.Stat_t
}

func (f *found) isDir() bool { return f != nil && f.st.Mode&unix.S_IFMT == unix.S_IFDIR }

// openBelow opens the roots of the layers below. overlay merges all roots,
// whether they are marked opaque or not.
func openBelow(layers []string, ns idshift.Namespace) (b below, err error) {
	for i, l := range layers {
		fd, err := linux.Openat(unix.AT_FDCWD, l, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("open layer: %w", err)
		}
		b = append(b, part{layer: i, fd: fd, ns: ns})
	}
	return b, nil
}

// isOpaque tells whether a directory hides what lower layers have of it.
func (p part) isOpaque() (bool, error) {
	v, err := note(p.fd, p.ns.Attribute("opaque"))
	return v == "y", err
}

// isWhiteout tells whether a name in an open directory is a whiteout, of
// either form (ovl_path_is_whiteout in fs/overlayfs/util.c).
func isWhiteout(ns idshift.Namespace, dirfd int, name string, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		if st.Size != 0 {
			return false
		}
		_, err := unix.Lgetxattr(procPath(dirfd, name), ns.Attribute("whiteout"), nil)
		return err == nil
	}
	return false
}

// lookup finds a name; nil if the layers below do not show it.
func (b below) lookup(name string) (*found, error) {
	t := trail{in: b, name: name}
	return t.step()
}

// names lists what the merged directory shows, sorted.
func (b below) names(db *linux.DirBuffer) ([]string, error) {
	hidden := make(map[string]bool)
	var out []string
	for _, p := range b {
		// Duplicates share a position.
		if _, err := unix.Seek(p.fd, 0, unix.SEEK_SET); err != nil {
			return nil, fmt.Errorf("list the layers below: %w", err)
		}
		err := db.Read(p.fd, "layer", func(name string, _ uint8) error {
			if hidden[name] {
				return nil
			}
			hidden[name] = true
			var st unix.Stat_t
			if err := linux.Lstatat(p.fd, name, &st); err != nil {
				return err
			}
			if !isWhiteout(p.ns, p.fd, name, &st) {
				out = append(out, name)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list the layers below: %w", err)
		}
	}
	slices.Sort(out)
	return out, nil
}
