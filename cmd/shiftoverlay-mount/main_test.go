package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestVersion(t *testing.T) {
	for _, args := range [][]string{{"--version"}, {"-o", "x", "--version"}} {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), args, &out))
		assert.Regexp(t, `^shiftoverlay-mount: version \S+\n$`, out.String())
	}
}

func TestCommandLine(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"--help"}, &out))
	assert.Equal(t, usage, out.String())
	for _, args := range [][]string{nil, {"-o"}, {"-o", "lowerdir=a"}, {"target"}, {"--restore"}} {
		err := run(t.Context(), args, &out)
		require.ErrorContains(t, err, "cannot read the command line", "%q", args)
		require.ErrorContains(t, err, "Usage:")
	}
	for _, flag := range []string{"--restore", upkeepFlag} {
		require.ErrorIs(t, run(t.Context(), []string{flag, t.TempDir()}, &out), os.ErrNotExist, "no store")
	}
}

// The manual page shows what --help shows.
func TestManualPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "man", "shiftoverlay-mount.1.md"))
	require.NoError(t, err)
	for line := range strings.Lines(usage) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "Usage:"))
		if flag, _, _ := strings.Cut(strings.TrimPrefix(line, "shiftoverlay-mount "), " "); strings.HasPrefix(line, "shiftoverlay-mount ") {
			assert.Contains(t, string(page), "**"+flag+"**", "option %s", flag)
		}
	}
}
