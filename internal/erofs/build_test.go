package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// collect takes in a tree of one directory, in which all directories are empty.
func collect(t require.TestingT, layout Layout, self idshift.Entry, entries []idshift.Entry) (*collector, error) {
	c, err := newCollector(layout)
	require.NoError(t, err)
	if err := c.Directory(context.Background(), &idshift.Dir{Self: self, Entries: entries}); err != nil {
		return nil, err
	}
	for i := range c.root.subs {
		f := filler{collector: c, dir: &c.root.subs[i]}
		require.NoError(t, f.fill(context.Background(), nil))
	}
	return c, nil
}

// flat makes a template of a tree of one directory, whoever owns what and
// whatever is possible on the disk of the test.
func flat(t require.TestingT, layout Layout, self idshift.Entry, entries []idshift.Entry) []byte {
	c, err := collect(t, layout, self, entries)
	require.NoError(t, err)
	p, err := c.place(context.Background())
	require.NoError(t, err)
	f, err := os.CreateTemp("", "image")
	require.NoError(t, err)
	defer func() { require.NoError(t, errors.Join(f.Close(), os.Remove(f.Name()))) }()
	_, err = p.write(context.Background(), f)
	require.NoError(t, err)
	b, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	return b
}

// TestFlat checks what the reader go-erofs sees of random inodes, before and
// after a shift. It needs no root.
func TestFlat(t *testing.T) {
	acls := []string{fstree.ACL([]uint32{1, 70000}, []uint32{2}), fstree.ACL(nil, []uint32{1000})}
	attribute := rapid.SampledFrom([]idshift.Xattr{
		{Name: "user.u", Value: []byte("v")},
		{Name: "user.empty"},
		{Name: "security.selinux", Value: []byte("label\x00")},
		{Name: "trusted.t", Value: bytes.Repeat([]byte("t"), 900)},
		{Name: idshift.ACLAccess, Value: []byte(acls[0])},
		{Name: idshift.ACLDefault, Value: []byte(acls[1])},
		{Name: idshift.Capability, Value: []byte(fstree.CapV2())},
		{Name: "trusted.overlay.opaque", Value: []byte("y")},
	})
	name := rapid.StringOfN(rapid.RuneFrom([]rune("!-.0azü\x01")), 1, 60, nameMax).Filter(func(s string) bool { return s != "." && s != ".." })
	self := idshift.Entry{}
	self.Stat.Mode = typeDir | 0o755
	sh := newShift(t, "0:100000:1000", idshift.Overflow)
	rapid.Check(t, func(t *rapid.T) {
		layout := rapid.SampledFrom(both).Draw(t, "layout")
		names := rapid.SliceOfNDistinct(name, 0, 40, rapid.ID[string]).Draw(t, "names")
		slices.Sort(names)
		want := view{".": {Mode: self.Stat.Mode, Nlink: 2, Xattrs: map[string]string{}}}
		var entries []idshift.Entry
		for i, n := range names {
			e, s := drawEntry(t, n, rapid.SliceOfNDistinct(attribute, 0, 4, func(x idshift.Xattr) string { return x.Name }).Draw(t, "attributes"))
			s.ino = uint64(i + 1)
			if e.IsDir() {
				want["."].Nlink++
			}
			entries = append(entries, e)
			want[n] = s
		}
		template := flat(t, layout, self, entries)
		checkView(t, want.finish(), goViewOf(t, template), layout, "go-erofs")
		out := make(memory, len(template))
		h, err := readHeader(bytes.NewReader(template), int64(len(template)))
		require.NoError(t, err)
		require.NoError(t, patch(context.Background(), out[:h.size], bytes.NewReader(template), int64(len(template)), sh))
		checkView(t, want.shifted(t, sh).finish(), goViewOf(t, out[:h.size]), layout, "go-erofs")
	})
}

// drawEntry draws an inode, and what is to be seen of it.
func drawEntry(t *rapid.T, name string, xattrs []idshift.Xattr) (idshift.Entry, *seen) {
	e := idshift.Entry{Name: name, Xattrs: xattrs}
	st := &e.Stat
	typ := rapid.SampledFrom([]uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK}).Draw(t, "type")
	st.Mode = typ | rapid.Uint32Range(0, 0o7777).Draw(t, "mode")
	st.Uid, st.Gid = rapid.Uint32().Draw(t, "uid"), rapid.Uint32().Draw(t, "gid")
	st.Mtim.Sec, st.Mtim.Nsec = rapid.Int64().Draw(t, "sec"), rapid.Int64Range(0, 999999999).Draw(t, "nsec")
	st.Nlink = 1
	s := &seen{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec, Nlink: 1, Xattrs: map[string]string{}}
	switch typ {
	case unix.S_IFDIR:
		s.Nlink = 2
	case unix.S_IFREG:
		st.Size = rapid.Int64Range(0, 1<<53).Draw(t, "size")
		s.Size = st.Size
	case unix.S_IFLNK:
		e.Target = strings.Repeat("t", rapid.IntRange(1, targetMax).Draw(t, "target"))
		s.Size, s.Target = int64(len(e.Target)), e.Target
	case unix.S_IFCHR, unix.S_IFBLK:
		st.Rdev = unix.Mkdev(rapid.Uint32Range(0, 1<<12-1).Draw(t, "major"), rapid.Uint32Range(0, 1<<20-1).Draw(t, "minor"))
		s.Rdev = st.Rdev
	}
	for _, x := range xattrs {
		if !idshift.IsOverlayXattr(x.Name) {
			s.Xattrs[x.Name] = string(x.Value)
		}
	}
	return e, s
}

// TestUnfit checks that what EROFS cannot hold is named.
func TestUnfit(t *testing.T) {
	self := idshift.Entry{}
	self.Stat.Mode = typeDir
	entry := func(name string, mode uint32, change func(e *idshift.Entry)) idshift.Entry {
		e := idshift.Entry{Name: name}
		e.Stat.Mode, e.Stat.Nlink = mode, 1
		change(&e)
		return e
	}
	for what, e := range map[string]idshift.Entry{
		"name":          entry(strings.Repeat("n", nameMax+1), unix.S_IFREG, func(*idshift.Entry) {}),
		"hole":          entry("f", unix.S_IFREG, func(e *idshift.Entry) { e.Stat.Size = 1<<53 + 1 }),
		"target":        entry("f", unix.S_IFLNK, func(e *idshift.Entry) { e.Target = strings.Repeat("t", targetMax+1) }),
		"a target of 0": entry("f", unix.S_IFLNK, func(*idshift.Entry) {}),
		"device number": entry("f", unix.S_IFBLK, func(e *idshift.Entry) { e.Stat.Rdev = unix.Mkdev(1<<12, 0) }),
		"system.nfs4":   entry("f", unix.S_IFREG, func(e *idshift.Entry) { e.Xattrs = []idshift.Xattr{{Name: "system.nfs4_acl"}} }),
	} {
		_, err := collect(t, DataOnly, self, []idshift.Entry{e})
		var unfit *UnfitError
		require.ErrorAs(t, err, &unfit, what)
		assert.Equal(t, e.Name, unfit.Path)
		assert.Contains(t, err.Error(), what)
	}
	big := entry("f", unix.S_IFREG, func(e *idshift.Entry) { e.Stat.Size = 1<<63 - 1 })
	_, err := collect(t, Opaque, self, []idshift.Entry{big})
	require.NoError(t, err, "without a redirect there are no chunks")
	_, err = Build(t.Context(), newFile(t, t.TempDir()), []string{t.TempDir()}, Options{Layout: 7})
	require.ErrorContains(t, err, "Layout(7)")
	root := self
	root.Xattrs = []idshift.Xattr{{Name: "btrfs.compression"}}
	_, err = collect(t, Opaque, root, nil)
	var unfit *UnfitError
	require.ErrorAs(t, err, &unfit)
	assert.Equal(t, ".", unfit.Path)
}

// manyFiles writes a tree of directories with links from one to the other.
func manyFiles(t testing.TB, dirs, files int) string {
	t.Helper()
	root := t.TempDir()
	for i := range dirs {
		dir := filepath.Join(root, fmt.Sprintf("d%d/e%d", i%7, i))
		require.NoError(t, os.MkdirAll(dir, 0o755))
		for j := range files {
			name := filepath.Join(dir, fmt.Sprintf("file-%d", j))
			if j%10 == 0 && i > 0 {
				require.NoError(t, os.Link(filepath.Join(root, "d0/e0", fmt.Sprintf("file-%d", j)), name))
				continue
			}
			require.NoError(t, os.WriteFile(name, []byte(strings.Repeat("x", j)), 0o644))
		}
	}
	return root
}

// TestDeterministic checks that any number of threads makes the same bytes.
func TestDeterministic(t *testing.T) {
	root := manyFiles(t, 60, 40)
	for _, layout := range both {
		var first []byte
		for _, n := range []int{1, 2, 3, 16, 0} {
			f := newFile(t, t.TempDir())
			_, err := Build(t.Context(), f, []string{root}, Options{Layout: layout, Workers: n})
			require.NoError(t, err)
			b, err := os.ReadFile(f.Name())
			require.NoError(t, err)
			if first == nil {
				first = b
			}
			require.True(t, bytes.Equal(first, b), "%d threads", n)
		}
	}
}

// settled waits until no more goroutines run than before.
func settled(t testing.TB, before int) {
	t.Helper()
	for start := time.Now(); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.Less(t, time.Since(start), 10*time.Second, "goroutines that do not end")
	}
}

// TestBuildCancelled checks that a build ends in each of its phases, and
// leaves nothing behind.
func TestBuildCancelled(t *testing.T) {
	root := manyFiles(t, 60, 40)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	goroutines, files := runtime.NumGoroutine(), testutil.OpenFiles(t)
	f := newFile(t, t.TempDir())
	_, err := Build(ctx, f, []string{root}, Options{})
	require.ErrorIs(t, err, why)
	c, err := newCollector(DataOnly)
	require.NoError(t, err)
	require.NoError(t, idshift.Walk(t.Context(), []string{root}, idshift.WalkOptions{}, c))
	_, err = c.place(ctx)
	require.ErrorIs(t, err, why)
	p, err := c.place(t.Context())
	require.NoError(t, err)
	_, err = p.write(ctx, f)
	require.ErrorIs(t, err, why)
	settled(t, goroutines)
	assert.Equal(t, files+1, testutil.OpenFiles(t))
}

// TestBuildCannotWrite checks that the error of a file that cannot be written
// is returned, when it comes in the middle, too.
func TestBuildCannotWrite(t *testing.T) {
	self := idshift.Entry{}
	self.Stat.Mode = typeDir
	var entries []idshift.Entry
	for i := range 60000 {
		e := idshift.Entry{Name: fmt.Sprintf("%060d", i)}
		e.Stat.Mode, e.Stat.Nlink = unix.S_IFREG, 1
		entries = append(entries, e)
	}
	c, err := collect(t, Opaque, self, entries)
	require.NoError(t, err)
	p, err := c.place(t.Context())
	require.NoError(t, err)
	require.Greater(t, p.bytes(), int64(6*segmentSize))
	goroutines := runtime.NumGoroutine()
	f, err := os.Open(newFile(t, t.TempDir()).Name())
	require.NoError(t, err)
	defer f.Close()
	_, err = p.write(t.Context(), f)
	require.ErrorIs(t, err, unix.EBADF)
	settled(t, goroutines)
}

// BenchmarkBuild builds an image of the folder that EROFS_BENCH names.
func BenchmarkBuild(b *testing.B) {
	root := os.Getenv("EROFS_BENCH")
	if root == "" {
		root = manyFiles(b, 300, 30)
	}
	for _, layout := range both {
		for _, workers := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/workers=%d", layout, workers), func(b *testing.B) {
				var info Info
				for b.Loop() {
					f := newFile(b, b.TempDir())
					var err error
					info, err = Build(b.Context(), f, []string{root}, Options{Layout: layout, Workers: workers})
					require.NoError(b, err)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(info.Inodes), "ns/inode")
				b.ReportMetric(float64(info.Size)/float64(info.Inodes), "B/inode")
			})
		}
	}
}

// BenchmarkPatch patches the image of BenchmarkBuild.
func BenchmarkPatch(b *testing.B) {
	root := os.Getenv("EROFS_BENCH")
	if root == "" {
		root = manyFiles(b, 300, 30)
	}
	s := newShift(b, "0:100000:65536", idshift.Overflow)
	for _, layout := range both {
		b.Run(layout.String(), func(b *testing.B) {
			f := newFile(b, b.TempDir())
			info, err := Build(b.Context(), f, []string{root}, Options{Layout: layout})
			require.NoError(b, err)
			b.SetBytes(info.Size)
			for b.Loop() {
				require.NoError(b, Patch(b.Context(), newFile(b, b.TempDir()), f, s))
			}
		})
	}
}
