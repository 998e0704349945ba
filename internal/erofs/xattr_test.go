package erofs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// TestSplitName checks which names EROFS can hold.
func TestSplitName(t *testing.T) {
	for _, c := range []struct {
		full  string
		index byte
		rest  string
	}{
		{"user.a.b", 1, "a.b"},
		{"system.posix_acl_access", 2, ""},
		{"system.posix_acl_default", 3, ""},
		{"trusted.overlay.overlay.opaque", 4, "overlay.overlay.opaque"},
		{"security.selinux", 6, "selinux"},
	} {
		index, rest, ok := splitName(c.full)
		assert.True(t, ok, c.full)
		assert.Equal(t, c.index, index, c.full)
		assert.Equal(t, c.rest, rest, c.full)
	}
	for _, full := range []string{"system.nfs4_acl", "system.posix_acl_access2", "user.", "user", "security.", "btrfs.compression", "lustre.lov", ""} {
		_, _, ok := splitName(full)
		assert.False(t, ok, full)
	}
}

// TestEntry checks that entries can be read back and are padded.
func TestEntry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := attr{
			index: rapid.Byte().Draw(t, "index"),
			name:  rapid.StringN(0, 63, xattrNameMax).Draw(t, "name"),
			value: rapid.StringN(0, 300, -1).Draw(t, "value"),
		}
		b := appendEntry(nil, a.index, a.name, a.value)
		assert.Len(t, b, a.size())
		assert.Zero(t, len(b)%xattrAlign)
		index, name, value, ok := cutEntry(b)
		assert.True(t, ok)
		assert.Equal(t, []any{a.index, a.name, a.value}, []any{index, string(name), string(value)})
	})
}

func newTable(t require.TestingT) *xattrTable {
	x, err := newXattrTable()
	require.NoError(t, err)
	return x
}

// TestSets checks that equal attributes become one set in any order, and that
// those of several inodes are shared.
func TestSets(t *testing.T) {
	x := newTable(t)
	label := idshift.Xattr{Name: "security.selinux", Value: []byte("system_u:object_r:x:s0\x00")}
	other := idshift.Xattr{Name: "user.o", Value: []byte("v")}
	one, err := x.add([]idshift.Xattr{label, other}, markNone)
	require.NoError(t, err)
	two, err := x.add([]idshift.Xattr{other, label}, markNone)
	require.NoError(t, err)
	assert.Equal(t, one, two)
	only, err := x.add([]idshift.Xattr{label}, markMetacopy)
	require.NoError(t, err)
	assert.NotEqual(t, one, only)
	x.use(one, 1)
	x.use(only, 1)
	x.freeze(DataOnly)
	s := &x.sets[one]
	assert.Equal(t, 1, s.shared)
	assert.Equal(t, "selinux", s.attrs[0].name)
	assert.Equal(t, xattrHeaderSize+xattrShared+entrySize(1, 1), s.body)
	assert.Equal(t, 2, x.sets[only].shared, "the label and overlay's mark")
	assert.False(t, x.acl)

	none, err := x.add(nil, markNone)
	require.NoError(t, err)
	assert.EqualValues(t, markNone, none)
	mark, err := x.add(nil, markOpaque)
	require.NoError(t, err)
	assert.EqualValues(t, markOpaque, mark)
	dropped, err := x.add([]idshift.Xattr{{Name: "trusted.overlay.opaque", Value: []byte("y")}, {Name: "trusted.SGI_ACL_FILE", Value: []byte("x")}}, markNone)
	require.NoError(t, err)
	assert.EqualValues(t, markNone, dropped)
}

// TestMoreThan255Shared checks that the rest is written inline, as one byte
// counts the shared ones.
func TestMoreThan255Shared(t *testing.T) {
	x := newTable(t)
	var list []idshift.Xattr
	for i := range 300 {
		list = append(list, idshift.Xattr{Name: fmt.Sprintf("user.%03d", i), Value: []byte("v")})
	}
	n, err := x.add(list, markNone)
	require.NoError(t, err)
	x.use(n, 2)
	x.freeze(Opaque)
	s := &x.sets[n]
	assert.Equal(t, xattrSharedMax, s.shared)
	assert.Equal(t, xattrHeaderSize+xattrSharedMax*xattrShared+45*entrySize(3, 1), s.body)
	assert.Zero(t, s.filter)
}

// TestFilter checks that each name of a set has its bit clear.
func TestFilter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newTable(t)
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`(user|trusted|security)\.[a-z.]{1,12}`), 1, 6, rapid.ID[string]).Draw(t, "names")
		var list []idshift.Xattr
		for _, n := range names {
			if n != idshift.Capability && !idshift.IsOverlayXattr(n) {
				list = append(list, idshift.Xattr{Name: n})
			}
		}
		n, err := x.add(list, markNone)
		require.NoError(t, err)
		x.use(n, rapid.IntRange(1, 2).Draw(t, "uses"))
		x.freeze(DataOnly)
		cleared := ^x.sets[n].filter
		for _, a := range list {
			index, rest, _ := splitName(a.Name)
			bit := filterBit(index, rest)
			assert.NotZero(t, cleared&bit)
			cleared |= bit
		}
	})
}

// TestCapabilityHasRoom checks that version 2 is stored as version 3 with root
// user 0, and version 3 as it is.
func TestCapabilityHasRoom(t *testing.T) {
	x := newTable(t)
	for in, want := range map[string]string{
		fstree.CapV2(): fstree.CapV3(0), fstree.CapV3(0): fstree.CapV3(0), fstree.CapV3(1000): fstree.CapV3(1000),
	} {
		n, err := x.add([]idshift.Xattr{{Name: idshift.Capability, Value: []byte(in)}}, markNone)
		require.NoError(t, err)
		assert.Equal(t, want, x.sets[n].attrs[0].value)
		assert.True(t, x.sets[n].attrs[0].holdsIDs())
	}
	assert.Len(t, droppedName, len(capabilityName))
	assert.True(t, idshift.IsOverlayXattr("trusted."+droppedName))
}

// TestUnfitAttributes checks what EROFS cannot hold, and what nobody can.
func TestUnfitAttributes(t *testing.T) {
	x := newTable(t)
	for _, a := range []idshift.Xattr{
		{Name: "system.nfs4_acl", Value: []byte("x")},
		{Name: "user.big", Value: make([]byte, xattrValueMax+1)},
		{Name: "user." + strings.Repeat("n", xattrNameMax+1)},
	} {
		_, err := x.add([]idshift.Xattr{a}, markNone)
		var unfit *UnfitError
		assert.ErrorAs(t, err, &unfit, a.Name)
	}
	_, err := x.add([]idshift.Xattr{{Name: idshift.ACLAccess, Value: []byte("x")}}, markNone)
	assert.ErrorIs(t, err, idshift.ErrBadACL)
}
