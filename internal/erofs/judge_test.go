package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	goerofs "github.com/erofs/go-erofs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// The judges of an image are the kernel, which mounts it, fsck.erofs of
// erofs-utils, and the reader github.com/erofs/go-erofs. What they see is
// compared with what the kernel shows of an overlay of the layers.

// seen is what a judge says of one path.
type seen struct {
	Mode, UID, GID uint32
	Rdev           uint64
	Size           int64 // of regular files and symbolic links
	Sec, Nsec      int64
	Nlink          uint64
	Target         string
	Xattrs         map[string]string
	// First is the first path of the inode.
	First string
	// ino is the inode's number.
	ino uint64
}

// equal compares all but the number of the inode.
func (s *seen) equal(o *seen) bool {
	return s.Mode == o.Mode && s.UID == o.UID && s.GID == o.GID && s.Rdev == o.Rdev && s.Size == o.Size && s.Sec == o.Sec && s.Nsec == o.Nsec &&
		s.Nlink == o.Nlink && s.Target == o.Target && s.First == o.First && maps.Equal(s.Xattrs, o.Xattrs)
}

func (s *seen) is(typ uint32) bool { return s.Mode&unix.S_IFMT == typ }

// view is a tree as somebody sees it, by path; "." is the root.
type view map[string]*seen

// finish finds the first path of each inode.
func (v view) finish() view {
	first := map[uint64]string{}
	for _, p := range slices.Sorted(maps.Keys(v)) {
		s := v[p]
		if s.is(unix.S_IFDIR) {
			s.First = p
			continue
		}
		if _, ok := first[s.ino]; !ok {
			first[s.ino] = p
		}
		s.First = first[s.ino]
	}
	return v
}

// scan looks at the tree below a folder, whatever the length of paths. An
// overlay lists the whiteouts of directories that are in one layer only; with
// ghosts they are left out, being names that do not exist.
func scan(t require.TestingT, root string, ghosts bool) view {
	v := view{}
	fd, err := linux.OpenDir(unix.AT_FDCWD, root)
	require.NoError(t, err)
	v.directory(t, fd, ".", ghosts)
	return v.finish()
}

func (v view) directory(t require.TestingT, fd int, p string, ghosts bool) {
	defer linux.Close(fd)
	v.inode(t, fd, p, ".")
	dir := os.NewFile(uintptr(mustDup(t, fd)), p)
	names, err := dir.Readdirnames(-1)
	require.NoError(t, errors.Join(err, dir.Close()))
	for _, n := range names {
		below := path.Join(p, n)
		if ghosts && errors.Is(unix.Faccessat(fd, n, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT) {
			continue
		}
		s := v.inode(t, fd, below, n)
		if s.is(unix.S_IFDIR) {
			sub, err := linux.OpenDir(fd, n)
			require.NoError(t, err)
			v.directory(t, sub, below, ghosts)
		}
	}
}

func mustDup(t require.TestingT, fd int) int {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	return dup
}

// inode looks at a name of an open folder.
func (v view) inode(t require.TestingT, fd int, p, name string) *seen {
	var st unix.Stat_t
	require.NoError(t, unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW), "%.200q", p)
	s := &seen{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec,
		Nlink: st.Nlink, ino: st.Ino, Xattrs: map[string]string{},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.Size = st.Size
	case unix.S_IFLNK:
		var err error
		s.Target, err = linux.Readlinkat(fd, name, st.Size)
		require.NoError(t, err)
		s.Size = st.Size
	}
	at := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	var b linux.XattrBuffer
	require.NoError(t, b.Llist(at, func(x string) error {
		value, err := b.Lget(at, x)
		if x == idshift.Capability && idshift.IsVoidCapability(err) {
			return nil
		}
		if x == "trusted."+droppedName {
			return nil // the filter of the inode may hide the value
		}
		s.Xattrs[x] = string(value)
		return err
	}), "%.200q", p)
	v[p] = s
	return s
}

// merged is the tree that the kernel shows of a chain, with the numbers of
// links that the merged tree has, and nested overlay's attributes escaped, as
// in the layers.
func merged(t require.TestingT, place string, chain []string) view {
	point, empty := filepath.Join(place, "merged"), filepath.Join(place, "empty")
	for _, d := range []string{point, empty} {
		require.NoError(t, os.MkdirAll(d, 0o755))
	}
	lowers := append(slices.Clone(chain), empty) // overlay wants two
	require.NoError(t, unix.Mount("overlay", point, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")))
	defer unix.Unmount(point, unix.MNT_DETACH)
	v := scan(t, point, true)
	names := map[string]uint64{}
	for p, s := range v {
		switch {
		case !s.is(unix.S_IFDIR):
			names[s.First]++
		case p != ".":
			names[path.Dir(p)]++
		}
	}
	for p, s := range v {
		s.Nlink = names[s.First]
		if s.is(unix.S_IFDIR) {
			s.Nlink = 2 + names[p]
		}
		maps.DeleteFunc(s.Xattrs, func(x, _ string) bool { return strings.HasPrefix(x, "trusted.SGI_ACL_") }) // XFS's own form of an ACL
		for x, value := range s.Xattrs {
			if nested, ok := strings.CutPrefix(x, "trusted.overlay."); ok {
				delete(s.Xattrs, x)
				s.Xattrs["trusted.overlay.overlay."+nested] = value
			}
		}
	}
	return v
}

// shifted is a view as it is to be after a shift.
func (v view) shifted(t require.TestingT, shift *idshift.Shift) view {
	out := view{}
	for p, s := range v {
		n := *s
		var err error
		n.UID, n.GID, err = shift.Owner(s.UID, s.GID)
		require.NoError(t, err)
		n.Xattrs = map[string]string{}
		for x, value := range s.Xattrs {
			b, keep, err := shift.Xattr(x, []byte(value))
			require.NoError(t, err)
			if keep {
				n.Xattrs[x] = string(b)
			}
		}
		out[p] = &n
	}
	return out
}

// checkView compares two views. Of the one of an image it takes overlay's
// marks, which must be right.
func checkView(t require.TestingT, want, got view, layout Layout, who string) {
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)), "paths that %s sees", who)
	for p, g := range got {
		w := *want[p]
		mark, marked := g.Xattrs["trusted."+metacopyName]
		redirect, redirected := g.Xattrs["trusted."+redirectName]
		dataless := w.is(unix.S_IFREG) && w.Size > 0
		if dataless != marked || mark != "" || redirected != dataless {
			require.Fail(t, "marks", "%.200q: metacopy %t %q, redirect %t", p, marked, mark, redirected)
		}
		opaque := g.Xattrs["trusted."+opaqueName]
		if (opaque == "y") != (layout == Opaque && w.is(unix.S_IFDIR) && p != ".") {
			require.Fail(t, "marks", "%.200q: opaque %q", p, opaque)
		}
		if redirected {
			to := want[strings.TrimPrefix(redirect, "/")]
			leftOut := to == nil && !utf8.ValidString(redirect) // by utf8Only
			if !leftOut && (to == nil || w.First != to.First) {
				require.Fail(t, "redirect", "%.200q of %.200q", redirect, p)
			}
		}
		h := *g
		if marked || opaque != "" {
			h.Xattrs = maps.Clone(g.Xattrs)
			delete(h.Xattrs, "trusted."+metacopyName)
			delete(h.Xattrs, "trusted."+redirectName)
			delete(h.Xattrs, "trusted."+opaqueName)
		}
		if !w.equal(&h) { // much faster than to let require compare
			w.ino, h.ino = 0, 0
			require.Equal(t, w, h, "what %s sees at %.200q", who, p)
		}
	}
}

// kernelView mounts an image and looks at it.
func kernelView(t require.TestingT, image string) view {
	tree, err := mount.Erofs(image, mount.Auto)
	require.NoError(t, err)
	defer tree.Close()
	return scan(t, tree.Path()+"/.", false)
}

// goView reads an image with go-erofs. It leaves out what that cannot read:
// names that are no UTF-8 (io/fs.ValidPath). It needs not be told the kernel's
// way to show capabilities of root user 0.
func goView(t require.TestingT, image string) view {
	b, err := os.ReadFile(image)
	require.NoError(t, err)
	return goViewOf(t, b)
}

// goViewOf is goView of the bytes of an image.
func goViewOf(t require.TestingT, b []byte) view {
	// It reads a whole block for each shared attribute, also beyond the end.
	img, err := goerofs.Open(bytes.NewReader(append(b, make([]byte, blockSize)...)))
	require.NoError(t, err)
	v := view{}
	v.goDirectory(t, img, ".")
	return v.finish()
}

func (v view) goDirectory(t require.TestingT, img fs.FS, p string) {
	v.goInode(t, img, p)
	entries, err := fs.ReadDir(img, p)
	require.NoError(t, err, "%.200q", p)
	for _, e := range entries {
		switch below := path.Join(p, e.Name()); {
		case !utf8.ValidString(e.Name()):
		case e.IsDir():
			v.goDirectory(t, img, below)
		default:
			v.goInode(t, img, below)
		}
	}
}

func (v view) goInode(t require.TestingT, img fs.FS, p string) {
	info, err := fs.Lstat(img, p)
	require.NoError(t, err, "%.200q", p)
	st, ok := info.Sys().(*goerofs.Stat)
	require.True(t, ok)
	s := &seen{
		Mode: unixMode(st.Mode), UID: st.UID, GID: st.GID, Sec: int64(st.Mtime), Nsec: int64(st.MtimeNs),
		Nlink: uint64(st.Nlink), ino: uint64(st.Ino), Xattrs: map[string]string{},
	}
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.Size = st.Size
	case unix.S_IFLNK:
		s.Size = st.Size
		s.Target, err = fs.ReadLink(img, p)
		require.NoError(t, err, "%.200q", p)
	case unix.S_IFCHR, unix.S_IFBLK:
		minor := st.Rdev&0xff | st.Rdev>>12&0xfff00
		s.Rdev = unix.Mkdev(st.Rdev>>8&0xfff, minor)
	}
	for x, value := range st.Xattrs {
		x = strings.TrimSuffix(x, ".") // "system.posix_acl_access."
		if x == "trusted."+droppedName {
			continue
		}
		if x == idshift.Capability {
			out, err := idshift.ShiftCapability([]byte(value), func(id uint32) (uint32, error) { return id, nil })
			require.NoError(t, err)
			value = string(out)
		}
		s.Xattrs[x] = value
	}
	v[p] = s
}

// unixMode is st_mode of a mode of io/fs.
func unixMode(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	for bit, unixBit := range map[fs.FileMode]uint32{
		fs.ModeSetuid: unix.S_ISUID, fs.ModeSetgid: unix.S_ISGID, fs.ModeSticky: unix.S_ISVTX,
		fs.ModeDir: unix.S_IFDIR, fs.ModeSymlink: unix.S_IFLNK, fs.ModeNamedPipe: unix.S_IFIFO, fs.ModeSocket: unix.S_IFSOCK,
	} {
		if m&bit != 0 {
			out |= unixBit
		}
	}
	switch {
	case m&fs.ModeCharDevice != 0:
		out |= unix.S_IFCHR
	case m&fs.ModeDevice != 0:
		out |= unix.S_IFBLK
	case m.IsRegular():
		out |= unix.S_IFREG
	}
	return out
}

// utf8Only is a view without the names that goView leaves out.
func (v view) utf8Only() view {
	out := view{}
	for p, s := range v {
		if utf8.ValidString(p) {
			n := *s
			out[p] = &n
		}
	}
	return out.finish()
}

// needFsck skips where there is no fsck.erofs.
func needFsck(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		testutil.Skip(t, "needs fsck.erofs (erofs-utils)")
	}
}

// fsck runs fsck.erofs, which must find nothing to say.
func fsck(t require.TestingT, image string, options ...string) {
	out, err := exec.Command("fsck.erofs", append(options, "-d1", image)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}
