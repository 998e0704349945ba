//go:build torture

package torture

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/cache"
)

func init() {
	children["churn"] = inPlace(churnChild)
}

// TestScaleCache fills a cache with 10,000 mappings of 50 images and measures
// what finding one, listing, and trimming cost. Finding must not become slower
// with the number.
func TestScaleCache(t *testing.T) {
	a := begin(t, "scale-cache")
	images, mappings := 50, 200
	if a.short() {
		images, mappings = 10, 20
	}
	p := newPlace(t, ways[1])
	store := p.opened(t)
	m, err := manager(store)
	require.NoError(t, err)
	var tops []string
	for i := range images {
		image, err := makeImage(store, fmt.Sprint("i", i), 1, 20)
		require.NoError(t, err)
		tops = append(tops, image.TopLayer)
	}
	user := shiftoverlay.WarmUser()
	warm := func(image, n int) {
		w, err := m.Warm(t.Context(), tops[image], asMapping(mappingNumber(n)), user)
		require.NoError(t, err)
		require.NoError(t, m.Release(w.Ref, user))
		a.operations.Add(1)
	}
	// What one costs, in a cache of few and in one of many.
	cost := func(what string) (hit, miss time.Duration) {
		hit, miss = median(21, func(int) { warm(0, 0) }), median(5, func(i int) { warm(1, mappings+int(a.operations.Load())+i) })
		t.Logf("%s: found %s, made %s", what, hit, miss)
		return hit, miss
	}
	warm(0, 0)
	few, _ := cost("few entries")
	start := time.Now()
	for n := range mappings {
		for i := range images {
			warm(i, n)
		}
	}
	total := images * mappings
	t.Logf("%d entries made in %s", total, time.Since(start))
	many, _ := cost(fmt.Sprint(total, " entries"))
	if many > 3*few+time.Millisecond {
		a.loss("an entry is found in %s among few and in %s among %d", few, many, total)
	}
	var size int64
	for _, name := range []string{"list, sizes not known yet", "list"} {
		start := time.Now()
		list, err := m.Entries(t.Context())
		require.NoError(t, err)
		took := time.Since(start)
		t.Logf("%s: %d entries in %s, %s each", name, len(list), took, took/time.Duration(len(list)))
		if name == "list" && took > time.Duration(len(list))*time.Millisecond {
			a.loss("listing %d entries takes %s", len(list), took)
		}
		size = 0
		for _, e := range list {
			size += e.Bytes
		}
	}
	for name, limit := range map[string]int64{"trim, nothing to do": size, "trim half": size / 2} {
		start := time.Now()
		removed, err := m.Prune(t.Context(), limit, 0)
		require.NoError(t, err)
		t.Logf("%s: %d entries removed in %s", name, len(removed), time.Since(start))
	}
	c, err := cache.Open(p.cache(), cache.Options{})
	require.NoError(t, err)
	start = time.Now()
	_, err = c.Find(t.Context(), cache.Ref{Layer: tops[0]})
	require.Error(t, err)
	t.Logf("opened and found absent in %s", time.Since(start))
}

// median is that of a number of durations.
func median(n int, do func(i int)) time.Duration {
	var list []time.Duration
	for i := range n {
		start := time.Now()
		do(i)
		list = append(list, time.Since(start))
	}
	slices.Sort(list)
	return list[n/2]
}

// churnChild starts one container with a mapping of its own as a short process,
// and removes it.
func churnChild(_ place, store storage.Store, args []string) error {
	_, root, done, err := started(store, "one", number(args[0]))
	if err != nil {
		return err
	}
	return errors.Join(wrongOwner(root, mappingNumber(number(args[0]))[0].HostID, 20), done())
}

// TestScaleChurn starts containers with ever new mappings, each in a process that
// ends at once: the cache must stay near its limit without anybody's help.
func TestScaleChurn(t *testing.T) {
	a := begin(t, "scale-churn")
	const limit, over = 2 << 20, 40 // bytes; entries that may be too many for a time
	for _, w := range []way{ways[1], ways[2]} {
		p := newPlace(t, w, fmt.Sprintf("cache_max_size = \"%d\"", limit))
		store := p.opened(t)
		_, err := makeImage(store, "one", 1, 200)
		require.NoError(t, err)
		c, err := cache.Open(p.cache(), cache.Options{})
		require.NoError(t, err)
		n := 150
		if !a.short() {
			n = 1000
		}
		var most, each int64
		for i := range n {
			if a.over() {
				break
			}
			if out, err := output(t.Context(), "churn", p, strconv.Itoa(i)); err != nil {
				a.loss("%s: start %d: %v %s", w.name, i, err, out)
				break
			}
			a.operations.Add(1)
			list, err := c.List(t.Context())
			require.NoError(t, err)
			var size int64
			for _, e := range list {
				size += e.Bytes
				each = max(each, e.Bytes)
			}
			most = max(most, size)
		}
		t.Logf("%s: at most %d KiB, limit %d KiB, an entry has %d KiB", w.name, most>>10, limit>>10, each>>10)
		if most > limit+over*each {
			a.loss("%s: the cache grew to %d KiB, its limit is %d KiB", w.name, most>>10, limit>>10)
		}
	}
}

// TestScaleRunning runs many containers (TORTURE_CONTAINERS) in as many user
// namespaces at the same time, with podman.
func TestScaleRunning(t *testing.T) {
	a := begin(t, "scale-running")
	podman, err := exec.LookPath("podman")
	require.NoError(t, err, "make podman runc images")
	n := 500
	if text := os.Getenv("TORTURE_CONTAINERS"); text != "" {
		n = number(text)
	} else if a.short() {
		n = 8
	}
	for _, w := range ways[:1] {
		p := newPlace(t, w)
		run := func(args ...string) (string, error) {
			cmd := exec.CommandContext(t.Context(), podman, append([]string{"--root", p.graph(), "--runroot", p.run(), "--storage-driver", "shiftoverlay"}, args...)...)
			cmd.Env = append(os.Environ(), "SHIFTOVERLAY_CONF="+p.conf())
			out, err := cmd.CombinedOutput()
			return strings.TrimSpace(string(out)), err
		}
		out, err := run("import", filepath.Join(filepath.Dir(podman), "images", "busybox.tar"), "box")
		require.NoError(t, err, out)
		before := memory(t)
		first := median(3, func(int) { a.runOne(run) })
		start := time.Now()
		var wg sync.WaitGroup
		work := make(chan int)
		for range 4 {
			wg.Go(func() {
				for range work {
					a.runOne(run)
				}
			})
		}
		for i := range n - 3 {
			work <- i
		}
		close(work)
		wg.Wait()
		t.Logf("%s: %d containers in %s; the first took %s each", w.name, n, time.Since(start), first)
		last := median(3, func(int) { a.runOne(run) })
		took := median(3, func(int) { _, err = run("ps", "-q") })
		require.NoError(t, err)
		t.Logf("%s: with %d running, one more takes %s, podman ps %s; memory %d KiB each, mounts %d", w.name, n, last, took, (before-memory(t))/int64(n), len(p.mounts()))
		a.separate(run, n+3)
		out, err = run("rm", "-fa", "-t", "0")
		if err != nil {
			a.loss("%s: rm: %v %.300s", w.name, err, out)
		}
		p.in(t, func(store storage.Store) {
			a.quiet(p, store)
			a.pruneTo(store, 0)
		})
	}
}

func (a *area) runOne(run func(args ...string) (string, error)) {
	a.operations.Add(1)
	if out, err := run("run", "-d", "--userns=auto:size=1024", "box", "sleep", "100000"); err != nil {
		a.loss("run: %v: %.300s", err, out)
	}
}

// separate looks whether all containers have user namespaces and host IDs of
// their own, which the files that they see have, too.
func (a *area) separate(run func(args ...string) (string, error), n int) {
	out, err := run("ps", "-a", "--format", "{{.Pid}}")
	require.NoError(a.t, err)
	pids := strings.Fields(out)
	if len(pids) != n {
		a.loss("%d containers instead of %d", len(pids), n)
	}
	seen := map[string]bool{}
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + pid + "/uid_map")
		if err != nil {
			a.loss("container with process %s is not running: %v", pid, err)
			continue
		}
		f := strings.Fields(string(text))
		if len(f) < 3 || seen[f[1]] {
			a.loss("process %s has the mapping %q, which another has", pid, text)
			continue
		}
		seen[f[1]] = true
		owner, err := exec.CommandContext(a.t.Context(), "stat", "-c", "%u", "/proc/"+pid+"/root/bin").Output()
		if got := strings.TrimSpace(string(owner)); err != nil || got != f[1] {
			a.loss("process %s sees /bin of %s instead of %s: %v", pid, got, f[1], err)
		}
	}
}

// memory is what is free, in KiB.
func memory(t *testing.T) int64 {
	t.Helper()
	f, err := os.Open("/proc/meminfo")
	require.NoError(t, err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int64
		if _, err := fmt.Sscanf(s.Text(), "MemAvailable: %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Fatal("no MemAvailable")
	return 0
}
