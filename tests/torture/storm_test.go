//go:build torture

package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containers/storage"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/cache"
)

func init() {
	children["storm"] = stormChild
}

// stormResult is what a stormChild says.
type stormResult struct {
	Operations int
	// Wrong are losses.
	Wrong []string
	// Open are the file descriptors at the end, without those of the beginning.
	Open int
}

// TestCrowdStorm has many processes start, stop, commit, delete, prune, warm and
// check all at once.
func TestCrowdStorm(t *testing.T) {
	a := begin(t, "crowd-storm")
	list := ways
	if a.short() {
		list = []way{ways[a.rand.IntN(len(ways))]}
	}
	long := a.part(0.8, 10*time.Minute) / time.Duration(len(list))
	for _, w := range list {
		t.Run(w.name, func(t *testing.T) {
			// Every build in the background, or few.
			after := []string{"1ns", "20ms"}[a.rand.IntN(2)]
			t.Logf("background_after %s", after)
			p := newPlace(t, w, `cache_max_size = "4m"`, fmt.Sprintf("background_after = %q", after))
			store := p.opened(t)
			for _, name := range []string{"one", "two", "three"} {
				_, err := makeImage(store, name, 2, 120)
				require.NoError(t, err)
			}
			a.storm(t, p, long)
			containers, err := store.Containers()
			require.NoError(t, err)
			for _, c := range containers {
				if err := removeContainer(store, c.ID); err != nil {
					a.loss("remove container after the storm: %v", err)
				}
			}
			a.quiet(p, store)
			a.pruneTo(store, 0)
			if left := p.mounts(); len(left) > 0 && !slices.Equal(left, []string{p.home()}) {
				a.loss("mounts left: %v", left)
			}
			c, err := cache.Open(p.cache(), cache.Options{})
			require.NoError(t, err)
			entries, err := c.List(t.Context())
			require.NoError(t, err)
			for _, e := range entries {
				a.loss("entry left: %s, users %v", e.Ref, e.Users)
			}
			left, err := c.Leftovers()
			require.NoError(t, err)
			if len(left) > 0 {
				a.loss("left over: %v", left)
			}
		})
	}
}

// storm runs the processes, and waits for them not much longer than they may take.
func (a *area) storm(t *testing.T, p place, long time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), long+2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, role := range []string{"run", "run", "run", "run", "images", "prune", "warm", "check"} {
		seed := strconv.FormatUint(a.rand.Uint64(), 10)
		wg.Go(func() {
			out, err := output(ctx, "storm", p, role, seed, long.String())
			if err == nil {
				var r stormResult
				if err = json.Unmarshal(out, &r); err == nil {
					a.operations.Add(int64(r.Operations))
					t.Logf("%s: %d operations, %d descriptors more", role, r.Operations, r.Open)
					for _, w := range r.Wrong {
						a.loss("%s: %s", role, w)
					}
					if r.Open > 4 {
						a.loss("%s: %d descriptors are left open", role, r.Open)
					}
					return
				}
			}
			if ctx.Err() != nil {
				a.loss("%s: hangs (%v)", role, err)
				return
			}
			a.loss("%s: %v", role, err)
		})
	}
	wg.Wait()
}

// stormer is one process of a storm.
type stormer struct {
	place
	store storage.Store
	m     *shiftoverlay.Manager
	rand  *rand.Rand
	r     stormResult
}

func stormChild(args []string) error {
	p, args, err := placeOf(args)
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	long, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	s := &stormer{place: p, rand: rand.New(rand.NewPCG(seed, 1))}
	store, free, err := p.open()
	if err != nil {
		return err
	}
	defer free()
	s.store = store
	if args[0] != "run" && args[0] != "images" {
		if s.m, err = manager(store); err != nil {
			return err
		}
	}
	do := map[string]func() error{
		"run": s.container, "images": s.image, "prune": s.prune, "warm": s.warm, "check": s.check,
	}[args[0]]
	var open int
	for end := time.Now().Add(long); time.Now().Before(end); {
		if err := do(); err != nil && len(s.r.Wrong) < 10 {
			s.r.Wrong = append(s.r.Wrong, err.Error())
		}
		if s.r.Operations++; s.r.Operations == 3 {
			open = openFiles() // now everything is open that stays
		}
	}
	if open > 0 {
		// A process that mounts later stays for a second, and is waited for.
		for until := time.Now().Add(10 * time.Second); time.Now().Before(until) && openFiles() > open; {
			time.Sleep(100 * time.Millisecond)
		}
		s.r.Open = openFiles() - open
	}
	return json.NewEncoder(os.Stdout).Encode(s.r)
}

func openFiles() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}

func (s *stormer) anImage() string { return []string{"one", "two", "three"}[s.rand.IntN(3)] }

// gone says whether an operation failed because another process removed an image
// or is still using it, as is right.
func gone(err error) bool {
	return errors.Is(err, storage.ErrImageUnknown) || errors.Is(err, storage.ErrLayerUnknown) || errors.Is(err, storage.ErrImageUsedByContainer) ||
		errors.Is(err, storage.ErrLayerUsedByContainer) || errors.Is(err, storage.ErrParentUnknown) || errors.Is(err, storage.ErrNotAnImage) ||
		errors.Is(err, storage.ErrDuplicateName) || errors.Is(err, storage.ErrNotAnID)
}

// container is the life of one.
func (s *stormer) container() error {
	n := s.rand.IntN(12)
	maps, base := mappingNumber(n), mappingNumber(n)[0].HostID
	if s.rand.IntN(8) == 0 {
		maps, base = nil, 0
	}
	c, err := container(s.store, s.anImage(), maps, s.rand.IntN(2) == 0)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	err = s.live(c, base)
	if rerr := removeContainer(s.store, c.ID); err == nil && rerr != nil {
		err = fmt.Errorf("remove: %w", rerr)
	}
	return err
}

func (s *stormer) live(c *storage.Container, base int) error {
	for range 1 + s.rand.IntN(3) {
		root, err := s.store.Mount(c.ID, "")
		if err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		if err := wrongOwner(root, base, 5); err != nil {
			return err
		}
		name := filepath.Join(root, fmt.Sprintf("new-%d", 7))
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			return err
		}
		if err := os.Lchown(name, base+7, base+7); err != nil {
			return err
		}
		if s.rand.IntN(3) == 0 {
			if err := s.diff(c); err != nil {
				return err
			}
		}
		if _, err := s.store.Unmount(c.ID, false); err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
	}
	return s.diff(c)
}

// diff reads what a commit would write.
func (s *stormer) diff(c *storage.Container) error {
	r, err := s.store.Diff("", c.LayerID, nil)
	if err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	defer r.Close()
	owners, err := ownersIn(r)
	if err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	if got, ok := owners["new-7"]; !ok || got != 7 {
		return fmt.Errorf("diff: new-7 has owner %d (there: %t) in %v", got, ok, owners)
	}
	if len(owners) > 2 { // the file, and perhaps the root
		return fmt.Errorf("diff: more than what changed: %v", owners)
	}
	return nil
}

// image removes an image and makes it anew.
func (s *stormer) image() error {
	name := s.anImage()
	image, err := s.store.Image(name)
	if err == nil {
		_, err = s.store.DeleteImage(image.ID, true)
	}
	if gone(err) {
		time.Sleep(20 * time.Millisecond)
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete image: %w", err)
	}
	_, err = makeImage(s.store, name, 1+s.rand.IntN(3), 120)
	return err
}

func (s *stormer) prune() error {
	time.Sleep(time.Duration(s.rand.IntN(50)) * time.Millisecond)
	size, age := int64(s.rand.IntN(8))<<20, time.Duration(s.rand.IntN(2))
	if _, err := s.m.Foresee(context.Background(), size, age); err != nil {
		return fmt.Errorf("foresee: %w", err)
	}
	if _, err := s.m.Prune(context.Background(), size, age); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	return nil
}

func (s *stormer) warm() error {
	image, err := s.store.Image(s.anImage())
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	user := shiftoverlay.WarmUser()
	w, err := s.m.Warm(context.Background(), image.TopLayer, asMapping(mappingNumber(s.rand.IntN(12))), user)
	if err == nil && w.Ref != (cache.Ref{}) {
		err = s.m.Release(w.Ref, user)
	}
	if err != nil {
		if _, there := s.store.Layer(image.TopLayer); gone(there) {
			return nil // removed meanwhile
		}
		return fmt.Errorf("warm: %w", err)
	}
	return nil
}

func (s *stormer) check() error {
	time.Sleep(time.Duration(s.rand.IntN(100)) * time.Millisecond)
	_, err := s.m.Check(context.Background(), shiftoverlay.CheckOptions{})
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return nil
}
