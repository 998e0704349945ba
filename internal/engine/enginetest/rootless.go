package enginetest

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// Rootless is an engine as it works for the root of a user namespace: overlay's
// attributes are user.overlay.*, in the layers and in what is made. The suites
// run it as root all the same, with layers that are changed accordingly and
// without devices, and with overlays that are mounted with userxattr.
func Rootless(b engine.Builder) engine.Builder {
	r := rootless{b}
	if recycler, ok := b.(engine.Recycler); ok {
		return rootlessRecycler{r, recycler}
	}
	return r
}

type rootless struct{ engine.Builder }

// String names the form.
func (r rootless) String() string { return r.Name() + " (rootless)" }

// Build implements engine.Builder.
func (r rootless) Build(ctx context.Context, dir string, job engine.Job) error {
	job.Rootless = true
	return r.Builder.Build(ctx, dir, job)
}

// Data implements engine.Redirector, for engines that are none, too.
func (r rootless) Data(dir string, chain []string) ([]string, []*mount.Tree, error) {
	if e, ok := r.Builder.(engine.Redirector); ok {
		return e.Data(dir, chain)
	}
	return nil, nil, nil
}

type rootlessRecycler struct {
	rootless
	recycler engine.Recycler
}

// Recycle implements engine.Recycler.
func (r rootlessRecycler) Recycle(ctx context.Context, dir string, job engine.Job) error {
	job.Rootless = true
	return r.recycler.Recycle(ctx, dir, job)
}

// isRootless tells whether an engine is one of Rootless.
func isRootless(e engine.Engine) bool {
	switch e.(type) {
	case rootless, rootlessRecycler:
		return true
	}
	return false
}

// forRootless makes the suite's overlays and layers those of a user namespace.
func (s *suite) forRootless(t *testing.T, e engine.Engine) {
	s.rootless = true
	s.o.overlay = func(t testing.TB, point string, lowers []string, options ...string) error {
		return rootlessOverlay(t, e.(engine.Redirector), point, lowers, options...)
	}
	dir := s.place(t)
	a, b := sub(t, dir, "a"), sub(t, dir, "b")
	if err := s.o.overlay(t, sub(t, dir, "merged"), []string{a, b}); err != nil {
		testutil.Skip(t, "no overlay with userxattr: "+err.Error())
	}
	o := mount.Overlay{Options: []string{"userxattr"}, Above: []string{a}, Data: []string{b}}
	m, err := o.Mount()
	if err != nil {
		testutil.Skip(t, "no data-only lowers with userxattr (before Linux 6.16): "+err.Error())
	}
	require.NoError(t, m.Close())
}

// rootlessOverlay mounts an overlay as the driver does: with data-only lowers if
// the uppermost lower is something that wants them.
func rootlessOverlay(t testing.TB, r engine.Redirector, point string, lowers []string, options ...string) error {
	t.Helper()
	o := mount.Overlay{Options: []string{"userxattr"}}
	for _, option := range options {
		switch key, value, _ := strings.Cut(option, "="); key {
		case "upperdir":
			o.Upper = value
		case "workdir":
			o.Work = value
		case "metacopy", "redirect_dir":
		default:
			o.Options = append(o.Options, option)
		}
	}
	o.Above = lowers
	if dir, ok := strings.CutSuffix(lowers[0], strings.TrimPrefix(r.Lower("/"), "/")); ok {
		folders, trees, err := r.Data(dir, lowers[1:])
		if err != nil {
			return err
		}
		defer func() { assert.NoError(t, mount.CloseAll(trees...)) }()
		if len(folders) > 0 {
			o.Above, o.Data, o.DataTrees = lowers[:1], folders, trees
		}
	}
	m, err := o.Mount()
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Attach(point); err != nil {
		return err
	}
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(point, unix.UMOUNT_NOFOLLOW)) })
	return nil
}

// procFD is a path of something open, which follows it even where links are not.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) + "/." }

// toUser changes a layer into what an ordinary user's would be: trusted.overlay.*
// become user.overlay.* where there can be such attributes, and devices go.
func toUser(t *testing.T, layer string) {
	t.Helper()
	root, err := linux.OpenDir(unix.AT_FDCWD, layer)
	require.NoError(t, err)
	defer linux.Close(root)
	var buf linux.DirBuffer
	var xb linux.XattrBuffer
	require.NoError(t, buf.Walk(root, layer, func(fd int, _ string, names []linux.Dirent) error {
		if err := userXattrs(&xb, procFD(fd)); err != nil {
			return err
		}
		for _, n := range names {
			var st unix.Stat_t
			if err := linux.Lstatat(fd, n.Name, &st); err != nil {
				return err
			}
			if n.Type == unix.DT_BLK || n.Type == unix.DT_CHR && st.Rdev != 0 {
				if err := unix.Unlinkat(fd, n.Name, 0); err != nil {
					return err
				}
				continue
			}
			if err := userXattrs(&xb, procFD(fd)+"/"+n.Name); err != nil {
				return err
			}
		}
		return nil
	}))
}

// userXattrs does so with the attributes of one inode.
func userXattrs(xb *linux.XattrBuffer, path string) error {
	var names []string
	err := xb.Llist(path, func(name string) error {
		if strings.HasPrefix(name, "trusted.overlay.") {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		value, err := xb.Lget(path, name)
		if err != nil {
			return err
		}
		if err := unix.Lremovexattr(path, name); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if t := st.Mode & unix.S_IFMT; t == unix.S_IFREG || t == unix.S_IFDIR {
			if err := linux.Lset(path, "user."+strings.TrimPrefix(name, "trusted."), value); err != nil {
				return err
			}
		}
	}
	return nil
}
