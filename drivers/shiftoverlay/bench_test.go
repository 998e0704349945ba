package shiftoverlay

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
)

// benchSetups are the engines, and erofs in every way.
func benchSetups() []setup {
	return append(engines(),
		setup{name: "erofs-patched", engine: "erofs", conf: `erofs_without = "idmap"`},
		setup{name: "erofs-opaque", engine: "erofs", conf: `erofs_without = "data-only"`},
		setup{name: "erofs-loop", engine: "erofs", conf: `erofs_without = "file"`},
	)
}

// BenchmarkMapping measures what a mapping that was never seen before costs the
// driver, without podman: mounting, looking at every file once (cold caches of
// the mount) and once more, unmounting, removing; and what several of
// them take on the disk and of the kernel's memory. SHIFT_BENCH_TREE names a folder
// that is the image (default: 7,000 files), SHIFT_BENCH_FS the file system.
func BenchmarkMapping(b *testing.B) {
	testutil.RequireRoot(b)
	fstype := os.Getenv("SHIFT_BENCH_FS")
	if fstype == "" {
		fstype = "ext4"
	}
	for _, c := range benchSetups() {
		b.Run(c.name, func(b *testing.B) {
			s := newStore(b, testutil.LoopFS(b, fstype, 12<<30), c)
			s.benchImage("image")
			s.container("first", "image", mapping(b, oneExtent))
			spent := make(map[string]time.Duration)
			n := 0
			for b.Loop() {
				s.benchOnce(n, spent)
				n++
			}
			for what, d := range spent {
				b.ReportMetric(float64(d.Microseconds())/1000/float64(n), what+"-ms")
			}
			s.benchSpace()
			require.NoError(b, s.Put("first"))
			require.NoError(b, s.Remove("first"))
		})
	}
}

// benchImage makes the image.
func (s *store) benchImage(id string) {
	s.t.Helper()
	require.NoError(s.t, s.Create(id, "", nil))
	diff := filepath.Join(s.dir(id), "diff")
	if tree := os.Getenv("SHIFT_BENCH_TREE"); tree != "" {
		out, err := exec.CommandContext(s.t.Context(), "cp", "-a", tree+"/.", diff).CombinedOutput()
		require.NoError(s.t, err, string(out))
		return
	}
	o := fsop.Ops{Root: diff}
	for d := range 70 {
		require.NoError(s.t, o.Mkdir(fmt.Sprint("d", d)))
		for f := range 100 {
			require.NoError(s.t, o.Write(fmt.Sprintf("d%d/f%d", d, f), "x"))
		}
	}
}

// benchOnce takes one new mapping through its life.
func (s *store) benchOnce(n int, spent map[string]time.Duration) {
	s.t.Helper()
	id, m := fmt.Sprint("bench", n), mapping(s.t, fmt.Sprintf("0:%d:65536", 10000000+n*65536))
	step := func(what string, do func() error) {
		start := time.Now()
		require.NoError(s.t, do())
		spent[what] += time.Since(start)
	}
	var merged string
	require.NoError(s.t, s.CreateReadWrite(id, "image", nil))
	step("mount", func() (err error) {
		merged, err = s.Get(id, mapped(m))
		return err
	})
	step("look", func() error { return look(merged) })
	step("look-again", func() error { return look(merged) })
	step("unmount", func() error { return s.Put(id) })
	step("remove", func() error { return s.Remove(id) })
}

// look reads the attributes of every file.
func look(dir string) error {
	return filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			_, err = e.Info()
		}
		return err
	})
}

// benchSpace reports what mappings take in which every file was looked at.
func (s *store) benchSpace() {
	s.t.Helper()
	b := s.t.(*testing.B) //nolint:forcetypeassert // called by benchmarks only
	const n = 20
	// What all of them share is not to be counted: see drop_caches in
	// proc_sys_vm(5).
	unix.Sync()
	require.NoError(b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	require.NoError(b, look(s.get("first", mapped(mapping(b, oneExtent)))))
	kb, inodes, slab := s.space()
	for i := range n {
		require.NoError(b, look(s.container(fmt.Sprint("space", i), "image", mapping(b, fmt.Sprintf("0:%d:65536", 2000000000+i*65536)))))
	}
	kb2, inodes2, slab2 := s.space()
	b.ReportMetric(float64(kb2-kb)/n, "KB/mapping")
	b.ReportMetric(float64(inodes2-inodes)/n, "inodes/mapping")
	b.ReportMetric(float64(slab2-slab)/n, "KB-memory/mapping")
	for i := range n {
		require.NoError(b, s.Put(fmt.Sprint("space", i)))
		require.NoError(b, s.Remove(fmt.Sprint("space", i)))
	}
	require.NoError(b, s.Put("first"))
}

// space returns the kilobytes and inodes that the store's file system has in
// use, and the kernel's memory for everything but file data (Slab of
// proc_meminfo(5)) in kilobytes.
func (s *store) space() (kb, inodes, slab int64) {
	s.t.Helper()
	unix.Sync()
	var fs unix.Statfs_t
	require.NoError(s.t, unix.Statfs(s.root, &fs))
	kb = int64(fs.Blocks-fs.Bfree) * fs.Bsize / 1024 //nolint:gosec // fits
	inodes = int64(fs.Files - fs.Ffree)              //nolint:gosec // fits
	text, err := os.ReadFile("/proc/meminfo")
	require.NoError(s.t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "Slab:" {
			slab, err = strconv.ParseInt(f[1], 10, 64)
			require.NoError(s.t, err)
		}
	}
	return kb, inodes, slab
}
