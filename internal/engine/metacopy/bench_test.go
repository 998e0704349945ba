package metacopy_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/engine/metacopy"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// benchTreeEnv names a layer's folder for the benchmarks; without it they make
// one of 50,000 entries.
const benchTreeEnv = "SHIFT_BENCH_TREE"

// benchLayer returns the layer and how many entries it has.
func benchLayer(b *testing.B, dir string) (layer string, entries int) {
	b.Helper()
	layer = os.Getenv(benchTreeEnv)
	if layer == "" {
		layer = filepath.Join(dir, "layer")
		require.NoError(b, os.Mkdir(layer, 0o755))
		fstree.Apply(b, layer, benchNodes()...)
	}
	require.NoError(b, filepath.WalkDir(layer, func(_ string, _ fs.DirEntry, err error) error {
		entries++
		return err
	}))
	return layer, entries
}

// benchNodes is a tree with the mixture of a distribution's root: a directory
// for ten entries, a symbolic link for ten, few owners besides root, and hardly
// any set-user-ID bits, hard links, capabilities and ACLs.
func benchNodes() []fstree.Node {
	var out []fstree.Node
	for i := range 100 {
		for j := range 50 {
			dir := fmt.Sprintf("usr/share/package%02d/part%02d", i, j)
			out = append(out, fstree.Dir(dir), fstree.Symlink(dir+"/link", "../file"))
			for k := range 8 {
				attrs := []fstree.Attr{fstree.Mode(0o644)}
				switch (i*400 + j*8 + k) % 200 {
				case 0:
					attrs = append(attrs, fstree.Mode(0o4755))
				case 1:
					attrs = append(attrs, fstree.Owner(0, 42))
				case 2:
					attrs = append(attrs, fstree.Owner(100, 101))
				}
				size := int64(k * (j + 1) * 777)
				out = append(out, fstree.Sparse(fmt.Sprintf("%s/some-file-%d.txt", dir, k), size, nil, attrs...))
			}
		}
		first := fmt.Sprintf("usr/share/package%02d/part00/some-file-1.txt", i)
		out = append(out, fstree.Link(fmt.Sprintf("usr/share/package%02d/linked", i), first),
			fstree.File(fmt.Sprintf("usr/share/package%02d/capable", i), "x", fstree.Xattr("security.capability", fstree.CapV2())),
			fstree.Dir(fmt.Sprintf("usr/share/package%02d/acl", i), fstree.Xattr("system.posix_acl_default", fstree.ACL([]uint32{100}, nil))))
	}
	return out
}

// cpuTime returns what the process has used up so far, in microseconds.
func cpuTime(b *testing.B) float64 {
	b.Helper()
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1000
}

// benchShift returns the rules for one of several mappings.
func benchShift(b *testing.B, n int) *idshift.Shift {
	b.Helper()
	ids := fmt.Sprintf("0:%d:65536", 1000000+n%7*65536)
	m, err := idshift.ParseMapping(ids, ids)
	require.NoError(b, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(b, err)
	return s
}

// bench measures run, which works below dir, as user and system time for an
// entry of the layer: the median and the best, which on a machine that has
// other work, too, says more. Before it, prepare is called once, for another mapping.
func bench(b *testing.B, prepare func(dir string, job engine.Job), run func(dir string, n int, job engine.Job)) {
	for _, fstype := range []string{"ext4", "xfs"} {
		b.Run(fstype, func(b *testing.B) {
			point := testutil.LoopFS(b, fstype, 4<<30)
			layer, entries := benchLayer(b, point)
			prepare(point, engine.Job{Chain: []string{layer}, Shift: benchShift(b, -1)})
			var cpu []float64
			n := 0
			for b.Loop() {
				job := engine.Job{Chain: []string{layer}, Shift: benchShift(b, n)}
				before := cpuTime(b)
				run(point, n, job)
				cpu = append(cpu, (cpuTime(b)-before)/float64(entries))
				n++
			}
			slices.Sort(cpu)
			b.ReportMetric(cpu[len(cpu)/2], "µs-CPU/entry")
			b.ReportMetric(cpu[0], "best-µs-CPU/entry")
			b.ReportMetric(float64(entries), "entries")
		})
	}
}

// BenchmarkBuild measures what a new mapping of an image costs.
func BenchmarkBuild(b *testing.B) {
	bench(b, func(string, engine.Job) {}, func(dir string, n int, job engine.Job) {
		built := filepath.Join(dir, fmt.Sprint("built", n))
		require.NoError(b, os.Mkdir(built, 0o700))
		require.NoError(b, metacopy.Engine{}.Build(b.Context(), built, job))
	})
}

// BenchmarkRecycle measures what it costs where there is a tree of a mapping
// that nobody uses any more.
func BenchmarkRecycle(b *testing.B) {
	bench(b, func(dir string, job engine.Job) {
		built := filepath.Join(dir, "built")
		require.NoError(b, os.Mkdir(built, 0o700))
		require.NoError(b, metacopy.Engine{}.Build(b.Context(), built, job))
	}, func(dir string, _ int, job engine.Job) {
		require.NoError(b, metacopy.Engine{}.Recycle(b.Context(), filepath.Join(dir, "built"), job))
	})
}
