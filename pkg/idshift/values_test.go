package idshift_test

import (
	"encoding/binary"
)

const noID = 1<<32 - 1 // ACL_UNDEFINED_ID, (uid_t)-1

// aclEntry is an entry of a POSIX ACL: tag, permissions, ID.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

const (
	userObj  = 0x01
	user     = 0x02
	groupObj = 0x04
	group    = 0x08
	mask     = 0x10
	other    = 0x20
)

// acl encodes a POSIX ACL as getxattr(2) gives it.
func acl(entries ...aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// namedACL is a valid ACL that names one user and one group.
func namedACL(uid, gid uint32) []byte {
	return acl(aclEntry{userObj, 7, noID}, aclEntry{user, 6, uid}, aclEntry{groupObj, 5, noID},
		aclEntry{group, 4, gid}, aclEntry{mask, 7, noID}, aclEntry{other, 0, noID})
}

const capNetRaw = 1 << 13

func words(w ...uint32) []byte {
	var b []byte
	for _, x := range w {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

func capV1() []byte { return words(0x01000001, capNetRaw, 5) }
func capV2() []byte { return words(0x02000001, capNetRaw, 5, 6, 7) }
func capV3(rootID uint32) []byte {
	return words(0x03000001, capNetRaw, 5, 6, 7, rootID)
}
