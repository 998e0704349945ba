package idshift

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The value of a POSIX ACL attribute, as getxattr(2) gives it and setxattr(2)
// takes it (include/uapi/linux/posix_acl_xattr.h): a 32-bit version, then
// entries of a 16-bit tag, 16-bit permissions and a 32-bit ID; little-endian.
const (
	aclVersion    = 2
	aclHeaderSize = 4
	aclEntrySize  = 8
	aclIDOffset   = 4

	// Tags of include/uapi/linux/posix_acl.h.
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclPermissions = 0o7
)

// ShiftACL translates the users and groups that a POSIX ACL names. user and
// group give the new ID; their errors are returned as they are. Entries for the
// owner, the owning group, the mask and others hold no ID and stay as they are.
//
// The order of entries is kept. The kernel wants them ordered by tag only, not
// by ID (posix_acl_valid in fs/posix_acl.c), and two entries of one ID, as
// OverflowID may give, are allowed.
//
// The value itself is returned if no ID changes, a new one otherwise; the input
// is never written to. A value that the kernel would not accept, in version,
// length, tags, their order or permissions, is an ErrBadACL. A header without
// entries is what setxattr(2) takes to remove an ACL; it is passed through.
func ShiftACL(value []byte, user, group func(id uint32) (uint32, error)) ([]byte, error) {
	if err := checkACL(value); err != nil {
		return nil, err
	}
	out := value
	for at := aclHeaderSize; at < len(value); at += aclEntrySize {
		translate := user
		switch binary.LittleEndian.Uint16(value[at:]) {
		case aclUser:
		case aclGroup:
			translate = group
		default:
			continue
		}
		from := binary.LittleEndian.Uint32(value[at+aclIDOffset:])
		to, err := translate(from)
		if err != nil {
			return nil, err
		}
		if to == from {
			continue
		}
		if &out[0] == &value[0] {
			out = bytes.Clone(value)
		}
		binary.LittleEndian.PutUint32(out[at+aclIDOffset:], to)
	}
	return out, nil
}

// checkACL accepts what posix_acl_valid (fs/posix_acl.c) accepts, and the bare
// header.
func checkACL(value []byte) error {
	if len(value) < aclHeaderSize {
		return fmt.Errorf("%w: %d bytes, the header alone has %d", ErrBadACL, len(value), aclHeaderSize)
	}
	if v := binary.LittleEndian.Uint32(value); v != aclVersion {
		return fmt.Errorf("%w: version %d instead of %d", ErrBadACL, v, aclVersion)
	}
	entries := value[aclHeaderSize:]
	if len(entries)%aclEntrySize != 0 {
		return fmt.Errorf("%w: %d bytes are not a whole number of entries", ErrBadACL, len(value))
	}
	if len(entries) == 0 {
		return nil
	}
	var seen, last uint16
	for n := 0; len(entries) > 0; n, entries = n+1, entries[aclEntrySize:] {
		tag := binary.LittleEndian.Uint16(entries)
		perm := binary.LittleEndian.Uint16(entries[2:])
		switch tag {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			return fmt.Errorf("%w: entry %d has the unknown tag %#x", ErrBadACL, n, tag)
		}
		if perm&^aclPermissions != 0 {
			return fmt.Errorf("%w: entry %d has the permissions %#o", ErrBadACL, n, perm)
		}
		if tag < last || tag == last && tag != aclUser && tag != aclGroup {
			return fmt.Errorf("%w: entry %d with tag %#x is out of order", ErrBadACL, n, tag)
		}
		last = tag
		seen |= tag
	}
	const needed = aclUserObj | aclGroupObj | aclOther
	if seen&needed != needed {
		return fmt.Errorf("%w: no entry for the owner, the owning group or others", ErrBadACL)
	}
	if seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0 {
		return fmt.Errorf("%w: names users or groups without a mask", ErrBadACL)
	}
	return nil
}
