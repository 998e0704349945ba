package enginetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/internal/worstcase"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// outsideContent is what no layer may show.
const outsideContent = "SECRET OUTSIDE OF THE LAYERS"

// Hostile checks that layers that mean harm do none, whichever engine shows
// them: what they must not change reads as it should, nothing outside of them
// is shown or touched, and what only the kernel may follow is refused by name.
// An engine that makes nothing stands for the kernel's idmapped mounts.
func Hostile(t *testing.T, fileSystem string, e engine.Engine) {
	testutil.RequireRoot(t)
	h := &hostile{suite: &suite{fs: testutil.LoopFS(t, fileSystem, 512<<20)}, engine: e}
	h.o.overlay = testutil.Overlay
	if isRootless(e) {
		h.forRootless(t, e)
	}
	for _, c := range worstcase.HostileChains() {
		if c.Name == "user-namespace" && h.rootless {
			continue // the others have the attributes that are in use
		}
		t.Run(c.Name, func(t *testing.T) { h.run(t, c) })
	}
}

// hostile is one engine that is shown hostile layers.
type hostile struct {
	*suite
	engine engine.Engine
}

func (h *hostile) run(t *testing.T, c worstcase.Hostile) {
	dir := h.place(t)
	outside := sub(t, dir, "outside")
	secret := filepath.Join(outside, "secret")
	require.NoError(t, os.WriteFile(secret, []byte(outsideContent), 0o600))
	var chain []string
	for i := range worstcase.HostileLayers {
		chain = append(chain, sub(t, dir, fmt.Sprintf("l%d", i)))
	}
	require.NoError(t, c.Write(t.Context(), chain, outside))
	if h.rootless {
		for _, layer := range chain {
			toUser(t, layer)
		}
	}
	o := referee.Options{Content: true, OverlayXattrs: true}
	before := scan(t, dir, o)
	// Older than the modification time, so that reading would change it.
	old := unix.Timespec{Sec: 1}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, secret, []unix.Timespec{old, {Nsec: unix.UTIME_OMIT}}, 0))

	m := mapping(t, "", "")
	if makes(h.engine) {
		if point, err := h.show(t, h.engine, dir, chain, m); !h.refused(t, c, err) {
			h.judge(t, c, point, h.plain(t, c, chain, shift(t, m, idshift.Overflow)))
		}
	} else {
		for _, option := range []string{"metacopy=off", "metacopy=on", "redirect_dir=off"} {
			point, err := h.show(t, h.engine, dir, chain, m, option)
			require.NoError(t, err)
			h.judge(t, c, point, nil)
		}
	}
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(secret, &st))
	assert.Equal(t, old, st.Atim, "somebody has read what is outside of the layers")
	assert.Empty(t, referee.Compare(before, scan(t, dir, o), o), "what is outside was touched, or the layers")
}

// refused checks that an error refuses what must be refused, and nothing else
// is.
func (h *hostile) refused(t *testing.T, c worstcase.Hostile, err error) bool {
	t.Helper()
	if c.Refused == "" {
		require.NoError(t, err)
		return false
	}
	var le *idshift.LayerError
	require.ErrorAs(t, err, &le)
	assert.Equal(t, c.Refused, le.Path)
	want := "trusted.overlay."
	if h.rootless {
		want = "user.overlay."
	}
	assert.True(t, strings.HasPrefix(le.Xattr, want), le.Xattr)
	return true
}

// plain is what the layers show without an engine, shifted by arithmetic; nil
// where the kernel lists names that it does not find.
func (h *hostile) plain(t *testing.T, c worstcase.Hostile, chain []string, sh *idshift.Shift) *referee.Tree {
	t.Helper()
	tree, err := referee.Scan(t.Context(), h.merged(t, chain), referee.Options{Content: true, OverlayXattrs: true})
	if errors.Is(err, unix.ENOENT) && len(c.Gone) > 0 {
		return nil
	}
	require.NoError(t, err)
	want, err := tree.Shift(sh)
	require.NoError(t, err)
	return want
}

// judge looks at what a container would see.
func (h *hostile) judge(t *testing.T, c worstcase.Hostile, point string, want *referee.Tree) {
	t.Helper()
	for name, content := range c.Reads {
		got, err := os.ReadFile(filepath.Join(point, name))
		require.NoError(t, err)
		assert.Equal(t, content, string(got), name)
	}
	for _, name := range c.Gone {
		_, err := os.Lstat(filepath.Join(point, name))
		require.ErrorIs(t, err, unix.ENOENT, name)
	}
	require.NoError(t, filepath.WalkDir(point, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var got []byte
			if got, err = os.ReadFile(p); err == nil {
				assert.NotContains(t, string(got), outsideContent, p)
			}
		}
		if err != nil && c.Refused == "" && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil // the kernel refuses to follow, or lists a ghost
	}))
	if want != nil {
		o := referee.Options{Content: true, OverlayXattrs: true}
		assert.Empty(t, referee.Compare(want, scan(t, point, o), o), "right != shifted")
	}
}
