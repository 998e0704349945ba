//go:build torture

package torture

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
)

func init() {
	children["start"] = inPlace(startChild)
	children["warm"] = inPlace(warmChild)
}

// crowd is how many come at once.
const crowd = 64

// startChild starts a container of image "one" under a mapping's number, and
// says how much was built for it.
func startChild(_ place, store storage.Store, args []string) error {
	built := builds()
	n := number(args[0])
	c, err := container(store, "one", mappingNumber(n), true)
	if err != nil {
		return err
	}
	root, err := store.Mount(c.ID, "")
	if err != nil {
		return err
	}
	if err := wrongOwner(root, mappingNumber(n)[0].HostID, 3); err != nil {
		return err
	}
	fmt.Println(built.Load())
	return nil
}

// warmChild warms image "one" for a mapping's number, without the store's lock.
func warmChild(_ place, store storage.Store, args []string) error {
	built := builds()
	m, err := manager(store)
	if err != nil {
		return err
	}
	image, err := store.Image("one")
	if err != nil {
		return err
	}
	ctx := context.Background()
	if len(args) > 1 { // the time after which it is cancelled
		limit, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		c, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		ctx = c
	}
	w, err := m.Warm(ctx, image.TopLayer, asMapping(mappingNumber(number(args[0]))), shiftoverlay.WarmUser())
	if err != nil {
		return err
	}
	fmt.Println(built.Load())
	return m.Release(w.Ref, shiftoverlay.WarmUser())
}

// together runs children at the same time, and adds up what they say they built.
func (a *area) together(p place, name string, n int, arg func(i int) []string) (built int) {
	var wg sync.WaitGroup
	var lock sync.Mutex
	for i := range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(a.t.Context(), 5*time.Minute)
			defer cancel()
			out, err := output(ctx, name, p, arg(i)...)
			a.operations.Add(1)
			lock.Lock()
			defer lock.Unlock()
			if err != nil {
				a.loss("%s %v: %v", name, arg(i), err)
				return
			}
			built += number(strings.TrimSpace(string(out)))
		})
	}
	wg.Wait()
	return built
}

// buildsUnderWay counts the builds that run in a cache, until stop.
func buildsUnderWay(p place, stop <-chan struct{}) (most int) {
	for {
		select {
		case <-stop:
			return most
		case <-time.After(2 * time.Millisecond):
			dirs, _ := filepath.Glob(filepath.Join(p.cache(), "tmp", "*", "data"))
			most = max(most, len(dirs))
		}
	}
}

// TestCrowdStart has many start at once: with one mapping, of which one builds,
// and each with its own, of which all start and few build at a time.
func TestCrowdStart(t *testing.T) {
	a := begin(t, "crowd-start")
	list := ways[:4]
	n := crowd
	if a.short() {
		list, n = []way{ways[a.rand.IntN(2)], ways[2]}, 16
	}
	for _, w := range list {
		if a.over() {
			break
		}
		t.Run(w.name, func(t *testing.T) {
			p := newPlace(t, w)
			store := p.opened(t)
			_, err := makeImage(store, "one", 2, 500)
			require.NoError(t, err)
			// Without the store's lock half of them; with one mapping.
			one := func(int) []string { return []string{"0"} }
			var wg sync.WaitGroup
			built := 0
			wg.Go(func() { built = a.together(p, "warm", n/2, one) })
			built2 := a.together(p, "start", n/2, one)
			wg.Wait()
			assert.Equal(t, 1, built+built2, "builds for one mapping")

			stop, most := make(chan struct{}), make(chan int)
			go func() { most <- buildsUnderWay(p, stop) }()
			each := func(i int) []string { return []string{strconv.Itoa(i)} }
			wg.Go(func() { a.together(p, "warm", n, each) })
			a.together(p, "start", n, each)
			wg.Wait()
			close(stop)
			bound := runtime.NumCPU()
			assert.LessOrEqual(t, <-most, bound, "builds at the same time")
			a.quiet(p, store)
			containers, err := store.Containers()
			require.NoError(t, err)
			for _, c := range containers {
				require.NoError(t, removeContainer(store, c.ID))
			}
			sweep(t, p)
		})
	}
}

// TestCrowdTakeover kills builders while others wait for them, and cancels some
// who wait.
func TestCrowdTakeover(t *testing.T) {
	a := begin(t, "crowd-takeover")
	rounds := 20
	for _, w := range []way{ways[2], ways[0]} {
		p := newPlace(t, w)
		store := p.opened(t)
		_, err := makeImage(store, "one", 1, 20000)
		require.NoError(t, err)
		end := time.Now().Add(a.part(0.5, time.Hour))
		for i := range rounds {
			if a.short() && i > 0 && time.Now().After(end) {
				break
			}
			a.takeover(p, store, i)
		}
	}
}

func (a *area) takeover(p place, store storage.Store, i int) {
	t := a.t
	n := strconv.Itoa(i)
	first := childOf(t.Context(), "warm", p, n)
	require.NoError(t, first.Start())
	// Until it builds.
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		dirs, _ := filepath.Glob(filepath.Join(p.cache(), "tmp", "*", "data"))
		if len(dirs) > 0 {
			break
		}
		if time.Since(start) > 30*time.Second {
			t.Fatal("no build begins")
		}
	}
	var wg sync.WaitGroup
	// One who gives up, and leaves at once.
	wg.Go(func() {
		var stderr bytes.Buffer
		cmd := childOf(t.Context(), "warm", p, n, "1ms")
		cmd.Stderr = &stderr
		if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), context.DeadlineExceeded.Error()) {
			a.loss("a start that was cancelled: %v: %s", err, stderr.String())
		}
	})
	tookOver := false
	wg.Go(func() { // one who waits for the other
		out, err := output(t.Context(), "warm", p, n)
		if err != nil {
			a.loss("the waiter did not take over: %v", err)
		}
		tookOver = strings.TrimSpace(string(out)) == "1"
	})
	time.Sleep(time.Duration(a.rand.IntN(60)) * time.Millisecond)
	signal := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT}[i%3]
	require.NoError(t, first.Process.Signal(signal))
	killed := first.Wait() != nil
	wg.Wait()
	t.Logf("round %d: killed: %t, taken over: %t", i, killed, tookOver)
	if killed && tookOver {
		a.faults.Add(1)
	}
	a.operations.Add(3)
	// And a start finds what was built.
	out, err := output(t.Context(), "start", p, n)
	if err != nil || strings.TrimSpace(string(out)) != "0" {
		a.loss("start after a takeover: built %s, %v", out, err)
	}
	if left, _ := os.ReadDir(filepath.Join(p.cache(), "tmp")); len(left) > 0 {
		a.loss("left in tmp: %v", left)
	}
	a.pruneTo(store, 0)
}

// removeContainers deletes all containers.
func (a *area) removeContainers(store storage.Store) {
	containers, err := store.Containers()
	require.NoError(a.t, err)
	for _, c := range containers {
		if err := removeContainer(store, c.ID); err != nil {
			a.loss("remove container: %v", err)
		}
	}
}

// pruneTo deletes all containers, and what no container needs but for size bytes.
func (a *area) pruneTo(store storage.Store, size int64) {
	a.removeContainers(store)
	m, err := manager(store)
	require.NoError(a.t, err)
	age := time.Nanosecond
	if size > 0 {
		age = 0
	}
	if _, err := m.Prune(a.t.Context(), size, age); err != nil {
		a.loss("prune: %v", err)
	}
}
