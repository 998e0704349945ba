package idshift_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// drawMapped draws a container ID that the extents map.
func drawMapped(t *rapid.T, e idshift.Extents, label string) uint32 {
	x := rapid.SampledFrom(e).Draw(t, label+" extent")
	return rapid.Uint32Range(x.ContainerID, x.ContainerID+x.Size-1).Draw(t, label)
}

func drawShift(t *rapid.T) (s, back *idshift.Shift) {
	m := drawMapping(t)
	s, err := idshift.NewShift(m, rapid.SampledFrom([]idshift.Unmapped{idshift.Overflow, idshift.Refuse}).Draw(t, "policy"))
	require.NoError(t, err)
	back, err = idshift.NewUnshift(m)
	require.NoError(t, err)
	if rapid.Bool().Draw(t, "by Back") {
		back = s.Back()
	}
	return s, back
}

func TestPropOwnerBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, back := drawShift(t)
		m := s.Mapping()
		uid, gid := drawMapped(t, m.UIDs, "uid"), drawMapped(t, m.GIDs, "gid")
		hostUID, hostGID, err := s.Owner(uid, gid)
		require.NoError(t, err)
		wantUID, wantGID, ok := m.ToHost(uid, gid)
		require.True(t, ok)
		require.Equal(t, [2]uint32{wantUID, wantGID}, [2]uint32{hostUID, hostGID})
		gotUID, gotGID, err := back.Owner(hostUID, hostGID)
		require.NoError(t, err)
		require.Equal(t, [2]uint32{uid, gid}, [2]uint32{gotUID, gotGID})
	})
}

// TestPropUnmappedOwnerIsNeverAContainerUser is the rule that keeps an unmapped
// file out of the container's hands.
func TestPropUnmappedOwnerIsNeverAContainerUser(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, _ := drawShift(t)
		m := s.Mapping()
		uid, gid := drawID(t, m.UIDs, "uid"), drawID(t, m.GIDs, "gid")
		hostUID, hostGID, err := s.Owner(uid, gid)
		if err != nil {
			var u *idshift.UnmappedError
			require.ErrorAs(t, err, &u)
			return
		}
		_, mapped := m.UIDs.ToHost(uid)
		_, owned := m.UIDs.ToContainer(hostUID)
		require.Equal(t, mapped, owned)
		_, mapped = m.GIDs.ToHost(gid)
		_, owned = m.GIDs.ToContainer(hostGID)
		require.Equal(t, mapped, owned)
	})
}

func drawACL(t *rapid.T, m idshift.Mapping) []byte {
	perm := rapid.Uint16Range(0, 7)
	named := func(tag uint16, e idshift.Extents, label string) (out []aclEntry) {
		for range rapid.IntRange(0, 4).Draw(t, label+"s") {
			out = append(out, aclEntry{tag, perm.Draw(t, "perm"), drawMapped(t, e, label)})
		}
		return out
	}
	entries := []aclEntry{{userObj, perm.Draw(t, "perm"), noID}}
	entries = append(entries, named(user, m.UIDs, "user")...)
	entries = append(entries, aclEntry{groupObj, perm.Draw(t, "perm"), noID})
	entries = append(entries, named(group, m.GIDs, "group")...)
	if len(entries) > 2 || rapid.Bool().Draw(t, "mask") {
		entries = append(entries, aclEntry{mask, perm.Draw(t, "perm"), noID})
	}
	return acl(append(entries, aclEntry{other, perm.Draw(t, "perm"), noID})...)
}

func TestPropACLBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, back := drawShift(t)
		value := drawACL(t, s.Mapping())
		before := bytes.Clone(value)
		out, keep, err := s.Xattr(idshift.ACLDefault, value)
		require.NoError(t, err)
		require.True(t, keep)
		got, keep, err := back.Xattr(idshift.ACLDefault, out)
		require.NoError(t, err)
		require.True(t, keep)
		require.Equal(t, before, got)
		require.Equal(t, before, value)
	})
}

func TestPropCapabilityBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, back := drawShift(t)
		root := drawMapped(t, s.Mapping().UIDs, "root")
		flag := rapid.Uint32Range(0, 1).Draw(t, "flag")
		bits := rapid.SliceOfN(rapid.Uint32(), 4, 4).Draw(t, "capabilities")
		value := words(append([]uint32{0x02000000 | flag}, bits...)...)
		if root != 0 {
			value = words(append(append([]uint32{0x03000000 | flag}, bits...), root)...)
		}
		before := bytes.Clone(value)
		out, keep, err := s.Xattr(idshift.Capability, value)
		require.NoError(t, err)
		require.True(t, keep)
		got, keep, err := back.Xattr(idshift.Capability, out)
		require.NoError(t, err)
		require.True(t, keep)
		require.Equal(t, before, got)
		require.Equal(t, before, value)
	})
}
