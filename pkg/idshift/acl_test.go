package idshift_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

func add(n uint32) func(uint32) (uint32, error) {
	return func(id uint32) (uint32, error) { return id + n, nil }
}

func TestShiftACL(t *testing.T) {
	t.Parallel()
	in := acl(aclEntry{userObj, 7, noID}, aclEntry{user, 7, 500}, aclEntry{user, 5, 33}, aclEntry{groupObj, 5, 0},
		aclEntry{group, 4, 33}, aclEntry{mask, 7, 1}, aclEntry{other, 0, 2})
	want := acl(aclEntry{userObj, 7, noID}, aclEntry{user, 7, 1500}, aclEntry{user, 5, 1033}, aclEntry{groupObj, 5, 0},
		aclEntry{group, 4, 2033}, aclEntry{mask, 7, 1}, aclEntry{other, 0, 2})
	before := bytes.Clone(in)
	got, err := idshift.ShiftACL(in, add(1000), add(2000))
	require.NoError(t, err)
	assert.Equal(t, want, got, "named users and groups only; order kept")
	assert.Equal(t, before, in, "the input is not changed")
}

func TestShiftACLReturnsTheSameValue(t *testing.T) {
	t.Parallel()
	for name, value := range map[string][]byte{
		"no names":    acl(aclEntry{userObj, 7, noID}, aclEntry{groupObj, 5, noID}, aclEntry{other, 0, noID}),
		"mask alone":  acl(aclEntry{userObj, 7, noID}, aclEntry{groupObj, 5, noID}, aclEntry{mask, 0, noID}, aclEntry{other, 0, noID}),
		"same IDs":    namedACL(1, 2),
		"header only": acl(),
	} {
		got, err := idshift.ShiftACL(value, add(0), add(0))
		require.NoError(t, err, name)
		assert.Same(t, &value[0], &got[0], name)
	}
}

func TestShiftACLPassesErrorsOn(t *testing.T) {
	t.Parallel()
	sentinel := errors.New("no")
	fail := func(uint32) (uint32, error) { return 0, sentinel }
	_, err := idshift.ShiftACL(namedACL(1, 2), fail, add(1))
	require.Equal(t, sentinel, err)
	_, err = idshift.ShiftACL(namedACL(1, 2), add(1), fail)
	require.Equal(t, sentinel, err)
}

// badACLs are values that the kernel does not accept either; see
// TestKernelRefusesWhatWeRefuse.
func badACLs() map[string][]byte {
	u, g, o := aclEntry{userObj, 7, noID}, aclEntry{groupObj, 5, noID}, aclEntry{other, 0, noID}
	return map[string][]byte{
		"0 bytes, the header alone has 4":                         {},
		"3 bytes, the header alone has 4":                         {2, 0, 0},
		"version 1 instead of 2":                                  append([]byte{1, 0, 0, 0}, acl(u, g, o)[4:]...),
		"27 bytes are not a whole number of entries":              acl(u, g, o)[:27],
		"29 bytes are not a whole number of entries":              append(acl(u, g, o), 0),
		"entry 1 has the unknown tag 0x3":                         acl(u, aclEntry{3, 0, 0}, g, o),
		"entry 3 has the unknown tag 0x40":                        acl(u, g, o, aclEntry{0x40, 0, 0}),
		"entry 0 has the permissions 010":                         acl(aclEntry{userObj, 8, noID}, g, o),
		"entry 1 with tag 0x1 is out of order":                    acl(u, u, g, o),
		"entry 2 with tag 0x2 is out of order":                    acl(u, g, aclEntry{user, 7, 1}, aclEntry{mask, 7, noID}, o),
		"entry 3 with tag 0x8 is out of order":                    acl(u, g, aclEntry{mask, 7, noID}, aclEntry{group, 7, 1}, o),
		"entry 3 with tag 0x20 is out of order":                   acl(u, g, o, o),
		"no entry for the owner, the owning group or others":      acl(u, g),
		"names users or groups without a mask":                    acl(u, aclEntry{user, 7, 1}, g, o),
		"malformed POSIX ACL: names users or groups without a ma": acl(u, g, aclEntry{group, 7, 1}, o),
	}
}

func TestShiftACLMalformed(t *testing.T) {
	t.Parallel()
	s := shift(t, auto, idshift.Overflow)
	for message, value := range badACLs() {
		_, err := idshift.ShiftACL(value, add(1), add(1))
		require.ErrorIs(t, err, idshift.ErrBadACL, message)
		require.ErrorContains(t, err, message)
		for _, name := range []string{idshift.ACLAccess, idshift.ACLDefault} {
			out, keep, err := s.Xattr(name, value)
			require.ErrorIs(t, err, idshift.ErrBadACL)
			require.ErrorContains(t, err, "shift xattr "+name+": malformed POSIX ACL: ")
			assert.Nil(t, out)
			assert.False(t, keep)
		}
	}
}

func FuzzACL(f *testing.F) {
	f.Add(acl())
	f.Add(namedACL(33, 42))
	f.Add(namedACL(70000, noID))
	for _, value := range badACLs() {
		f.Add(value)
	}
	s := shift(f, "0:100000:1000,1000:5:1,1001:101001:4294000000", idshift.Overflow)
	f.Fuzz(func(t *testing.T, value []byte) {
		before := bytes.Clone(value)
		out, keep, err := s.Xattr(idshift.ACLAccess, value)
		require.Equal(t, before, value, "the input is not changed")
		if err != nil {
			require.ErrorIs(t, err, idshift.ErrBadACL)
			require.Nil(t, out)
			return
		}
		require.True(t, keep)
		require.Len(t, out, len(value))
		back, keep, err := s.Back().Xattr(idshift.ACLAccess, out)
		if err != nil { // an ID that was not mapped
			require.ErrorIs(t, err, idshift.ErrNotMappedBack)
			return
		}
		require.True(t, keep)
		require.Equal(t, before, back)
	})
}
