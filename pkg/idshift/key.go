package idshift

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// keyVersion starts the hashed text. It changes when the encoding behind it
// does.
const keyVersion = "shiftoverlay mapping 1\n"

// Key identifies what a mapping does, not how it is spelt: two mappings have
// the same key if and only if they are Equal.
type Key [sha256.Size]byte

// String is the key in hexadecimal, 64 digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// Key returns the SHA-256 of a version tag and the normalised mapping: for the
// users, then the groups, the number of extents and each extent's container
// ID, host ID and size as 32-bit big-endian numbers. The value is stable
// across processes, machines and releases. An invalid mapping made by hand has
// a key too, that of no valid mapping.
func (m Mapping) Key() Key {
	n, ok := m.normalized()
	b := make([]byte, 0, len(keyVersion)+9+12*(len(n.UIDs)+len(n.GIDs)))
	b = append(b, keyVersion...)
	if !ok {
		b = append(b, "invalid\n"...)
	}
	for _, side := range []Extents{n.UIDs, n.GIDs} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(side)))
		for _, x := range side {
			b = binary.BigEndian.AppendUint32(b, x.ContainerID)
			b = binary.BigEndian.AppendUint32(b, x.HostID)
			b = binary.BigEndian.AppendUint32(b, x.Size)
		}
	}
	return sha256.Sum256(b)
}
