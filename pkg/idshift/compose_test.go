package idshift_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func TestThen(t *testing.T) {
	t.Parallel()
	parse := func(s string) idshift.Mapping {
		m, err := idshift.ParseMapping(s, s)
		require.NoError(t, err)
		return m
	}
	for _, c := range []struct{ first, next, want string }{
		{"0:100000:65536", "100000:0:65536", "0:0:65536"},
		{"100000:0:65536", "0:200000:65536", "100000:200000:65536"},
		{"0:100:10,10:500:10", "105:0:5,500:1000:3", "5:0:5,10:1000:3"},
		{"0:0:4294967295", "0:7:1", "0:7:1"},
	} {
		got, err := parse(c.first).Then(parse(c.next))
		require.NoError(t, err, c)
		assert.Equal(t, parse(c.want), got, c)
		for id := range uint32(30) {
			mid, ok := parse(c.first).UIDs.ToHost(id)
			want, ok2 := parse(c.next).UIDs.ToHost(mid)
			have, found := got.UIDs.ToHost(id)
			assert.Equal(t, ok && ok2, found, "%v: %d", c, id)
			if found {
				assert.Equal(t, want, have, "%v: %d", c, id)
			}
		}
	}
	_, err := parse("0:100:10").Then(parse("0:0:10"))
	require.ErrorIs(t, err, idshift.ErrNoExtents)
}
