package adopt

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

var (
	there = Move{"overlay", "shiftoverlay"}
	back  = Move{"shiftoverlay", "overlay"}
)

func put(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o640))
}

// newStore makes one of overlay's, with an image, a layer and a container.
func newStore(t *testing.T) Store {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(dir, filepath.Join(dir, "run"))
	require.NoError(t, err)
	s.Graph = filepath.Join(s.Graph, "graph & root")
	for name, text := range map[string]string{
		"overlay/ID/diff/file":             "data",
		"overlay/l/LINK":                   "",
		"overlay-layers/layers.json":       `[{"id":"ID"}]`,
		"overlay-layers/layers.lock":       "",
		"overlay-images/images.json":       `[{"id":"IMAGE"}]`,
		"overlay-containers/CTR/something": "else",
		"overlay-containers/CTR/userdata/config.json": `{"a":"` + s.Graph + `/overlay/ID/merged","b":"` +
			strings.ReplaceAll(s.Graph, "&", `\u0026`) + `/overlay-containers/CTR/userdata","c":"x` + s.Graph + `/overlay/y"}`,
		"overlay-containers/containers.json": `[{"id":"CTR"}]`,
		"overlay-shifted/tmp/x":              "",
		"volumes/v/_data/f":                  "keep",
	} {
		put(t, filepath.Join(s.Graph, name), text)
	}
	put(t, filepath.Join(s.Run, "overlay-containers/CTR/userdata/conmon.pid"), "1")
	put(t, filepath.Join(s.Run, "overlay-layers/mountpoints.json"), "null")
	put(t, filepath.Join(s.Run, "overlay/metacopy(nodev)-false"), "")
	return s
}

// tree is what a store has, as paths and contents.
func tree(t *testing.T, s Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, root := range map[string]string{"graph": s.Graph, "run": s.Run} {
		require.NoError(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == root {
				return err
			}
			rel, _ := filepath.Rel(root, p)
			text := "folder"
			if !d.IsDir() {
				b, err := os.ReadFile(p)
				require.NoError(t, err)
				text = string(b)
			}
			out[name+"/"+rel] = text
			return nil
		}))
	}
	return out
}

func carry(t *testing.T, s Store, m Move) {
	t.Helper()
	require.NoError(t, s.Carry(t.Context(), m, s.Steps(m)))
	require.NoError(t, Unfinished(s.Graph))
}

func TestThereAndBack(t *testing.T) {
	s := newStore(t)
	before := tree(t, s)
	carry(t, s, there)
	after := tree(t, s)
	for path := range after {
		assert.NotRegexp(t, `^[a-z]+/overlay`, path)
	}
	assert.Equal(t, "data", after["graph/shiftoverlay/ID/diff/file"])
	assert.Equal(t, "keep", after["graph/volumes/v/_data/f"])
	assert.Equal(t, "1", after["run/shiftoverlay-containers/CTR/userdata/conmon.pid"])
	assert.Equal(t, `{"a":"`+s.Graph+`/shiftoverlay/ID/merged","b":"`+strings.ReplaceAll(s.Graph, "&", `\u0026`)+
		`/shiftoverlay-containers/CTR/userdata","c":"x`+s.Graph+`/overlay/y"}`, after["graph/shiftoverlay-containers/CTR/userdata/config.json"])
	st, err := os.Stat(filepath.Join(s.Graph, "shiftoverlay-containers/CTR/userdata/config.json"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o640), st.Mode(), "mode of a file that was changed")
	has, err := s.Has("overlay")
	require.NoError(t, err)
	assert.False(t, has)
	has, err = s.Has("shiftoverlay")
	require.NoError(t, err)
	assert.True(t, has)

	carry(t, s, back)
	// What is made again is gone.
	for _, gone := range []string{
		"graph/overlay-shifted", "graph/overlay-shifted/tmp", "graph/overlay-shifted/tmp/x",
		"run/overlay", "run/overlay/metacopy(nodev)-false", "run/overlay-layers/mountpoints.json",
	} {
		assert.Contains(t, before, gone)
		delete(before, gone)
	}
	assert.Equal(t, before, tree(t, s))
}

var errKilled = errors.New("killed")

// cut has a move end after n steps, the last of them carried out or not.
func cut(steps []Step, n int, last bool) []Step {
	out := append([]Step{}, steps[:n]...)
	return append(out, Step{"die", func() error {
		if last {
			if err := steps[n].Do(); err != nil {
				return err
			}
		}
		return errKilled
	}})
}

// TestKilled ends a move after each of its steps, makes what a curious
// podman makes, and finishes the move, or goes back.
func TestKilled(t *testing.T) {
	whole := newStore(t)
	carry(t, whole, there)
	for _, forward := range []bool{true, false} {
		for n := range whole.Steps(there) {
			s := newStore(t)
			before := tree(t, s)
			steps := s.Steps(there)
			if n >= len(steps) {
				continue
			}
			require.ErrorIs(t, s.Carry(t.Context(), there, cut(steps, n, true)), errKilled)
			unfinished := (*UnfinishedError)(nil)
			require.ErrorAs(t, Unfinished(s.Graph), &unfinished)
			assert.Equal(t, there, unfinished.Move)
			// GetStore makes the driver's folder before anything else.
			for _, driver := range []string{"overlay", "shiftoverlay"} {
				require.NoError(t, os.MkdirAll(filepath.Join(s.Graph, driver), 0o700))
			}
			put(t, filepath.Join(s.Graph, "overlay-images/images.lock"), "")
			put(t, filepath.Join(s.Graph, "overlay-layers/layers.json"), readOr(t, filepath.Join(s.Graph, "overlay-layers/layers.json"), "[]"))
			m := there
			if !forward {
				m = back
			}
			carry(t, s, m)
			now := tree(t, s)
			count := func(tree map[string]string, driver string) (n int) {
				for path := range tree {
					if strings.HasPrefix(path, "graph/"+driver) && !strings.Contains(path, "-shifted") && !strings.HasSuffix(path, "images.lock") {
						n++
					}
				}
				return n
			}
			assert.Equal(t, count(before, m.From)+count(before, m.To), count(now, m.To), "files of %s after a kill at step %d (%s)", m.To, n, steps[n].What)
			assert.Zero(t, count(now, m.From), "files of %s after a kill at step %d", m.From, n)
			assert.Contains(t, now["graph/"+m.To+"-containers/CTR/userdata/config.json"], s.Graph+"/"+m.To+"/ID/merged", "step %d", n)
		}
	}
}

func readOr(t *testing.T, name, other string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return other
	}
	require.NoError(t, err)
	return string(b)
}

func TestBothHoldSomething(t *testing.T) {
	s := newStore(t)
	put(t, filepath.Join(s.Graph, "shiftoverlay-images/images.json"), `[{"id":"OTHER"}]`)
	both := (*BothError)(nil)
	require.ErrorAs(t, s.Carry(t.Context(), there, s.Steps(there)), &both)
	assert.Equal(t, filepath.Join(s.Graph, "shiftoverlay-images"), both.To)
	assert.JSONEq(t, `[{"id":"IMAGE"}]`, readOr(t, filepath.Join(s.Graph, "overlay-images/images.json"), ""))
	require.ErrorContains(t, Unfinished(s.Graph), "did not come to its end")
	require.NoError(t, os.Remove(filepath.Join(s.Graph, "shiftoverlay-images/images.json")))
	carry(t, s, there)
	assert.JSONEq(t, `[{"id":"IMAGE"}]`, readOr(t, filepath.Join(s.Graph, "shiftoverlay-images/images.json"), ""))
}

// TestTidy checks that nothing stays of files that were being written in a crash.
func TestTidy(t *testing.T) {
	s := newStore(t)
	before := tree(t, s)
	put(t, aside(filepath.Join(s.Graph, JournalName)), "{")
	require.NoError(t, s.Tidy())
	require.NoError(t, s.Tidy())
	assert.Equal(t, before, tree(t, s))
	for _, m := range []Move{there, {"neither", "overlay"}} {
		s := newStore(t)
		put(t, aside(filepath.Join(s.Graph, JournalName)), strings.Repeat("x", 1000))
		put(t, aside(filepath.Join(s.Graph, "overlay-containers/CTR/userdata/config.json")), strings.Repeat("x", 1000))
		carry(t, s, m)
		for path, text := range tree(t, s) {
			assert.NotContains(t, path, ".new")
			assert.NotContains(t, text, "xxx", path)
		}
	}
}

func TestJournalOfAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, JournalName), `{"version":2}`)
	require.ErrorContains(t, Unfinished(dir), "version 2")
	put(t, filepath.Join(dir, JournalName), `{`)
	require.ErrorContains(t, Unfinished(dir), JournalName)
}

func TestBusy(t *testing.T) {
	testutil.RequireRoot(t)
	s := newStore(t)
	uses, err := s.Busy(there)
	require.NoError(t, err)
	assert.Empty(t, uses)
	home := filepath.Join(s.Graph, "overlay")
	// The first is as the overlay driver does it.
	for _, dir := range []string{home, filepath.Join(home, "ID"), filepath.Join(s.Run, "else"), filepath.Join(s.Graph, "overlay-containers/CTR/userdata/shm")} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
		require.NoError(t, unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	uses, err = s.Busy(there)
	require.NoError(t, err)
	require.Len(t, uses, 1)
	assert.Equal(t, filepath.Join(home, "ID")+" is mounted", uses[0].String())
	require.NoError(t, unix.Unmount(filepath.Join(home, "ID"), 0))

	db := filepath.Join(s.Graph, "db.sql")
	put(t, db, "")
	sleep := exec.CommandContext(t.Context(), "sleep", "1000")
	sleep.Stdin, err = os.Open(db)
	require.NoError(t, err)
	require.NoError(t, sleep.Start())
	t.Cleanup(func() { _ = sleep.Wait() })
	t.Cleanup(func() { _ = sleep.Process.Kill() })
	uses, err = s.Busy(there, db)
	require.NoError(t, err)
	require.Len(t, uses, 1)
	assert.Regexp(t, `^process [0-9]+ \(.+\) has .*/db\.sql open$`, uses[0].String())
	// The home's own mount is taken away, the other moves.
	shm := filepath.Join(s.Graph, "shiftoverlay-containers/CTR/userdata/shm")
	t.Cleanup(func() { _ = unix.Unmount(shm, unix.MNT_DETACH) })
	carry(t, s, there)
	mounted, err := mountinfo.Mounted(shm)
	require.NoError(t, err)
	assert.True(t, mounted)
	assert.DirExists(t, filepath.Join(s.Graph, "shiftoverlay", "ID"))
}

func TestHomeOfItsOwn(t *testing.T) {
	testutil.RequireRoot(t)
	s := newStore(t)
	home := filepath.Join(s.Graph, "overlay")
	require.NoError(t, unix.Mount("tmpfs", home, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(home, unix.MNT_DETACH) })
	put(t, filepath.Join(home, "ID/diff/f"), "")
	require.ErrorContains(t, s.Carry(t.Context(), there, s.Steps(there)), "is a file system of its own")
	carry(t, s, back)
}
