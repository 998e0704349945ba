package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/worstcase"
)

// TestWorstCase is the worst-case image's way through the driver: every engine
// shows it as the kernel does, and it can be run and removed.
func TestWorstCase(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	args := []string{"worst-case", "worst"}
	if _, err := os.Stat(busybox); err == nil {
		args = append(args, "--program", busybox)
	}
	var made worstCaseResult
	h.json(&made, args...)
	assert.Len(t, made.ID, 64)
	left := map[string]string{}
	for _, l := range made.LeftOut {
		left[l.Feature] = l.Reason
	}
	assert.Contains(t, left[worstcase.Immutable], "cannot delete")
	assert.NotEmpty(t, left[worstcase.SharedInode])
	var images []imageRow
	h.json(&images, "images")
	require.Len(t, images, 1)
	assert.Equal(t, worstcase.Layers, images[0].Layers)

	for i, engine := range engines() {
		t.Run(engine, func(t *testing.T) {
			mapping := []string{oneExtent}
			if i%2 == 0 {
				mapping = threeExtents()
			}
			r := h.try(append([]string{"--engine", engine, "verify", "worst"}, flag(mapping...)...)...)
			if strings.Contains(r.errors, cannot) {
				testutil.Skip(t, r.errors)
			}
			assert.Zero(t, r.code, "%s%s", r.out, r.errors)
			assert.True(t, strings.HasSuffix(r.out, "\ndifferences: 0\n"), r.out)
		})
	}
	if len(args) > 2 {
		assert.Equal(t, "2 1000:1000\n", h.ok("run", "worst", "--", "sh", "-c",
			`echo $(stat -c %h /links/again/one) $(stat -c %u:%g "/owners/1000")`))
	}
	again := h.try("worst-case", "worst")
	assert.Equal(t, exitOwnError, again.code)
	assert.Contains(t, again.errors, "plugin-test rmi worst")

	h.ok("rmi", "worst")
	h.json(&images, "images")
	assert.Empty(t, images)
	layers, err := os.ReadDir(h.root + "/shiftoverlay/l")
	require.NoError(t, err)
	assert.Empty(t, layers, "layers left behind")
}

// TestWorstCaseWithout checks leaving out, the text, and that a failure leaves
// no layer.
func TestWorstCaseWithout(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	r := h.try("worst-case", "--without", "no-such", "small")
	assert.Equal(t, exitOwnError, r.code)
	assert.Contains(t, r.errors, `no feature "no-such"`)
	layers, err := os.ReadDir(h.root + "/shiftoverlay/l")
	require.NoError(t, err)
	assert.Empty(t, layers, "layers left behind")

	out := strings.TrimSpace(h.ok("worst-case", "--without", "wide", "--without", "nesting", "small"))
	lines := strings.Split(out, "\n")
	for _, l := range lines[:len(lines)-1] {
		assert.Regexp(t, "^left out: [a-z0-9-]+: .+", l)
	}
	assert.Len(t, lines[len(lines)-1], 64)
	assert.NotContains(t, out, "wide", "what was asked for is not told")
	assert.Contains(t, h.ok("worst-case", "--help"), "a directory of 50,000 entries")
	h.ok("rmi", "small")
}
