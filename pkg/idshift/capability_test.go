package idshift_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func TestCapability(t *testing.T) {
	t.Parallel()
	const (
		overflow = idshift.Overflow
		refuse   = idshift.Refuse
		keepID   = "0:1:1000,1000:0:1,1001:1001:64536"
	)
	v1AsV2, v1AsV3 := words(0x02000001, capNetRaw, 5, 0, 0), words(0x03000001, capNetRaw, 5, 0, 0, 100000)
	noFlag := words(0x02000000, capNetRaw, 5, 6, 7)
	tests := []struct {
		name, mapping string
		policy        idshift.Unmapped
		back          bool
		in, out       []byte // out nil: dropped
		unmapped      error
	}{
		{name: "v2 gets the container's root", mapping: auto, in: capV2(), out: capV3(100000)},
		{name: "flags are kept", mapping: auto, in: noFlag, out: words(0x03000000, capNetRaw, 5, 6, 7, 100000)},
		{name: "v3 of a nested namespace", mapping: auto, in: capV3(1000), out: capV3(101000)},
		{name: "v3 with root 0 is v2", mapping: auto, in: capV3(0), out: capV3(100000)},
		{name: "v1", mapping: auto, in: capV1(), out: v1AsV3},
		{name: "v1 without a shift", mapping: "0:0:65536", in: capV1(), out: v1AsV2},
		{name: "v2 without a shift", mapping: "0:0:65536", in: capV2(), out: capV2()},
		{name: "v3 without a shift", mapping: "0:0:65536", in: capV3(1000), out: capV3(1000)},
		{name: "v3 whose root becomes the host's", mapping: keepID, in: capV3(1000), out: capV2()},
		{name: "keep-id", mapping: keepID, in: capV2(), out: capV3(1)},
		{name: "root unmapped", mapping: "1000:1000:1", in: capV2(), out: nil},
		{name: "root of v3 unmapped", mapping: auto, in: capV3(70000), out: nil},
		{name: "root of v3 is no ID", mapping: auto, in: capV3(noID), out: nil},
		{name: "root of v3 unmapped, overflow ID mapped", mapping: "0:1000:65536", in: capV3(70000), out: nil},
		{name: "root unmapped, refused", mapping: "1000:1000:1", policy: refuse, in: capV2(), unmapped: idshift.ErrNotMapped},
		{name: "root of v3 unmapped, refused", mapping: auto, policy: refuse, in: capV3(70000), unmapped: idshift.ErrNotMapped},

		{name: "back", mapping: auto, back: true, in: capV3(100000), out: capV2()},
		{name: "back, nested", mapping: auto, back: true, in: capV3(101000), out: capV3(1000)},
		{name: "back, the host root's own", mapping: auto, back: true, in: capV2(), out: capV2()},
		{name: "back, the host root's own as v3", mapping: auto, back: true, in: capV3(0), out: capV2()},
		{name: "back, host root is a container user", mapping: keepID, back: true, in: capV2(), out: capV3(1000)},
		{name: "back, keep-id", mapping: keepID, back: true, in: capV3(1), out: capV2()},
		{name: "back, another container's", mapping: auto, back: true, policy: overflow, in: capV3(200000), unmapped: idshift.ErrNotMappedBack},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := shift(t, tt.mapping, tt.policy)
			if tt.back {
				s = s.Back()
			}
			before := bytes.Clone(tt.in)
			out, keep, err := s.Xattr(idshift.Capability, tt.in)
			assert.Equal(t, before, tt.in, "the input is not changed")
			if tt.unmapped != nil {
				var u *idshift.UnmappedError
				require.ErrorAs(t, err, &u)
				assert.Equal(t, "capability rootid", u.Kind)
				require.ErrorIs(t, err, tt.unmapped)
				assert.False(t, keep)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.out, out)
			assert.Equal(t, tt.out != nil, keep)
		})
	}
}

func TestShiftCapabilityReturnsTheSameValue(t *testing.T) {
	t.Parallel()
	for _, value := range [][]byte{capV2(), capV3(1000)} {
		got, err := idshift.ShiftCapability(value, add(0))
		require.NoError(t, err)
		assert.Same(t, &value[0], &got[0])
	}
	sentinel := errors.New("no")
	_, err := idshift.ShiftCapability(capV2(), func(uint32) (uint32, error) { return 0, sentinel })
	require.Equal(t, sentinel, err)
}

// badCapabilities are values that the kernel does not accept either; see
// TestKernelRefusesWhatWeRefuse.
func badCapabilities() map[string][]byte {
	return map[string][]byte{
		"0 bytes":                                {},
		"3 bytes":                                {1, 0, 0},
		"4 bytes, revision 2 has 20":             words(0x02000000),
		"20 bytes, revision 3 has 24":            words(0x03000000, 1, 0, 0, 0),
		"24 bytes, revision 2 has 20":            words(0x02000000, 1, 0, 0, 0, 0),
		"20 bytes, revision 1 has 12":            words(0x01000000, 1, 0, 0, 0),
		"25 bytes, revision 3 has 24":            append(capV3(0), 0),
		"revision and flags 0x04000000":          words(0x04000000, 1, 0, 0, 0, 0),
		"revision and flags 0x00000001 are unkn": words(1, 1, 0, 0, 0),
		"revision and flags 0x02000003":          words(0x02000003, 1, 0, 0, 0),
		"revision and flags 0x01000002":          words(0x01000002, 1, 0),
	}
}

func TestShiftCapabilityMalformed(t *testing.T) {
	t.Parallel()
	s := shift(t, auto, idshift.Overflow)
	for message, value := range badCapabilities() {
		out, keep, err := s.Xattr(idshift.Capability, value)
		require.ErrorIs(t, err, idshift.ErrBadCapability, message)
		require.ErrorContains(t, err, "shift xattr security.capability: malformed file capability: "+message)
		assert.Nil(t, out)
		assert.False(t, keep)
	}
}

func FuzzCapability(f *testing.F) {
	for _, value := range [][]byte{capV1(), capV2(), capV3(0), capV3(1000), capV3(70000), capV3(noID)} {
		f.Add(value)
	}
	for _, value := range badCapabilities() {
		f.Add(value)
	}
	s := shift(f, "0:100000:1000,1000:0:1,1001:101001:64535", idshift.Overflow)
	f.Fuzz(func(t *testing.T, value []byte) {
		before := bytes.Clone(value)
		out, keep, err := s.Xattr(idshift.Capability, value)
		require.Equal(t, before, value, "the input is not changed")
		if err != nil {
			require.ErrorIs(t, err, idshift.ErrBadCapability)
			require.False(t, keep)
			return
		}
		if !keep {
			require.Nil(t, out)
			return
		}
		back, keep, err := s.Back().Xattr(idshift.Capability, out)
		require.NoError(t, err)
		require.True(t, keep)
		again, keep, err := s.Xattr(idshift.Capability, back)
		require.NoError(t, err)
		require.True(t, keep)
		require.Equal(t, out, again)
		if len(before) == 20 { // version 2 has one spelling
			require.Equal(t, before, back)
		}
	})
}
