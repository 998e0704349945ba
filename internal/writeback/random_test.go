package writeback_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fsop"
	"github.com/shiftoverlay/shiftoverlay/internal/writeback"
)

// TestRandomChanges does random sequences of changes in every variant. A
// failure names the seed with which SHIFT_ROUNDTRIP_SEED repeats it.
// SHIFT_ROUNDTRIP_N is the number of sequences, spread over the variants.
func TestRandomChanges(t *testing.T) {
	seed, n := fsop.Sequences(t, 60)
	eachVariant(t, func(t *testing.T, v variant, dir string) {
		lowers := image(t, place(t, dir, "image"), upperLayers()...)
		for i := range (n + len(variants()) - 1) / len(variants()) {
			seed := seed + uint64(i)
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				c := start(t, place(t, dir, fmt.Sprint(seed)), v, lowers)
				play(t, c.ops, seed)
				c.check()
			})
		}
	})
}

// TestRandomLayers puts uppers with everything that overlay writes below
// another one: redirects and metadata-only files lead through layers.
func TestRandomLayers(t *testing.T) {
	seed, n := fsop.Sequences(t, 60)
	eachVariant(t, func(t *testing.T, v variant, dir string) {
		if v.mapping != "" {
			return // layers hold container IDs
		}
		base := image(t, place(t, dir, "image"), upperLayers()...)
		for i := range (n + 2) / 3 {
			seed := seed + uint64(i)
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				lowers := base
				for level := range 3 {
					c := start(t, place(t, dir, fmt.Sprint(seed, "-", level)), v, lowers)
					play(t, c.ops, seed+uint64(level)<<32)
					c.check()
					lowers = append([]string{c.upper}, lowers...)
				}
				c := start(t, place(t, dir, fmt.Sprint(seed, "-whole")), v, lowers)
				wholeAndCompare(t, c, base)
			})
		}
	})
}

// wholeAndCompare checks that a Whole layer is all that the container sees,
// and a comparison with any layer below what lies between.
func wholeAndCompare(t *testing.T, c *container, base []string) {
	t.Helper()
	want := c.seen()
	whole := c.layer()
	whole.Whole = true
	all := c.dir + "/all"
	require.NoError(t, unpack(t, all, writeback.Change{Layer: whole}))
	got, err := referee.Scan(t.Context(), all, compareOptions)
	require.NoError(t, err)
	report(t, c.expected(want, referee.Compare(want, got, compareOptions)), whole)

	between := c.dir + "/between"
	c.lowers = base
	c.copyImage(between)
	l := c.layer()
	l.Lowers = whole.Lowers
	require.NoError(t, unpack(t, between, writeback.Change{Layer: l, Against: &writeback.Layer{Upper: base[0], Lowers: base[1:], Overlay: c.overlay}}))
	got, err = referee.Scan(t.Context(), between, compareOptions)
	require.NoError(t, err)
	differences := c.expected(want, referee.Compare(want, got, compareOptions))
	for _, d := range differences {
		if strings.HasPrefix(d.Attribute, referee.AttrPresence) || d.Attribute == referee.AttrContent || d.Attribute == referee.AttrMode {
			assert.Fail(t, "comparison", "%s", d)
		}
	}
}

// play changes a tree with a seed and logs what was done if the test fails.
func play(t *testing.T, o fsop.Ops, seed uint64) {
	t.Helper()
	p := fsop.NewPlayer(o, seed)
	p.Devices = true
	var log []string
	p.Log = func(operation string) { log = append(log, operation) }
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d:\n%s", seed, strings.Join(log, "\n"))
		}
	})
	require.NoError(t, p.Play(25))
	require.NotEmpty(t, log)
}
