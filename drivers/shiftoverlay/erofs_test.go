package shiftoverlay

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// bothErofs runs a test with the engine erofs at its best and at its worst.
func bothErofs(t *testing.T, size int64, test func(t *testing.T, s *store, c setup)) {
	testutil.RequireRoot(t)
	for _, c := range engines() {
		if c.engine == "erofs" {
			t.Run(c.name, func(t *testing.T) { test(t, newStore(t, testutil.LoopFS(t, "ext4", size), c), c) })
		}
	}
}

// numbered returns a mapping that no other number has.
func numbered(t *testing.T, n int) idshift.Mapping {
	t.Helper()
	return mapping(t, fmt.Sprintf("0:%d:65536", 100000+n*65536))
}

// TestManyLayers mounts images of 1 to 400 layers, each of which changes
// something.
func TestManyLayers(t *testing.T) {
	bothErofs(t, fsSize, func(t *testing.T, s *store, _ setup) {
		const most = 400
		parent := ""
		for i := range most {
			id := fmt.Sprint("layer", i)
			require.NoError(t, s.Create(id, parent, nil))
			o := fsop.Ops{Root: filepath.Join(s.dir(id), "diff")}
			require.NoError(t, o.Mkdir("d"))
			require.NoError(t, o.Write(fmt.Sprint("d/f", i), fmt.Sprint("content ", i)))
			require.NoError(t, o.Write("d/last", id))
			parent = id
		}
		m := mapping(t, oneExtent)
		for _, n := range []int{1, 2, 60, 130, most} {
			id := fmt.Sprint("c", n)
			merged := s.container(id, fmt.Sprint("layer", n-1), m)
			for _, i := range []int{0, n / 2, n - 1} {
				p := filepath.Join(merged, fmt.Sprint("d/f", i))
				b, err := os.ReadFile(p)
				require.NoError(t, err)
				assert.Equal(t, fmt.Sprint("content ", i), string(b))
				assert.Equal(t, [2]uint32{200000, 200000}, owner(t, p))
			}
			b, err := os.ReadFile(filepath.Join(merged, "d/last"))
			require.NoError(t, err)
			assert.Equal(t, fmt.Sprint("layer", n-1), string(b))
			names, err := os.ReadDir(filepath.Join(merged, "d"))
			require.NoError(t, err)
			assert.Len(t, names, n+1)
			require.NoError(t, s.Put(id))
		}
	})
}

// TestInodeNumbers checks that a file keeps its inode number when it is copied
// up, mounted again, and its image made anew, and that all files of a
// container are on one device.
func TestInodeNumbers(t *testing.T) {
	testutil.RequireKernel(t, 6, 1) // an older one that keeps them was not found
	bothErofs(t, smallFS, func(t *testing.T, s *store, c setup) {
		s.image("image", "", fsop.MakeImage)
		m := mapping(t, oneExtent)
		merged := s.container("c", "image", m)
		o := fsop.Ops{Root: merged, Mapping: m}
		files := []string{"etc/passwd", "usr/bin/tool", "data/user", "usr/lib"}
		numbers := func() (out []uint64) {
			var root unix.Stat_t
			require.NoError(t, unix.Lstat(s.get("c", graphdriver.MountOpts{}), &root))
			defer func() { require.NoError(t, s.Put("c")) }()
			for _, f := range files {
				st, err := o.Stat(f)
				require.NoError(t, err)
				assert.Equal(t, root.Dev, st.Dev, "device of %s", f)
				out = append(out, st.Ino)
			}
			return out
		}
		before := numbers()
		require.NoError(t, fsop.All(
			func() error { return o.Chmod("etc/passwd", 0o600) }, func() error { return o.Write("usr/bin/tool", "more") },
			func() error { return o.Chown("usr/lib", 33, 33) },
		))
		assert.Equal(t, before, numbers(), "after copy-up")
		require.NoError(t, s.Put("c"))
		s.open(c)
		s.get("c", graphdriver.MountOpts{})
		assert.Equal(t, before, numbers(), "after a new mount")
		require.NoError(t, s.Put("c"))
		require.NoError(t, os.RemoveAll(s.root+"/"+driverName+cacheSuffix))
		s.get("c", graphdriver.MountOpts{})
		assert.Equal(t, before, numbers(), "after a new image")
		require.NoError(t, s.Put("c"))
	})
}

// TestACLGap checks what the documentation says of ACLs: on a file of the
// image they can be set once it has been changed in any way, and on a new one
// at once.
func TestACLGap(t *testing.T) {
	bothErofs(t, smallFS, func(t *testing.T, s *store, _ setup) {
		s.image("image", "", fsop.MakeImage)
		m := mapping(t, oneExtent)
		o := fsop.Ops{Root: s.container("c", "image", m), Mapping: m}
		set := func(p string) error { return o.SetACL(p, idshift.ACLAccess, 1000, 33) }
		require.ErrorIs(t, set("etc/passwd"), unix.ENOTSUP)
		require.ErrorIs(t, set("etc"), unix.ENOTSUP)
		require.NoError(t, o.Chmod("etc/passwd", 0o600))
		require.NoError(t, set("etc/passwd"))
		require.NoError(t, o.Write("new", "x"))
		require.NoError(t, set("new"))
		require.NoError(t, s.Put("c"))
	})
}

// TestReadOnlyMount checks a mount with the option ro.
func TestReadOnlyMount(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		m := mapping(t, oneExtent)
		o := fsop.Ops{Root: s.container("c", "image", m), Mapping: m}
		require.NoError(t, fsop.All(
			func() error { return o.Chmod("usr/bin/tool", 0o700) }, func() error { return o.Write("new", "x") }, func() error { return o.Remove("etc/passwd") },
		))
		want := seen(t, o.Root, &m)
		require.NoError(t, s.Put("c"))
		with := mapped(m)
		with.Options = []string{"ro", "nodev"}
		merged := s.get("c", with)
		require.ErrorIs(t, os.WriteFile(filepath.Join(merged, "more"), nil, 0o600), unix.EROFS)
		equal(t, want, seen(t, merged, &m), "writable != read-only")
		require.NoError(t, s.Put("c"))
	})
}

// TestVolatile checks that a volatile container can be mounted again.
func TestVolatile(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *store, _ setup) {
		m := mapping(t, oneExtent)
		with := mapped(m)
		with.Volatile = true
		require.NoError(t, s.CreateReadWrite("c", "image", nil))
		for i := range 2 {
			merged := s.get("c", with)
			require.NoError(t, fsop.Ops{Root: merged, Mapping: m}.Write(fmt.Sprint("new", i), "x"))
			info, err := os.ReadFile("/proc/self/mountinfo")
			require.NoError(t, err)
			assert.Contains(t, string(info), "volatile")
			require.NoError(t, s.Put("c"))
		}
	})
}

// TestSharedPages reads one file in one of 50 containers with 50 mappings: the
// others find it in memory. How the page cache grows is for make bench to
// measure: here, others use it at the same time.
func TestSharedPages(t *testing.T) {
	bothErofs(t, 256<<20, func(t *testing.T, s *store, _ setup) {
		const size, containers = 32 << 20, 50
		s.image("image", "", func(o fsop.Ops) error { return os.WriteFile(o.At("large"), make([]byte, size), 0o600) })
		var files []string
		for i := range containers {
			files = append(files, filepath.Join(s.container(fmt.Sprint("c", i), "image", numbered(t, i)), "large"))
		}
		evict(t, filepath.Join(s.dir("image"), "diff/large"))
		for _, f := range files {
			require.Less(t, resident(t, f), size/10, "bytes in memory before anybody read them")
		}
		f, err := os.Open(files[0])
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, f)
		require.NoError(t, err)
		require.Equal(t, int64(size), n)
		require.NoError(t, f.Close())
		for _, f := range files {
			require.Greater(t, resident(t, f), size-size/10, "bytes in memory after one has read them")
		}
		for i := range containers {
			require.NoError(t, s.Put(fmt.Sprint("c", i)))
		}
	})
}

// evict takes a file out of the page cache.
func evict(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Sync())
	require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// resident tells how many bytes of a file are in the page cache (mincore(2)).
func resident(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(m)) }()
	page := os.Getpagesize()
	pages := make([]byte, (len(m)+page-1)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0])))
	require.Zero(t, errno)
	n := 0
	for _, p := range pages {
		n += int(p&1) * page
	}
	return n
}

// TestMappingsInARow makes, mounts and removes containers with one mapping
// after the other, SHIFT_MAPPINGS_N of them (100), of an image of 7,000 files
// or the folder SHIFT_BENCH_TREE. Nothing is left but the template, and, where
// SHIFT_MAPPINGS_N asks for it and the machine has nothing else to do, the last
// ones take no longer than the first.
func TestMappingsInARow(t *testing.T) {
	bothErofs(t, 16<<30, func(t *testing.T, s *store, c setup) {
		n := 100
		v := os.Getenv("SHIFT_MAPPINGS_N")
		if v != "" {
			var err error
			n, err = strconv.Atoi(v)
			require.NoError(t, err)
		}
		s.benchImage("image")
		mounts, files := len(mountsBelow(t, s.root)), testutil.OpenFiles(t)
		times := make([]time.Duration, n)
		for i := range n {
			id := fmt.Sprint("c", i)
			start := time.Now()
			merged := s.container(id, "image", numbered(t, i))
			entries, err := os.ReadDir(merged)
			require.NoError(t, err)
			require.Equal(t, numbered(t, i).UIDs[0].HostID, owner(t, filepath.Join(merged, entries[0].Name()))[0])
			require.NoError(t, s.Put(id))
			require.NoError(t, s.Remove(id))
			times[i] = time.Since(start)
		}
		part := max(n/10, 1)
		first, last := median(times[:part]), median(times[n-part:])
		t.Logf("%d mappings: the first %d took %s each, the last %s (medians)", n, part, first, last)
		if v != "" {
			assert.Less(t, last, first*13/10, "no growth with the number of mappings")
		}
		assert.Len(t, mountsBelow(t, s.root), mounts)
		testutil.NoMoreFiles(t, files)
		assert.Empty(t, s.users())
		assert.Len(t, s.entries(), c.entries(t, n))
		require.NoError(t, s.Remove("image"))
		assert.Empty(t, s.entries())
		loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		require.NoError(t, err)
		for _, l := range loops {
			if b, err := os.ReadFile(l); err == nil {
				assert.NotContains(t, string(b), s.root)
			}
		}
	})
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}
