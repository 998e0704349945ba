package writeback_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/internal/writeback"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// folders makes an upper and a lower, filled by hand.
func folders(t *testing.T) (upper, lower fsop.Ops, l writeback.Layer) {
	t.Helper()
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, fsType, 64<<20)
	upper, lower = fsop.Ops{Root: filepath.Join(dir, "upper")}, fsop.Ops{Root: filepath.Join(dir, "lower")}
	for _, o := range []fsop.Ops{upper, lower} {
		require.NoError(t, os.Mkdir(o.Root, 0o755))
		require.NoError(t, o.Chmod(".", 0o755))
	}
	return upper, lower, writeback.Layer{Upper: upper.Root, Lowers: []string{lower.Root}}
}

// do runs steps.
func do(t *testing.T, o fsop.Ops, steps ...step) {
	t.Helper()
	for i, s := range steps {
		require.NoError(t, s(o), "step %d", i)
	}
}

func unshift(t *testing.T, mapping string) *idshift.Shift {
	t.Helper()
	m, err := idshift.ParseMapping(mapping, mapping)
	require.NoError(t, err)
	s, err := idshift.NewUnshift(m)
	require.NoError(t, err)
	return s
}

// TestAttributeWhiteouts reads whiteouts of the attribute form in layers. The
// kernel looks for them where the root of the layer and the directory are
// marked (overlayfs.rst, "Whiteouts and opaque directories"; Linux 6.8), and
// never in an upper.
func TestAttributeWhiteouts(t *testing.T) {
	upper, lower, l := folders(t)
	dir := filepath.Dir(lower.Root)
	bottom := fsop.Ops{Root: filepath.Join(dir, "bottom")}
	require.NoError(t, os.Mkdir(bottom.Root, 0o755))
	l.Lowers = append(l.Lowers, bottom.Root)
	whiteout := func(p string) step {
		return func(o fsop.Ops) error {
			return fsop.All(func() error { return o.Write(p, "") }, func() error { return o.SetXattr(p, "trusted.overlay.whiteout", "") })
		}
	}
	mark := func(p string) step { return setxattr(p, "trusted.overlay.opaque", "x") }
	do(t, bottom, mkdir("d"), write("d/a", "a"), write("d/b", "b"), write("d/c", "c"), write("d/d", "d"), write("e", "e"), mkdir("g"), write("g/a", "a"))
	do(t, lower, mark("."), mkdir("d"), mark("d"), whiteout("d/a"), whiteout("d/b"), whiteout("e"),
		mkdir("g"), whiteout("g/a")) // a directory without the mark, too

	merged := fsop.Ops{Root: filepath.Join(dir, "merged")}
	work := filepath.Join(dir, "work")
	require.NoError(t, os.Mkdir(work, 0o755))
	mount(t, merged.Root, "lowerdir="+lower.Root+":"+bottom.Root+",upperdir="+upper.Root+",workdir="+work+",redirect_dir=on")
	do(t, merged, write("d/a", "new"), write("e", "new"), remove("d/c"), write("g/a", "new"))
	assert.Equal(t, []string{"C d", "A d/a", "D d/c", "A e", "C g", "A g/a"}, items(t, l))
	do(t, merged, rename("d", "f"))
	assert.Equal(t, []string{"D d", "A e", "A f", "A f/a", "A f/d", "C g", "A g/a"}, items(t, l))
	paths, err := fsop.Paths(merged.Root)
	require.NoError(t, err)
	assert.Equal(t, []string{"e", "f", "f/a", "f/d", "g", "g/a"}, paths, "the kernel sees it in the same way")
	l.Whole = true
	assert.Equal(t, []string{"C .", "A e", "A f", "A f/a", "A f/d", "A g", "A g/a"}, items(t, l))
}

// TestUnmapped refuses IDs that the mapping does not know, in every place
// where there are some, and names them.
func TestUnmapped(t *testing.T) {
	other := fsop.Ops{Mapping: idshift.Mapping{
		UIDs: idshift.Extents{{ContainerID: 0, HostID: 900000, Size: 65536}}, GIDs: idshift.Extents{{ContainerID: 0, HostID: 900000, Size: 65536}},
	}}
	for name, c := range map[string]struct {
		do   step
		kind string
		id   uint32
	}{
		"uid":        {func(o fsop.Ops) error { return o.Chown("dir/file", 5, 0) }, "uid", 900005},
		"gid":        {func(o fsop.Ops) error { return os.Lchown(o.At("dir/file"), 100000, 7) }, "gid", 7},
		"acl user":   {setfacl("dir/file", idshift.ACLAccess), "acl user", 900033},
		"capability": {setcap("dir/file"), "capability rootid", 900000},
	} {
		t.Run(name, func(t *testing.T) {
			upper, _, l := folders(t)
			require.NoError(t, os.Chown(upper.Root, 100000, 100000))
			in := fsop.Ops{Root: upper.Root, Mapping: unshift(t, "0:100000:1000").Mapping()}
			out := fsop.Ops{Root: upper.Root, Mapping: other.Mapping}
			do(t, in, mkdir("dir"), write("dir/file", "x"))
			l.Shift = unshift(t, "0:100000:1000")
			require.NoError(t, writeback.Tar(t.Context(), writeback.Change{Layer: l}, io.Discard))
			do(t, out, c.do)
			err := writeback.Tar(t.Context(), writeback.Change{Layer: l}, io.Discard)
			var u *idshift.UnmappedError
			require.ErrorAs(t, err, &u)
			assert.Equal(t, "dir/file", u.Path)
			assert.Equal(t, c.kind, u.Kind)
			assert.Equal(t, c.id, u.ID)
			assert.ErrorContains(t, err, "dir/file")
		})
	}
}

// TestMountPoints: what buildah makes for a run and gives to the container's root,
// with that user's host ID as group, is the container's root's. Other groups
// without an ID inside are refused as ever.
func TestMountPoints(t *testing.T) {
	extent := func(host uint32) idshift.Extents { return idshift.Extents{{ContainerID: 0, HostID: host, Size: 65536}} }
	m, err := idshift.NewMapping(extent(100000), extent(300000))
	require.NoError(t, err)
	upper, _, l := folders(t)
	l.Shift, err = idshift.NewUnshift(m)
	require.NoError(t, err)
	require.NoError(t, os.Chown(upper.Root, 100000, 300000))
	in := fsop.Ops{Root: upper.Root, Mapping: m}
	do(t, in, mkdir("dev"), mkdir("dev/mqueue"), write("dev/null", ""))
	require.NoError(t, os.Chown(upper.At("dev/mqueue"), 100000, 100000))
	require.NoError(t, os.Chown(upper.At("dev/null"), 100000, 100000))
	for _, e := range headers(t, archive(t, l)) {
		assert.Equal(t, [2]int{0, 0}, [2]int{e.Uid, e.Gid}, e.Name)
	}
	for name, change := range map[string]func() error{
		"content":       func() error { return os.WriteFile(upper.At("dev/null"), []byte("x"), 0o600) },
		"another user":  func() error { return os.Chown(upper.At("dev/mqueue"), 100001, 100001) },
		"another group": func() error { return os.Chown(upper.At("dev/mqueue"), 100000, 100001) },
	} {
		require.NoError(t, change())
		var u *idshift.UnmappedError
		require.ErrorAs(t, writeback.Tar(t.Context(), writeback.Change{Layer: l}, io.Discard), &u, name)
		assert.Equal(t, "gid", u.Kind)
		require.NoError(t, os.Chown(upper.At("dev/mqueue"), 100000, 100000))
		require.NoError(t, os.Truncate(upper.At("dev/null"), 0))
	}
}

// TestCapabilities: what the host's root set in a container's upper, by podman
// cp for example, is a capability as in any image.
func TestCapabilities(t *testing.T) {
	upper, _, l := folders(t)
	require.NoError(t, os.Chown(upper.Root, 100000, 100000))
	l.Shift = unshift(t, "0:100000:65536")
	in := fsop.Ops{Root: upper.Root, Mapping: l.Shift.Mapping()}
	do(t, in, write("inside", "x"), setcap("inside"), write("outside", "x"))
	do(t, upper, setcap("outside"))
	got := make(map[string]string)
	require.NoError(t, writeback.Scan(t.Context(), l, func(it *writeback.Item) error {
		for _, x := range it.Entry.Xattrs {
			got[it.Path+" "+x.Name] = string(x.Value)
		}
		return nil
	}))
	const v2 = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	assert.Equal(t, map[string]string{"inside security.capability": v2, "outside security.capability": v2}, got)
}

// TestBadUppers gives an error with path for what no archive can be made of.
func TestBadUppers(t *testing.T) {
	const meta, redirect = "trusted.overlay.metacopy", "trusted.overlay.redirect"
	for name, c := range map[string]struct {
		upper, lower []step
		errno        unix.Errno
	}{
		"data is missing":              {[]step{write("f", ""), truncate("f", 5), setxattr("f", meta, "")}, nil, unix.EIO},
		"data is a directory":          {[]step{write("f", ""), truncate("f", 5), setxattr("f", meta, "")}, []step{mkdir("f")}, unix.EIO},
		"data is a whiteout":           {[]step{write("f", ""), truncate("f", 5), setxattr("f", meta, "")}, []step{mknod("f", unix.S_IFCHR, 0, 0)}, unix.EIO},
		"data is too short":            {[]step{write("f", ""), truncate("f", 5), setxattr("f", meta, "")}, []step{write("f", "abc")}, 0},
		"redirect to nothing":          {[]step{write("f", ""), truncate("f", 5), setxattr("f", meta, ""), setxattr("f", redirect, "/no/where")}, []step{write("f", "12345")}, unix.EIO},
		"redirect with slash, no root": {[]step{mkdir("f"), setxattr("f", redirect, "a/b")}, []step{mkdir("f")}, unix.EIO},
		"redirect out of the layers":   {[]step{write("f", ""), truncate("f", 5), setxattr("f", meta, ""), setxattr("f", redirect, "/../../../../../../../../etc/passwd")}, []step{mkdir("etc")}, unix.EIO},
		"redirect to the root":         {[]step{mkdir("f"), setxattr("f", redirect, "/")}, []step{mkdir("etc")}, unix.EIO},
		"redirect to the layer above":  {[]step{mkdir("f"), setxattr("f", redirect, "..")}, []step{mkdir("etc")}, unix.EIO},
		"redirect through a link":      {[]step{write("f", ""), truncate("f", 5), setxattr("f", meta, ""), setxattr("f", redirect, "/l/passwd")}, []step{symlink("/etc", "l")}, unix.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			upper, lower, l := folders(t)
			do(t, lower, c.lower...)
			do(t, upper, c.upper...)
			err := writeback.Tar(t.Context(), writeback.Change{Layer: l}, io.Discard)
			require.Error(t, err)
			assert.ErrorContains(t, err, "f")
			if c.errno != 0 {
				assert.ErrorIs(t, err, c.errno)
			} else {
				assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
			}
		})
	}
	for name, l := range map[string]writeback.Layer{
		"upper is missing": {Upper: "/no/such/upper"},
		"lower is missing": {Upper: t.TempDir(), Lowers: []string{"/no/such/lower"}},
	} {
		assert.ErrorIs(t, writeback.Tar(t.Context(), writeback.Change{Layer: l}, io.Discard), unix.ENOENT, name)
	}
}

// TestMetacopySize: the size that counts is that of the metadata-only file.
func TestMetacopySize(t *testing.T) {
	upper, lower, l := folders(t)
	do(t, lower, write("f", "0123456789"))
	do(t, upper, write("f", ""), truncate("f", 5), setxattr("f", "trusted.overlay.metacopy", ""))
	h := headers(t, archive(t, l))
	require.Len(t, h, 1)
	assert.Equal(t, int64(5), h[0].Size)
}

// headers reads an archive.
func headers(t *testing.T, b []byte) []*tar.Header {
	t.Helper()
	var out []*tar.Header
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		out = append(out, h)
	}
}

// TestSize counts content that the upper holds, once.
func TestSize(t *testing.T) {
	for name, c := range map[string]struct {
		do   []step
		size int64
	}{
		"nothing":       {nil, 0},
		"new":           {[]step{write("new", "12345"), mkdir("d"), symlink("x", "s")}, 5},
		"hard links":    {[]step{write("new", "12345"), link("new", "d")}, 5},
		"metadata only": {[]step{chmod("usr/bin/tool", 0o700)}, 0},
		"appended":      {[]step{add("usr/bin/tool", "x")}, 12001},
		"removed":       {[]step{remove("usr")}, 0},
		"renamed":       {[]step{rename("usr", "usr2"), write("usr2/x", "123")}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.RequireRoot(t)
			dir := testutil.LoopFS(t, fsType, 64<<20)
			ct := start(t, dir, variants()[0], image(t, filepath.Join(dir, "image"), oneLayer))
			do(t, ct.ops, c.do...)
			n, err := writeback.Size(t.Context(), writeback.Change{Layer: ct.layer()})
			require.NoError(t, err)
			assert.Equal(t, c.size, n)
		})
	}
}

// TestEnds: an error of yield, a cancelled context and a writer that fails end
// the scan with that error.
func TestEnds(t *testing.T) {
	upper, _, l := folders(t)
	do(t, upper, write("a", "x"), write("b", "y"))
	stop := errors.New("stop")
	calls := 0
	err := writeback.Scan(t.Context(), l, func(*writeback.Item) error { calls++; return stop })
	require.ErrorIs(t, err, stop)
	assert.Equal(t, 1, calls)

	ctx, cancel := context.WithCancel(t.Context())
	err = writeback.Scan(ctx, l, func(*writeback.Item) error { cancel(); return nil })
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, writeback.Tar(ctx, writeback.Change{Layer: l}, io.Discard), context.Canceled)
	require.ErrorIs(t, writeback.Tar(t.Context(), writeback.Change{Layer: l}, failing{stop}), stop)
	_, err = writeback.Size(ctx, writeback.Change{Layer: l})
	require.ErrorIs(t, err, context.Canceled)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestDescriptors: no scan leaves a descriptor open, whether it ends well or
// not.
func TestDescriptors(t *testing.T) {
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, fsType, 64<<20)
	c := start(t, dir, variants()[0], image(t, filepath.Join(dir, "image"), upperLayers()...))
	do(t, c.ops, rename("usr", "u"), rename("u/share", "s"), remove("etc"), mkdir("etc"), chmod("s/doc/x/readme", 0o600), rename("s", "etc/s"))
	open := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(e)
	}
	archive(t, c.layer())
	before := open()
	for stopAt := range 200 {
		n := 0
		err := writeback.Scan(t.Context(), c.layer(), func(*writeback.Item) error {
			if n++; n > stopAt {
				return io.EOF
			}
			return nil
		})
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
		}
	}
	archive(t, c.layer())
	assert.Equal(t, before, open())
}

// TestCompare lists what is different between any two layers.
func TestCompare(t *testing.T) {
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, fsType, 64<<20)
	base := image(t, filepath.Join(dir, "image"), oneLayer)
	c := start(t, dir, variants()[0], base)
	do(t, c.ops, add("top", "x"), remove("etc"), mkdir("etc"), write("etc/new", "n"), rename("usr", "u"), remove("abs"), symlink("x", "abs"))
	change := writeback.Change{Layer: c.layer(), Against: &writeback.Layer{Upper: base[0]}}
	var got, deleted []string
	require.NoError(t, change.Scan(t.Context(), func(it *writeback.Item) error {
		switch {
		case it.Kind == writeback.Deleted:
			deleted = append(deleted, it.Path)
		case it.Path != "." && filepath.Dir(it.Path) != "u" && filepath.Dir(filepath.Dir(it.Path)) != "u" && filepath.Dir(it.Path) != "u/share/doc" && filepath.Dir(filepath.Dir(it.Path)) != "u/share/doc":
			got = append(got, map[writeback.Kind]string{writeback.Modified: "C ", writeback.Added: "A "}[it.Kind]+it.Path)
		}
		return nil
	}))
	assert.Equal(t, []string{"C abs", "C etc", "A etc/new", "C top", "A u"}, got)
	assert.Equal(t, []string{"etc/conf.d", "etc/empty", "etc/passwd", "usr"}, deleted)
	n, err := writeback.Size(t.Context(), change)
	require.NoError(t, err)
	assert.Positive(t, n)

	same := writeback.Change{Layer: writeback.Layer{Upper: base[0]}, Against: &writeback.Layer{Upper: base[0]}}
	require.NoError(t, same.Scan(t.Context(), func(it *writeback.Item) error {
		return errors.New("a layer differs from itself in " + it.Path)
	}))
}

// TestShiftTar translates an archive and back: the result is the original.
func TestShiftTar(t *testing.T) {
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, fsType, 64<<20)
	l := writeback.Layer{Upper: image(t, dir, oneLayer)[0]}
	plain := archive(t, l)
	m, err := idshift.ParseMapping("0:100000:65536", "0:200000:65536")
	require.NoError(t, err)
	forth, err := idshift.NewShift(m, idshift.Refuse)
	require.NoError(t, err)
	var shifted, back bytes.Buffer
	require.NoError(t, writeback.ShiftTar(&shifted, bytes.NewReader(plain), forth))
	require.NoError(t, writeback.ShiftTar(&back, bytes.NewReader(shifted.Bytes()), forth.Back()))

	tree := func(name string, archive []byte) *referee.Tree {
		to := filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(to, 0o755))
		require.NoError(t, untar(to, bytes.NewReader(archive)))
		tree, err := referee.Scan(t.Context(), to, compareOptions)
		require.NoError(t, err)
		return tree
	}
	original := tree("plain", plain)
	assert.Empty(t, referee.Compare(original, tree("back", back.Bytes()), compareOptions))
	want, err := original.Shift(forth)
	require.NoError(t, err)
	differences := referee.Compare(want, tree("shifted", shifted.Bytes()), compareOptions)
	for _, d := range differences {
		assert.Equal(t, referee.RootPath, d.Path, "%s", d) // made by the test
	}

	var u *idshift.UnmappedError
	require.ErrorAs(t, writeback.ShiftTar(io.Discard, bytes.NewReader(plain), forth.Back()), &u)
	assert.NotEmpty(t, u.Path)
	assert.Error(t, writeback.ShiftTar(io.Discard, bytes.NewReader(plain[:300]), forth))
}

// TestShiftTarForms translates what other programs write.
func TestShiftTarForms(t *testing.T) {
	forth := unshift(t, "0:100000:65536").Back()
	for name, h := range map[string]*tar.Header{
		"ustar":         {Name: "f", Uid: 5, Gid: 6, Mode: 0o644, Format: tar.FormatUSTAR},
		"gnu":           {Name: "f", Uid: 5, Gid: 6, Mode: 0o644, ModTime: time.Unix(7, 0), Format: tar.FormatGNU},
		"pax":           {Name: "f", Uid: 5, Gid: 6, Mode: 0o644, ModTime: time.Unix(-7, 123), Format: tar.FormatPAX, Uname: "me"},
		"whiteout":      {Name: "d/.wh.f", Uid: 0, Gid: 0, Format: tar.FormatPAX},
		"global header": {Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "of git archive"}, Format: tar.FormatPAX},
		"overlay notes": {Name: "f", Uid: 5, Gid: 6, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.x": "y"}},
	} {
		t.Run(name, func(t *testing.T) {
			var in, out bytes.Buffer
			w := tar.NewWriter(&in)
			require.NoError(t, w.WriteHeader(h))
			require.NoError(t, w.Close())
			require.NoError(t, writeback.ShiftTar(&out, &in, forth))
			got := headers(t, out.Bytes())
			require.Len(t, got, 1)
			assert.Equal(t, h.Name, got[0].Name)
			assert.True(t, h.ModTime.IsZero() || h.ModTime.Equal(got[0].ModTime))
			if h.Uid == 5 {
				assert.Equal(t, []int{100005, 100006}, []int{got[0].Uid, got[0].Gid})
			} else {
				assert.Equal(t, []int{0, 0}, []int{got[0].Uid, got[0].Gid})
			}
			assert.NotContains(t, got[0].PAXRecords, "SCHILY.xattr.trusted.overlay.opaque")
			if x := h.PAXRecords["SCHILY.xattr.user.x"]; x != "" {
				assert.Equal(t, x, got[0].PAXRecords["SCHILY.xattr.user.x"])
			}
		})
	}
}

// TestShiftTarSparse translates the sparse files that GNU tar writes.
func TestShiftTarSparse(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sparse"), []byte("begin"), 0o644))
	require.NoError(t, os.Truncate(filepath.Join(dir, "sparse"), 1<<20))
	for _, format := range []string{"gnu", "pax"} {
		in, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "--sparse", "--format="+format, "--numeric-owner", "--owner=5", "--group=6", "-cf", "-", "sparse").Output()
		require.NoError(t, err)
		var out bytes.Buffer
		require.NoError(t, writeback.ShiftTar(&out, bytes.NewReader(in), unshift(t, "0:100000:65536").Back()))
		tr := tar.NewReader(&out)
		h, err := tr.Next()
		require.NoError(t, err)
		assert.Equal(t, "sparse", h.Name)
		assert.Equal(t, 100005, h.Uid)
		content, err := io.ReadAll(tr)
		require.NoError(t, err)
		assert.Len(t, content, 1<<20)
		assert.Equal(t, "begin", string(bytes.TrimRight(content, "\x00")))
	}
}
