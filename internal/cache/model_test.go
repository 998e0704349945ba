package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// modelEntry is what the model knows of an entry.
type modelEntry struct {
	generation int // which build it is
	boot       int
	durable    bool
	used       time.Time
	users      map[string]bool
	kin        string
	disposable bool
}

// model is the cache as it should be.
type model struct {
	dir     string
	c       *Cache
	clock   *clock
	boot    int
	builds  int
	entries map[Ref]*modelEntry
	cleanup []func() error
}

var _ rapid.StateMachine = (*model)(nil)

var (
	drawLayer = rapid.SampledFrom([]string{"a", "b"})
	drawUser  = rapid.SampledFrom([]string{"u", "v", "w"})
)

func drawRef(t *rapid.T) Ref { return ref(drawLayer.Draw(t, "layer"), rapid.ByteMax(2).Draw(t, "key")) }

func (m *model) open(t *rapid.T) {
	c, err := Open(m.dir, Options{BootID: fmt.Sprint("boot-", m.boot), Now: m.clock.now})
	require.NoError(t, err)
	m.c = c
}

func (m *model) usable(e *modelEntry) bool { return e != nil && (e.durable || e.boot == m.boot) }

// recyclable returns the entry that r is made out of, if there is one.
func (m *model) recyclable(r Ref, kin string) (old Ref, ok bool) {
	refs := slices.SortedFunc(maps.Keys(m.entries), func(a, b Ref) int { return strings.Compare(a.String(), b.String()) })
	for _, candidate := range refs {
		e := m.entries[candidate]
		if kin == "" || candidate == r || candidate.Layer != r.Layer || e.kin != kin || len(e.users) > 0 ||
			!m.usable(e) || m.clock.now().Sub(e.used) < recycleAfter {
			continue
		}
		if !ok || e.used.Before(m.entries[old].used) {
			old, ok = candidate, true
		}
	}
	return old, ok
}

// builder makes an entry whose file "0" holds the number of the build, and
// notes in from the number of the build that it recycled.
func (m *model) builder(t *rapid.T, kin string, from *string) Builder {
	content := fmt.Sprint(m.builds)
	write := func(dir string) error { return os.WriteFile(filepath.Join(dir, "0"), []byte(content), 0o600) }
	b := Builder{
		Meta:       json.RawMessage(content),
		Kin:        kin,
		Disposable: rapid.Bool().Draw(t, "disposable"),
		Build:      func(_ context.Context, dir string) error { return write(dir) },
	}
	if rapid.Bool().Draw(t, "can recycle") {
		b.Recycle = func(_ context.Context, dir string) error {
			old, err := os.ReadFile(filepath.Join(dir, "0"))
			*from = string(old)
			return errors.Join(err, write(dir))
		}
	}
	return b
}

// Acquire finds what is usable and builds the rest.
func (m *model) Acquire(t *rapid.T) {
	r, user := drawRef(t), drawUser.Draw(t, "user")
	e := m.entries[r]
	build := !m.usable(e)
	kin := rapid.SampledFrom([]string{"", "k", "k", "l"}).Draw(t, "kin")
	var from string
	b := m.builder(t, kin, &from)
	got, err := m.c.Acquire(t.Context(), r, user, b)
	require.NoError(t, err)
	require.Equal(t, build, got.BuiltNow())
	if build {
		users := map[string]bool{}
		if e != nil {
			users = e.users
		}
		want := ""
		if old, ok := m.recyclable(r, kin); ok && b.Recycle != nil {
			want = fmt.Sprint(m.entries[old].generation)
			delete(m.entries, old)
		}
		require.Equal(t, want, from, "what was recycled")
		e = &modelEntry{generation: m.builds, boot: m.boot, used: m.clock.now(), users: users, kin: kin, disposable: b.Disposable}
		m.entries[r] = e
		m.builds++
	} else if m.clock.now().Sub(e.used) >= usedInterval {
		e.used = m.clock.now()
	}
	e.users[user] = true
	require.Equal(t, fmt.Sprint(e.generation), string(got.Meta()))
	require.Equal(t, e.durable, got.Durable())
}

// Release forgets a user.
func (m *model) Release(t *rapid.T) {
	r, user := drawRef(t), drawUser.Draw(t, "user")
	require.NoError(t, m.c.Release(r, user))
	if e := m.entries[r]; e != nil && e.users[user] {
		delete(e.users, user)
		e.used = m.clock.now()
	}
}

// MarkDurable marks what is usable.
func (m *model) MarkDurable(t *rapid.T) {
	r := drawRef(t)
	err := m.c.MarkDurable(t.Context(), r)
	if e := m.entries[r]; m.usable(e) {
		require.NoError(t, err)
		e.durable = true
		return
	}
	var miss *MissError
	require.ErrorAs(t, err, &miss)
}

// Trim removes by age, layer and users; size is in TestTrim, where the order
// can be told.
func (m *model) Trim(t *rapid.T) {
	living := rapid.SliceOfDistinct(drawUser, rapid.ID).Draw(t, "alive")
	layers := rapid.SliceOfDistinct(drawLayer, rapid.ID).Draw(t, "layers")
	o := TrimOptions{
		MaxAge:      rapid.SampledFrom([]time.Duration{0, 1, time.Hour}).Draw(t, "age"),
		MaxSize:     rapid.SampledFrom([]int64{0, 1, 1 << 40}).Draw(t, "size"),
		Force:       rapid.Bool().Draw(t, "force"),
		UserAlive:   alive(living...),
		LayerExists: alive(layers...),
	}
	removed, err := m.c.Trim(t.Context(), o)
	require.NoError(t, err)
	var want, got []string
	for r, e := range m.entries {
		maps.DeleteFunc(e.users, func(user string, _ bool) bool { return !o.UserAlive(user) })
		wanted := o.LayerExists(r.Layer) && m.usable(e) && o.MaxSize != 1 &&
			(o.MaxAge == 0 || m.clock.now().Sub(e.used) < o.MaxAge)
		if !wanted && (len(e.users) == 0 || o.Force) {
			want = append(want, r.String())
			delete(m.entries, r)
		}
	}
	for _, info := range removed {
		got = append(got, info.Ref.String())
	}
	require.ElementsMatch(t, want, got)
}

// StageLayerRemoval takes a layer away and leaves the deletion for later.
func (m *model) StageLayerRemoval(t *rapid.T) {
	layer := drawLayer.Draw(t, "layer")
	cleanup, err := m.c.StageLayerRemoval(layer)
	require.NoError(t, err)
	m.cleanup = append(m.cleanup, cleanup)
	maps.DeleteFunc(m.entries, func(r Ref, _ *modelEntry) bool { return r.Layer == layer })
}

// CleanUp deletes what was staged.
func (m *model) CleanUp(t *rapid.T) {
	for _, cleanup := range m.cleanup {
		require.NoError(t, cleanup())
	}
	m.cleanup = nil
}

// Wait lets time pass.
func (m *model) Wait(t *rapid.T) {
	m.clock.add(time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute)
}

// Reboot starts the machine again, with something half done left over.
func (m *model) Reboot(t *rapid.T) {
	m.CleanUp(t) // the locks of this process would outlive the model's reboot
	m.boot++
	m.open(t)
	if _, err := os.Stat(filepath.Join(m.dir, tmpName)); err == nil {
		require.NoError(t, os.MkdirAll(filepath.Join(m.dir, tmpName, "DEAD", dataName), 0o700))
	}
}

// Check compares everything that can be seen.
func (m *model) Check(t *rapid.T) {
	infos, err := m.c.List(t.Context())
	require.NoError(t, err)
	require.Len(t, infos, len(m.entries))
	for _, info := range infos {
		e := m.entries[info.Ref]
		require.NotNil(t, e, "%s should not be there", info.Ref)
		require.True(t, slices.Equal(slices.Sorted(maps.Keys(e.users)), info.Users), "users %v", info.Users)
		require.Equal(t, fmt.Sprint(e.generation), string(info.Meta))
		require.Equal(t, e.durable, info.Durable)
		require.Equal(t, m.usable(e), info.Unusable == "")
		require.True(t, e.used.Equal(info.LastUsed), "used %v, not %v", info.LastUsed, e.used)
		require.Equal(t, e.disposable, info.Disposable)
		content, err := os.ReadFile(filepath.Join(m.c.path(info.Ref), dataName, "0"))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(e.generation), string(content))
	}
}

func TestModel(t *testing.T) {
	root := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		m := &model{dir: filepath.Join(root, fmt.Sprint(n)), clock: &clock{}, entries: map[Ref]*modelEntry{}}
		m.open(t)
		t.Repeat(rapid.StateMachineActions(m))
		m.CleanUp(t)
		_, err := m.c.Trim(t.Context(), TrimOptions{MaxSize: 1, Force: true})
		require.NoError(t, err)
		for _, dir := range []string{tmpName, locksName} {
			names, err := readNames(filepath.Join(m.dir, dir))
			require.NoError(t, err)
			for _, name := range names {
				require.Equal(t, "slot-0", name, "left over in %s", dir)
			}
		}
	})
}
