package idshift_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func TestXattrKept(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"security.selinux", "security.ima", "security.evm", "user.comment", "user.overlay", "user.overlayfs.x",
		"trusted.other", "trusted.overlay", "system.other", "system.posix_acl_accessed", "security.capabilityx",
		"trusted.overlay.overlay.metacopy", "user.overlay.opaque", "trusted.overlay.overlay.overlay.whiteout",
	} {
		for _, s := range []*idshift.Shift{shift(t, auto, idshift.Refuse), shift(t, auto, idshift.Overflow).Back()} {
			value := []byte{0, 255, 'x'}
			out, keep, err := s.Xattr(name, value)
			require.NoError(t, err, name)
			assert.True(t, keep, name)
			assert.Same(t, &value[0], &out[0], name)
			out, keep, err = s.Xattr(name, nil)
			require.NoError(t, err, name)
			assert.True(t, keep, "%s without a value", name)
			assert.Empty(t, out)
		}
		assert.False(t, idshift.IsOverlayXattr(name), name)
	}
}

func TestXattrDropped(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"trusted.overlay.opaque", "trusted.overlay.metacopy", "trusted.overlay.redirect", "trusted.overlay.origin",
		"trusted.overlay.whiteouts", "trusted.overlay.overlay",
	} {
		out, keep, err := shift(t, auto, idshift.Overflow).Xattr(name, []byte("y"))
		require.NoError(t, err, name)
		assert.False(t, keep, name)
		assert.Nil(t, out, name)
		assert.True(t, idshift.IsOverlayXattr(name), name)
	}
}

func TestXattrACL(t *testing.T) {
	t.Parallel()
	twoUnmapped := func(a, b uint32) []byte {
		return acl(aclEntry{userObj, 7, noID}, aclEntry{user, 7, a}, aclEntry{user, 0, b},
			aclEntry{groupObj, 5, noID}, aclEntry{mask, 7, noID}, aclEntry{other, 0, noID})
	}
	tests := []struct {
		name, mapping string
		policy        idshift.Unmapped
		back          bool
		in, out       []byte
		err           *idshift.UnmappedError
	}{
		{name: "named user and group", mapping: auto, in: namedACL(33, 42), out: namedACL(100033, 100042)},
		{name: "unmapped user", mapping: auto, in: namedACL(70000, 42), out: namedACL(65534, 100042)},
		{name: "unmapped group", mapping: auto, in: namedACL(33, 70000), out: namedACL(100033, 65534)},
		{name: "IDs that the kernel could not show", mapping: auto, in: namedACL(noID, noID), out: namedACL(65534, 65534)},
		{name: "two unmapped users", mapping: auto, in: twoUnmapped(80000, 70000), out: twoUnmapped(65534, 65534)},
		{
			name: "unmapped user refused", mapping: auto, policy: idshift.Refuse, in: namedACL(70000, 42),
			err: &idshift.UnmappedError{Kind: "acl user", ID: 70000, Err: idshift.ErrNotMapped},
		},
		{
			name: "unmapped group refused", mapping: auto, policy: idshift.Refuse, in: namedACL(33, 70000),
			err: &idshift.UnmappedError{Kind: "acl group", ID: 70000, Err: idshift.ErrNotMapped},
		},
		{
			name: "overflow ID is a container user", mapping: "0:1000:65536", in: namedACL(70000, 42),
			err: &idshift.UnmappedError{Kind: "acl user", ID: 70000, Err: idshift.ErrOverflowMapped},
		},
		{name: "back", mapping: auto, back: true, in: namedACL(100033, 100042), out: namedACL(33, 42)},
		{
			name: "back unmapped", mapping: auto, back: true, in: namedACL(100033, 42),
			err: &idshift.UnmappedError{Kind: "acl group", ID: 42, Err: idshift.ErrNotMappedBack},
		},
	}
	for _, tt := range tests {
		for _, attribute := range []string{idshift.ACLAccess, idshift.ACLDefault} {
			t.Run(tt.name+"/"+attribute, func(t *testing.T) {
				t.Parallel()
				s := shift(t, tt.mapping, tt.policy)
				if tt.back {
					s = s.Back()
				}
				out, keep, err := s.Xattr(attribute, tt.in)
				if tt.err != nil {
					var got *idshift.UnmappedError
					require.ErrorAs(t, err, &got)
					assert.Equal(t, tt.err, got)
					assert.False(t, keep)
					return
				}
				require.NoError(t, err)
				assert.True(t, keep)
				assert.Equal(t, tt.out, out)
			})
		}
	}
}
