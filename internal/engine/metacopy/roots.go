package metacopy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
)

// Names beside the tree: a file that lists its roots, and an empty folder.
const (
	rootsName = "roots"
	emptyName = "empty"
)

// shortRedirect is the longest redirect that has room in an inode of ext4: 256
// bytes less 160 of the inode itself, 8 around attributes, 32 for this one's name.
// The mark, which is set after it, then goes into a block of its own that up to
// 1024 inodes share, because it is the same for all (fs/ext4/xattr.c,
// ext4_xattr_block_set). With a longer redirect, each file needs a block.
const shortRedirect = 56

// Bounds of the search for roots.
const (
	maxRoots   = 16
	minFiles   = 100 // a root for fewer files is not worth what each lookup then costs
	maxFolders = 256 // roots of all layers
)

// roots are folders of the image that are data-only lowers besides the layers
// themselves, so that redirects to files below them are short. Overlay looks
// through all data-only lowers in their order: the layers, then each root. It
// takes no lower that is inside of another (ovl_check_layer in
// fs/overlayfs/super.c), so each root is an overlay of its own, of what the layers
// have of it. Safe for concurrent use.
type roots struct {
	// paths are below the root of the image, without a leading slash.
	paths []string
	// fds are the layers' folders, then, root by root, what the layers have of it.
	fds []int
	// first says where in fds those of each root begin.
	first []int
	// tops says which of fds have a name.
	tops map[string][]int
}

// findRoots looks for roots where the chain has many files with long paths.
func findRoots(ctx context.Context, chain []string) (_ *roots, err error) {
	r := &roots{tops: make(map[string][]int)}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	long := make(map[string]lengths)
	var buf linux.DirBuffer
	for _, layer := range chain {
		fd, err := linux.OpenDir(unix.AT_FDCWD, layer)
		if err != nil {
			return nil, fmt.Errorf("open layer: %w", err)
		}
		r.fds = append(r.fds, fd)
		err = buf.Walk(fd, "", func(_ int, dir string, names []linux.Dirent) error {
			for _, n := range names {
				if n.Type != unix.DT_REG || len(dir)+1+len(n.Name) <= shortRedirect {
					continue
				}
				if long[dir] == nil {
					long[dir] = lengths{}
				}
				long[dir][len(n.Name)]++
			}
			return ctx.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("read layer %s: %w", layer, err)
		}
	}
	for range min(maxRoots, maxFolders/max(1, len(chain))) {
		best := takeBest(long)
		if best == "" {
			break
		}
		r.paths = append(r.paths, best)
	}
	return r, r.open(len(chain))
}

// lengths counts names in a folder by their length.
type lengths map[int]int

// below counts the names that a redirect of at most shortRedirect leads to, from
// a root whose path is skip bytes of dir's.
func (l lengths) below(dir string, skip int) int {
	n := 0
	for length, count := range l {
		if len(dir)-skip+1+length <= shortRedirect {
			n += count
		}
	}
	return n
}

// takeBest returns the folder that makes most of the redirects short, and takes
// those files out of long; "" if none is worth it.
func takeBest(long map[string]lengths) string {
	gain := make(map[string]int)
	for dir, l := range long {
		for above := dir; above != ""; above = above[:strings.LastIndexByte(above, '/')] {
			if n := l.below(dir, len(above)); n > 0 {
				gain[above] += n
			}
		}
	}
	best := ""
	for dir, n := range gain {
		if c := cmp.Or(n-gain[best], len(best)-len(dir), strings.Compare(best, dir)); best == "" || c > 0 {
			best = dir
		}
	}
	if gain[best] < minFiles {
		return ""
	}
	for dir, l := range long {
		if dir != best && !strings.HasPrefix(dir, best+"/") {
			continue
		}
		for length := range l {
			if len(dir)-len(best)+1+length <= shortRedirect {
				delete(l, length)
			}
		}
	}
	return strings.TrimPrefix(best, "/")
}

// open opens the folders of the roots, and reads all.
func (r *roots) open(layers int) error {
	for _, path := range r.paths {
		r.first = append(r.first, len(r.fds))
		for _, layer := range r.fds[:layers] {
			fd, err := openRoot(layer, path)
			if err != nil {
				return err
			}
			if fd >= 0 {
				r.fds = append(r.fds, fd)
			}
		}
	}
	var buf linux.DirBuffer
	for i, fd := range r.fds {
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			return os.NewSyscallError("lseek", err)
		}
		err := buf.Read(fd, "layer", func(name string, _ uint8) error {
			r.tops[name] = append(r.tops[name], i)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// openRoot opens a root in a layer; -1 if that has no such folder.
func openRoot(layer int, path string) (int, error) {
	fd, err := linux.OpenBeneath(layer, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if isElsewhere(err) {
		return -1, nil
	}
	return fd, err
}

// isElsewhere tells whether an error says that a path leads nowhere below.
func isElsewhere(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (r *roots) close() {
	for _, fd := range r.fds {
		_ = linux.Close(fd)
	}
	r.fds = nil
}

// redirect returns what leads to the data of a file, whose path is without a
// leading slash: a path from one of the data-only lowers, such that no lower
// before has something there.
func (r *roots) redirect(path string) string {
	full := "/" + path
	if len(full) <= shortRedirect {
		return full
	}
	for i, root := range r.paths {
		short, ok := strings.CutPrefix(full, "/"+root)
		if ok && short[0] == '/' && len(short) <= shortRedirect && !r.taken(short, r.first[i]) {
			return short
		}
	}
	return full
}

// taken tells whether one of the first folders has something at the path of a
// redirect. Layers do not change, so what it says stays true.
func (r *roots) taken(redirect string, folders int) bool {
	path := redirect[1:]
	top, _, _ := strings.Cut(path, "/")
	for _, i := range r.tops[top] {
		if i >= folders {
			break
		}
		fd, err := linux.OpenBeneath(r.fds[i], path, unix.O_PATH|unix.O_NOFOLLOW)
		if err == nil {
			_ = linux.Close(fd)
		}
		if !isElsewhere(err) {
			return true
		}
	}
	return false
}

// write notes the roots in dir, where the tree is.
func (r *roots) write(dir string) error {
	b, err := json.Marshal(r.paths)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, rootsName), b, 0o600)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, emptyName), 0o700)
	}
	if err != nil {
		return fmt.Errorf("note data-only lowers: %w", err)
	}
	return nil
}

// readRoots returns the roots of the tree in dir.
func readRoots(dir string) (paths []string, err error) {
	file := filepath.Join(dir, rootsName)
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read data-only lowers: %w", errors.Join(engine.ErrDamaged, err))
	}
	if err := json.Unmarshal(b, &paths); err != nil {
		return nil, fmt.Errorf("read data-only lowers %s: %w", file, errors.Join(engine.ErrDamaged, err))
	}
	return paths, nil
}

// mountRoots returns the data-only lowers behind a chain: each root as an overlay
// of what the layers have of it. empty is an empty folder.
func mountRoots(paths []string, empty string, chain []string) (trees []*mount.Tree, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, mount.CloseAll(trees...))
			trees = nil
		}
	}()
	for _, path := range paths {
		// Overlay wants two lowers.
		o := mount.Overlay{Below: []string{empty}, Flags: unix.MS_RDONLY, Options: []string{"userxattr"}}
		for _, layer := range chain {
			ok, err := hasRoot(layer, path)
			if err != nil {
				return trees, err
			}
			if ok {
				o.Above = append(o.Above, filepath.Join(layer, path))
			}
		}
		t, err := o.Mount()
		if err != nil {
			return trees, fmt.Errorf("show data-only lower %s: %w", path, err)
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// hasRoot tells whether a layer has a root.
func hasRoot(layer, path string) (bool, error) {
	dir, err := linux.OpenDir(unix.AT_FDCWD, layer)
	if err != nil {
		return false, fmt.Errorf("open layer: %w", err)
	}
	defer linux.Close(dir)
	fd, err := openRoot(dir, path)
	if err != nil || fd < 0 {
		return false, err
	}
	return true, linux.Close(fd)
}
