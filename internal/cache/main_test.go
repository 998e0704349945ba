package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// childEnv holds the cache's folder for a test binary that runs as another
// process, and what it shall do: "folder mode key".
const childEnv = "SHIFT_TEST_CACHE_CHILD"

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		if err := child(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testutil.Main(m))
}

// child is the other process. It prints "built" or "found". A mode that begins
// with "recycle" is that of a writer.
func child(text string) error {
	words := strings.Fields(text)
	if len(words) != 4 {
		return fmt.Errorf("%s=%q: want folder, mode, layer and key", childEnv, text)
	}
	dir, mode := words[0], words[1]
	key, ok := parseKey(words[3])
	if !ok {
		return fmt.Errorf("key %q", words[3])
	}
	c, err := Open(dir, Options{BootID: "boot-1", RecycleAfter: 1})
	if err != nil {
		return err
	}
	if strings.HasPrefix(mode, "recycle") {
		return recycleChild(c, mode, Ref{words[2], key})
	}
	b := Builder{Build: func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "part"), []byte("1"), 0o600); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, "closed"), 0o000); err != nil {
			return err
		}
		fmt.Println("building")
		switch mode {
		case "hang", "begun":
			time.Sleep(time.Minute)
		case "race":
			time.Sleep(50 * time.Millisecond) // long enough that the others come
		}
		return os.WriteFile(filepath.Join(dir, "whole"), []byte("2"), 0o600)
	}}
	if mode == "begun" {
		b.State = func() (string, error) { return "same", nil }
		b.Resume = func(context.Context, string) error {
			fmt.Println("building")
			time.Sleep(time.Minute)
			return nil
		}
	}
	e, err := c.Acquire(context.Background(), Ref{words[2], key}, fmt.Sprintf("pid-%d", os.Getpid()), b)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(e.Path(), "whole")); err != nil {
		return err
	}
	if e.BuiltNow() {
		fmt.Println("built")
	} else {
		fmt.Println("found")
	}
	return nil
}

// childCommand runs child in another process.
func childCommand(t *testing.T, c *Cache, mode string, ref Ref) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s", childEnv, c.Dir(), mode, ref.Layer, ref.Key))
	cmd.Stderr = os.Stderr
	return cmd
}

// clock is a clock that only moves when told. It starts now, because the
// cache compares it with nothing but itself.
type clock struct{ offset atomic.Int64 }

func (k *clock) now() time.Time {
	return time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(k.offset.Load()))
}
func (k *clock) add(d time.Duration) { k.offset.Add(int64(d)) }

// logBuffer keeps debug messages.
type logBuffer struct {
	mu    sync.Mutex
	lines []string
}

func (l *logBuffer) logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *logBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[max(0, len(l.lines)-100):], "\n")
}

// fixture is a cache in a folder of its own.
type fixture struct {
	*Cache
	t     *testing.T
	clock *clock
	log   *logBuffer
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, clock: &clock{}, log: &logBuffer{}}
	f.Cache = f.open(filepath.Join(t.TempDir(), "shifted"), "boot-1")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(f.log.text())
		}
	})
	return f
}

func (f *fixture) open(dir, boot string) *Cache {
	f.t.Helper()
	c, err := Open(dir, Options{BootID: boot, Now: f.clock.now, Logf: f.log.logf})
	require.NoError(f.t, err)
	return c
}

// reboot returns the cache as it is after the machine started again.
func (f *fixture) reboot() *fixture {
	return &fixture{Cache: f.open(f.Dir(), "boot-2"), t: f.t, clock: f.clock, log: f.log}
}

// acquire builds n files of 4096 bytes, or finds them.
func (f *fixture) acquire(ref Ref, user string, n int) *Entry {
	f.t.Helper()
	e, err := f.Acquire(f.t.Context(), ref, user, filesBuilder(n))
	require.NoError(f.t, err)
	return e
}

// filesBuilder makes a file that is named "0" and more.
func filesBuilder(n int) Builder {
	return Builder{Build: func(_ context.Context, dir string) error {
		for i := range n {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 4096), 0o600); err != nil {
				return err
			}
		}
		return nil
	}}
}

// noBuild fails the test when it is called.
func noBuild(t *testing.T) Builder {
	t.Helper()
	return Builder{Build: func(context.Context, string) error {
		assert.Fail(t, "built although the entry was there")
		return errors.New("must not build")
	}}
}

func ref(layer string, key byte) Ref { return Ref{Layer: layer, Key: Key{key, 0xab}} }

// requireNoTemp checks that no build, trash or lock is left.
func requireNoTemp(t *testing.T, c *Cache) {
	t.Helper()
	names, err := readNames(filepath.Join(c.Dir(), tmpName))
	require.NoError(t, err)
	require.Empty(t, names, "left in tmp/")
	names, err = readNames(filepath.Join(c.Dir(), locksName))
	require.NoError(t, err)
	for _, name := range names {
		require.NotContains(t, name, lockSuffix, "left in locks/")
	}
}

func requireList(t *testing.T, c *Cache) []Info {
	t.Helper()
	infos, err := c.List(t.Context())
	require.NoError(t, err)
	return infos
}

// runChildren runs n child processes at the same time, all of which must
// succeed, and returns what they said.
func runChildren(t *testing.T, c *Cache, n int, mode string, ref Ref) string {
	t.Helper()
	cmds := make([]*exec.Cmd, n)
	out := make([]bytes.Buffer, n)
	for i := range cmds {
		cmds[i] = childCommand(t, c, mode, ref)
		cmds[i].Stdout = &out[i]
		require.NoError(t, cmds[i].Start())
	}
	text := ""
	for i, cmd := range cmds {
		assert.NoError(t, cmd.Wait())
		text += out[i].String()
	}
	return text
}
