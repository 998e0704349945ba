package worstcase

import (
	"encoding/binary"
	"slices"
)

// Names of attributes.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"
)

// entry is one line of a POSIX ACL that names somebody.
type entry struct {
	perm uint16
	id   uint32
}

// acl is the value of a POSIX ACL (include/uapi/linux/posix_acl_xattr.h). A
// mask that is negative is left out, which the kernel allows only where nobody
// is named.
func acl(users, groups []entry, mask int) string {
	const none = ^uint32(0)
	b := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag uint16, e entry) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	named := func(tag uint16, list []entry) {
		for _, e := range slices.SortedFunc(slices.Values(list), func(a, b entry) int { return int(int64(a.id) - int64(b.id)) }) {
			add(tag, e)
		}
	}
	add(0x01, entry{7, none})
	named(0x02, users)
	add(0x04, entry{5, none})
	named(0x08, groups)
	if mask >= 0 {
		add(0x10, entry{uint16(mask), none})
	}
	add(0x20, entry{4, none})
	return string(b)
}

// capV2 and capV3 are values of file capabilities (capabilities(7), "File
// capability extended attribute versioning"), the latter for the user
// namespace whose root user is root.
func capV2(permitted, inheritable uint64) string {
	return words(0x02000001, uint32(permitted), uint32(inheritable), uint32(permitted>>32), uint32(inheritable>>32))
}

func capV3(permitted uint64, root uint32) string {
	return words(0x03000001, uint32(permitted), 0, uint32(permitted>>32), 0, root)
}

func words(list ...uint32) string {
	var b []byte
	for _, w := range list {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return string(b)
}
