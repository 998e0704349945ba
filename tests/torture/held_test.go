//go:build torture

package torture

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
)

func init() {
	children["build-again"] = inPlace(buildAgainChild)
}

// buildAgainChild starts containers of the image "large" with ever new mappings
// and nothing in the cache, until it is told to end, and says how long a mount has
// held the locks of the store, and how long the container took.
func buildAgainChild(p place, store storage.Store, args []string) error {
	for n := number(args[0]); ; n++ {
		c, err := container(store, "large", mappingNumber(n), true)
		if err != nil {
			return err
		}
		start := time.Now()
		root, err := store.Mount(c.ID, "")
		if err != nil {
			return err
		}
		held := time.Since(start)
		if _, err := os.ReadDir(root); err != nil {
			return err
		}
		fmt.Printf("%d %d\n", held.Milliseconds(), time.Since(start).Milliseconds())
		if err := removeContainer(store, c.ID); err != nil {
			return err
		}
		// Without a manager of this process's own, which would never mount later.
		out, err := output(context.Background(), "forget", p)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
}

func init() {
	children["forget"] = inPlace(func(_ place, store storage.Store, _ []string) error {
		m, err := manager(store)
		if err != nil {
			return err
		}
		_, err = m.Prune(context.Background(), 0, time.Nanosecond)
		return err
	})
}

// TestCrowdHeld measures what other commands notice while a large image is being
// built for: podman ps, and podman run of another image, beside a start that
// builds, and alone, in turns; and for how much of that time the locks are held.
func TestCrowdHeld(t *testing.T) {
	a := begin(t, "crowd-held")
	files, rounds := 250_000, 11
	if a.short() {
		files, rounds = 40_000, 4
	}
	podman, err := exec.LookPath("podman")
	require.NoError(t, err, "make podman runc images")
	list := []way{ways[0], ways[2]}
	if a.short() {
		list = list[1:]
	}
	for _, w := range list {
		p := newPlace(t, w, `background_after = "20ms"`)
		p.in(t, func(store storage.Store) {
			_, err := makeImage(store, "large", 1, files)
			require.NoError(t, err)
		})
		run := func(args ...string) time.Duration {
			cmd := exec.CommandContext(t.Context(), podman, append([]string{"--root", p.graph(), "--runroot", p.run(), "--storage-driver", "shiftoverlay"}, args...)...)
			cmd.Env = append(os.Environ(), "SHIFTOVERLAY_CONF="+p.conf())
			start := time.Now()
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, string(out))
			a.operations.Add(1)
			return time.Since(start)
		}
		run("import", filepath.Join(filepath.Dir(podman), "images", "busybox.tar"), "box")
		commands := map[string][]string{"ps": {"ps"}, "run": {"run", "--rm", "--userns=auto", "box", "true"}}
		run(commands["run"]...)
		ratio := map[string][]float64{}
		var held []string
		for i := range rounds {
			idle := map[string]time.Duration{}
			for name, c := range commands {
				idle[name] = run(c...)
			}
			ctx, stop := context.WithCancel(t.Context())
			cmd := childOf(ctx, "build-again", p, fmt.Sprint(1000+i*100))
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, os.Stderr
			require.NoError(t, cmd.Start())
			for range 1000 { // until it builds
				if marks, _ := filepath.Glob(filepath.Join(p.run(), "shiftoverlay", "late", "*")); len(marks) > 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			for name, c := range commands {
				busy := run(c...)
				ratio[name] = append(ratio[name], float64(busy)/float64(idle[name]))
			}
			for range 100 { // one build at least is done
				if strings.Contains(out.String(), "\n") {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			stop()
			_ = cmd.Wait() // killed
			held = append(held, strings.Split(strings.TrimSpace(out.String()), "\n")...)
			a.forgetAll(p)
		}
		for name, list := range ratio {
			slices.Sort(list)
			t.Logf("%s: podman %s takes %.2f times its idle time (median of %d, largest %.2f)", w.name, name, list[len(list)/2], len(list), list[len(list)-1])
			// It is to be 1.2 at most, on a machine with nothing else to do. In a short run
			// other tests may keep it busy.
			if !a.short() && list[len(list)/2] > 1.5 {
				a.loss("%s: podman %s takes %.1f times its idle time while an image is built for", w.name, name, list[len(list)/2])
			}
		}
		t.Logf("%s: milliseconds that a mount held the locks, and until the container could be opened: %s", w.name, strings.Join(held, ", "))
		var parts []float64
		for _, line := range held {
			var locked, open float64
			if _, err := fmt.Sscan(line, &locked, &open); err == nil && open > 0 {
				parts = append(parts, locked/open)
			}
		}
		slices.Sort(parts)
		require.NotEmpty(t, parts)
		if part := parts[len(parts)/2]; part > 0.5 {
			a.loss("%s: a mount held the locks of the store for %.2f of the time that it took to build", w.name, part)
		}
	}
}

// forgetAll removes what killed starts have left.
func (a *area) forgetAll(p place) {
	p.in(a.t, func(store storage.Store) {
		a.removeContainers(store)
		m, err := manager(store)
		require.NoError(a.t, err)
		found, err := m.Check(a.t.Context(), shiftoverlay.CheckOptions{})
		require.NoError(a.t, err)
		for _, f := range found {
			require.NoError(a.t, f.Fix(a.t.Context()), f.Problem)
		}
		_, err = m.Prune(a.t.Context(), 0, time.Nanosecond)
		require.NoError(a.t, err)
	})
}
