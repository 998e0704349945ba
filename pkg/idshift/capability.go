package idshift

import (
	"encoding/binary"
	"fmt"
)

// The value of security.capability (include/uapi/linux/capability.h): a 32-bit
// revision with flags, then 32-bit words of permitted and inheritable
// capabilities, one pair in version 1 and two in the others, then, in version
// 3, the root user as a 32-bit ID; little-endian.
const (
	capFlagEffective = 0x000001
	capRevision1     = 0x01000000
	capRevision2     = 0x02000000
	capRevision3     = 0x03000000

	capSize1   = 12
	capSize2   = 20
	capSize3   = 24
	capRootAt  = 20
	capWordsAt = 4
)

// ShiftCapability translates the root user of a file capability: the user who
// must be root of the namespace in which the capability counts. root gives the
// new ID; its errors are returned as they are.
//
// Version 2 has no root user and stands for 0; version 3 stores one. The result
// is version 2 if the new root user is 0 and version 3 otherwise. That is how
// the kernel shows a capability through an idmapped mount and through a user
// namespace (cap_inode_getsecurity in security/commoncap.c), so a stored "3
// with 0" and "2" are the same thing, and going back restores what was there.
//
// Version 1 (before Linux 2.6.25) has 32 capabilities instead of 64. The kernel
// still honours it but neither sets nor shows it, so it cannot be copied; it
// becomes version 2 or 3 with the upper 32 capabilities off, as the kernel
// reads it.
//
// The value itself is returned if it does not change, a new one otherwise; the
// input is never written to. Every other revision, flag or length is an
// ErrBadCapability.
func ShiftCapability(value []byte, root func(id uint32) (uint32, error)) ([]byte, error) {
	magic, from, err := checkCapability(value)
	if err != nil {
		return nil, err
	}
	to, err := root(from)
	if err != nil {
		return nil, err
	}
	size, revision := capSize3, uint32(capRevision3)
	if to == 0 {
		size, revision = capSize2, capRevision2
	}
	if len(value) == size && to == from {
		return value, nil
	}
	out := make([]byte, size)
	binary.LittleEndian.PutUint32(out, revision|magic&capFlagEffective)
	copy(out[capWordsAt:capRootAt], value[capWordsAt:])
	if to != 0 {
		binary.LittleEndian.PutUint32(out[capRootAt:], to)
	}
	return out, nil
}

// checkCapability returns the first word of a capability and its root user.
func checkCapability(value []byte) (magic, root uint32, err error) {
	if len(value) < capWordsAt {
		return 0, 0, fmt.Errorf("%w: %d bytes", ErrBadCapability, len(value))
	}
	magic = binary.LittleEndian.Uint32(value)
	want := 0
	switch magic &^ capFlagEffective {
	case capRevision1:
		want = capSize1
	case capRevision2:
		want = capSize2
	case capRevision3:
		want = capSize3
	default:
		return 0, 0, fmt.Errorf("%w: revision and flags %#08x are unknown", ErrBadCapability, magic)
	}
	if len(value) != want {
		return 0, 0, fmt.Errorf("%w: %d bytes, revision %d has %d", ErrBadCapability, len(value), magic>>24, want)
	}
	if want == capSize3 {
		root = binary.LittleEndian.Uint32(value[capRootAt:])
	}
	return magic, root, nil
}
