package cache

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProcessesRaceForOneKey(t *testing.T) {
	f := newFixture(t)
	const processes = 6
	text := runChildren(t, f.Cache, processes, "race", ref("l", 1))
	require.Equal(t, 1, strings.Count(text, "building"), text)
	require.Equal(t, 1, strings.Count(text, "built"), text)
	require.Equal(t, processes-1, strings.Count(text, "found"), text)
	require.Len(t, requireList(t, f.Cache)[0].Users, processes)
	requireNoTemp(t, f.Cache)
}

// startHanging starts another process and returns when it is in the middle of
// a build.
func startHanging(t *testing.T, f *fixture, r Ref) *exec.Cmd {
	t.Helper()
	return startChild(t, f, r, "hang")
}

// startChild is startHanging for any mode of child that hangs.
func startChild(t *testing.T, f *fixture, r Ref, mode string) *exec.Cmd {
	t.Helper()
	cmd := childCommand(t, f.Cache, mode, r)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "building\n", line)
	return cmd
}

func TestKilledBuilder(t *testing.T) {
	f := newFixture(t)
	r := ref("l", 1)
	cmd := startHanging(t, f, r)

	// Somebody waits for it, and others leave its build alone.
	waiter := childCommand(t, f.Cache, "race", r)
	var out bytes.Buffer
	waiter.Stdout = &out
	require.NoError(t, waiter.Start())
	f.acquire(ref("other", 2), "u", 1)
	_, err := f.Trim(t.Context(), TrimOptions{})
	require.NoError(t, err)
	parts, err := filepath.Glob(filepath.Join(f.Dir(), tmpName, "*", dataName, "part"))
	require.NoError(t, err)
	require.Len(t, parts, 1, "the build of a living process was deleted")

	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.NoError(t, waiter.Wait())
	require.Equal(t, "building\nbuilt\n", out.String())
	require.FileExists(t, filepath.Join(f.acquire(r, "u", 0).Path(), "whole"))
	requireNoTemp(t, f.Cache)
}

func TestTrimDeletesWhatTheDeadLeft(t *testing.T) {
	f := newFixture(t)
	for i := range 3 {
		cmd := startHanging(t, f, ref("l", byte(i)))
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
	}
	// Each of them deleted what the one before had left.
	names, err := readNames(filepath.Join(f.Dir(), tmpName))
	require.NoError(t, err)
	require.Len(t, names, 2)
	// After a power cut there can be one without the other.
	require.NoError(t, os.MkdirAll(filepath.Join(f.Dir(), tmpName, "NOLOCK/data/x"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(f.Dir(), tmpName, "NOFOLDER.lock"), nil, 0o600))
	removed, err := f.Trim(t.Context(), TrimOptions{})
	require.NoError(t, err)
	require.Empty(t, removed)
	requireNoTemp(t, f.Cache)
	require.Empty(t, requireList(t, f.Cache))
}
