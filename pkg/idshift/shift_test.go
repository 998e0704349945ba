package idshift_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

const auto = "0:100000:65536" // what podman run --userns=auto gives

// shift makes a shift of a mapping whose sides are the same.
func shift(tb testing.TB, text string, policy idshift.Unmapped) *idshift.Shift {
	tb.Helper()
	s, err := idshift.NewShift(mapping(tb, text), policy)
	require.NoError(tb, err)
	return s
}

func TestUnmappedPolicy(t *testing.T) {
	t.Parallel()
	for _, u := range []idshift.Unmapped{idshift.Overflow, idshift.Refuse} {
		got, err := idshift.ParseUnmapped(u.String())
		require.NoError(t, err)
		assert.Equal(t, u, got)
	}
	assert.Equal(t, "overflow", idshift.Overflow.String())
	assert.Equal(t, "refuse", idshift.Refuse.String())
	assert.Equal(t, "Unmapped(9)", idshift.Unmapped(9).String())
	for _, text := range []string{"", "Overflow", "deny"} {
		_, err := idshift.ParseUnmapped(text)
		require.ErrorContains(t, err, `is neither "overflow" nor "refuse"`)
	}
}

func TestNewShiftErrors(t *testing.T) {
	t.Parallel()
	_, err := idshift.NewShift(idshift.Mapping{}, idshift.Overflow)
	require.ErrorIs(t, err, idshift.ErrNoExtents)
	require.EqualError(t, err, "make shift: check uid mapping: mapping has no extents")
	_, err = idshift.NewShift(mapping(t, auto), idshift.Unmapped(7))
	require.EqualError(t, err, "make shift: unknown policy for unmapped IDs Unmapped(7)")
	_, err = idshift.NewUnshift(idshift.Mapping{UIDs: idshift.Extents{{0, 0, 0}}})
	require.ErrorIs(t, err, idshift.ErrExtentSize)
}

func TestOwner(t *testing.T) {
	t.Parallel()
	several := "0:100000:1000,1000:5:1,1001:101001:64535"
	tests := []struct {
		name, mapping string
		policy        idshift.Unmapped
		back          bool
		in, out       [2]uint32
		err           *idshift.UnmappedError
	}{
		{name: "root", mapping: auto, in: [2]uint32{0, 0}, out: [2]uint32{100000, 100000}},
		{name: "user and group", mapping: auto, in: [2]uint32{33, 42}, out: [2]uint32{100033, 100042}},
		{name: "several extents", mapping: several, in: [2]uint32{1000, 1001}, out: [2]uint32{5, 101001}},
		{name: "last", mapping: auto, in: [2]uint32{65535, 65535}, out: [2]uint32{165535, 165535}},
		{name: "unmapped user", mapping: auto, in: [2]uint32{70000, 1}, out: [2]uint32{65534, 100001}},
		{name: "unmapped group", mapping: auto, in: [2]uint32{1, 70000}, out: [2]uint32{100001, 65534}},
		{name: "no ID", mapping: auto, in: [2]uint32{noID, noID}, out: [2]uint32{65534, 65534}},
		{
			name: "unmapped user refused", mapping: auto, policy: idshift.Refuse, in: [2]uint32{70000, 1},
			err: &idshift.UnmappedError{Kind: "uid", ID: 70000, Err: idshift.ErrNotMapped},
		},
		{
			name: "unmapped group refused", mapping: auto, policy: idshift.Refuse, in: [2]uint32{1, 70001},
			err: &idshift.UnmappedError{Kind: "gid", ID: 70001, Err: idshift.ErrNotMapped},
		},
		{
			name: "overflow ID is a container user", mapping: "0:1000:65536", in: [2]uint32{70000, 1},
			err: &idshift.UnmappedError{Kind: "uid", ID: 70000, Err: idshift.ErrOverflowMapped},
		},
		{
			name: "overflow ID is a container group", mapping: "0:1000:65536", in: [2]uint32{1, 70000},
			err: &idshift.UnmappedError{Kind: "gid", ID: 70000, Err: idshift.ErrOverflowMapped},
		},
		{name: "overflow ID is a container user, all mapped", mapping: "0:1000:65536", in: [2]uint32{64534, 0}, out: [2]uint32{65534, 1000}},
		{name: "65534 of the image is mapped as any", mapping: auto, in: [2]uint32{65534, 65534}, out: [2]uint32{165534, 165534}},
		{name: "back", mapping: several, back: true, in: [2]uint32{5, 101001}, out: [2]uint32{1000, 1001}},
		{
			name: "back unmapped user", mapping: auto, back: true, in: [2]uint32{0, 100000},
			err: &idshift.UnmappedError{Kind: "uid", ID: 0, Err: idshift.ErrNotMappedBack},
		},
		{
			name: "back unmapped group", mapping: auto, back: true, in: [2]uint32{100000, 65534},
			err: &idshift.UnmappedError{Kind: "gid", ID: 65534, Err: idshift.ErrNotMappedBack},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := shift(t, tt.mapping, tt.policy)
			if tt.back {
				s = s.Back()
			}
			uid, gid, err := s.Owner(tt.in[0], tt.in[1])
			if tt.err != nil {
				var got *idshift.UnmappedError
				require.ErrorAs(t, err, &got)
				assert.Equal(t, tt.err, got)
				require.ErrorIs(t, err, tt.err.Err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.out, [2]uint32{uid, gid})
		})
	}
}

func TestOverflowPerSide(t *testing.T) {
	t.Parallel()
	m, err := idshift.ParseMapping("0:1000:65536", auto)
	require.NoError(t, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	_, gid, err := s.Owner(0, 70000)
	require.NoError(t, err, "65534 is a user of the container but not a group")
	assert.Equal(t, uint32(65534), gid)
	_, _, err = s.Owner(70000, 0)
	require.ErrorIs(t, err, idshift.ErrOverflowMapped)
}

func TestShiftBack(t *testing.T) {
	t.Parallel()
	m := mapping(t, auto)
	s := shift(t, auto, idshift.Overflow)
	assert.Equal(t, m, s.Mapping())
	assert.Equal(t, m, s.Back().Mapping())
	assert.Equal(t, s, s.Back().Back())
	u, err := idshift.NewUnshift(m)
	require.NoError(t, err)
	for _, back := range []*idshift.Shift{u, s.Back()} {
		uid, gid, err := back.Owner(100001, 100002)
		require.NoError(t, err)
		assert.Equal(t, [2]uint32{1, 2}, [2]uint32{uid, gid})
	}
	uid, _, err := s.Back().Back().Owner(70000, 0)
	require.NoError(t, err, "forward again, the policy counts again")
	assert.Equal(t, uint32(65534), uid)
}

func TestUnmappedErrorText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err  error
		want string
	}{
		{
			&idshift.UnmappedError{Kind: "uid", ID: 70000, Err: idshift.ErrNotMapped},
			`uid 70000 has no host ID in the mapping; extend the mapping to cover it or allow the overflow ID (unmapped = "overflow")`,
		},
		{
			&idshift.UnmappedError{Path: "var/lib/a b", Kind: "gid", ID: 5, Err: idshift.ErrNotMappedBack},
			`"var/lib/a b": gid 5 is not a host ID of the mapping, so it has no ID inside the container; give the file an owner of the container`,
		},
		{
			&idshift.UnmappedError{Path: "x", Kind: "acl user", ID: 70000, Err: idshift.ErrOverflowMapped},
			`"x": acl user 70000 has no host ID in the mapping and cannot be shown as the overflow ID 65534, which the mapping gives to a container user; extend the mapping to cover 70000`,
		},
	}
	for _, tt := range tests {
		require.EqualError(t, tt.err, tt.want)
	}
}

func TestAtPath(t *testing.T) {
	t.Parallel()
	require.NoError(t, idshift.AtPath(nil, "etc"))

	_, _, bare := shift(t, auto, idshift.Refuse).Owner(70000, 0)
	err := idshift.AtPath(bare, "etc/passwd")
	var u *idshift.UnmappedError
	require.ErrorAs(t, err, &u)
	assert.Equal(t, "etc/passwd", u.Path)
	require.ErrorContains(t, err, `"etc/passwd": uid 70000 `)
	require.ErrorAs(t, bare, &u)
	assert.Empty(t, u.Path, "the error that was passed is not changed")

	err = idshift.AtPath(err, "other")
	require.ErrorContains(t, err, `shift "other": "etc/passwd": uid 70000 `, "a path is not replaced")
	err = idshift.AtPath(errors.Join(fs.ErrNotExist), "a")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, `shift "a": `)
}

func TestShiftAllocatesNothing(t *testing.T) {
	for name, text := range map[string]string{
		"linear": auto,
		"binary": "0:100000:1000,1000:5:1,1001:101001:64535,70000:10:1,80000:20:1,90000:30:1",
	} {
		m := mapping(t, text)
		s := shift(t, text, idshift.Overflow)
		same := shift(t, "0:0:65536", idshift.Overflow)
		label, unchanged, v2, v3 := []byte("system_u:object_r:etc_t:s0\x00"), namedACL(1, 2), capV2(), capV3(1000)
		assert.Zero(t, testing.AllocsPerRun(100, func() { m.ToHost(1000, 60000) }), name)
		assert.Zero(t, testing.AllocsPerRun(100, func() { m.ToContainer(5, 100000) }), name)
		assert.Zero(t, testing.AllocsPerRun(100, func() { _, _, _ = s.Owner(1000, 99999) }), name)
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			_, _, _ = s.Xattr("security.selinux", label)
			_, _, _ = s.Xattr("trusted.overlay.origin", label)
			_, _, _ = same.Xattr(idshift.ACLAccess, unchanged)
			_, _, _ = same.Xattr(idshift.Capability, v2)
			_, _, _ = same.Xattr(idshift.Capability, v3)
		}), name)
	}
}
