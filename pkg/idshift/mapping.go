package idshift

import (
	"fmt"
	"slices"
)

// Mapping says which host ID a user and a group of a container have. Make one
// with NewMapping or ParseMapping, which validate and normalise; then two
// mappings that map the same IDs have equal fields. A Mapping is not changed
// after it was made and may be shared between goroutines.
type Mapping struct {
	UIDs Extents `json:"uids"`
	GIDs Extents `json:"gids"`
}

// NewMapping validates and normalises both sides. Neither may be empty. The
// errors are those of Extents.Normalize.
func NewMapping(uids, gids []Extent) (Mapping, error) {
	u, err := Extents(uids).Normalize()
	if err != nil {
		return Mapping{}, fmt.Errorf("check uid mapping: %w", err)
	}
	g, err := Extents(gids).Normalize()
	if err != nil {
		return Mapping{}, fmt.Errorf("check gid mapping: %w", err)
	}
	return Mapping{UIDs: u, GIDs: g}, nil
}

// ParseMapping reads both sides as ParseExtents does.
func ParseMapping(uids, gids string) (Mapping, error) {
	u, err := ParseExtents(uids)
	if err != nil {
		return Mapping{}, fmt.Errorf("parse uid mapping: %w", err)
	}
	g, err := ParseExtents(gids)
	if err != nil {
		return Mapping{}, fmt.Errorf("parse gid mapping: %w", err)
	}
	return Mapping{UIDs: u, GIDs: g}, nil
}

// Invert returns the mapping from host IDs to container IDs.
func (m Mapping) Invert() Mapping {
	return Mapping{UIDs: m.UIDs.Invert(), GIDs: m.GIDs.Invert()}
}

// IsIdentity says whether the mapping is not empty and every ID that it maps
// has the same value on both sides. It says nothing about the IDs that it does
// not map: "0:0:65536" is an identity in which 70000 has no host ID.
func (m Mapping) IsIdentity() bool {
	return !m.IsZero() && m.UIDs.identity() && m.GIDs.identity()
}

// IsZero says whether the mapping maps nothing, as the zero value does.
func (m Mapping) IsZero() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// Equal says whether both map the same IDs in the same way, however they are
// spelt.
func (m Mapping) Equal(other Mapping) bool {
	a, okA := m.normalized()
	b, okB := other.normalized()
	return okA == okB && slices.Equal(a.UIDs, b.UIDs) && slices.Equal(a.GIDs, b.GIDs)
}

// normalized returns the normalised form, a side without extents staying empty.
// ok is false, and the result the mapping as it is, if a side is invalid: that
// happens only to values made by hand.
func (m Mapping) normalized() (out Mapping, ok bool) {
	out = m
	for _, side := range []*Extents{&out.UIDs, &out.GIDs} {
		if len(*side) == 0 {
			continue
		}
		n, err := side.Normalize()
		if err != nil {
			return m, false
		}
		*side = n
	}
	return out, true
}

// ToHost returns the host IDs of an owner inside the container. ok is false if
// either has none. It allocates nothing.
func (m Mapping) ToHost(uid, gid uint32) (hostUID, hostGID uint32, ok bool) {
	hostUID, okU := m.UIDs.ToHost(uid)
	hostGID, okG := m.GIDs.ToHost(gid)
	return hostUID, hostGID, okU && okG
}

// ToContainer returns the IDs inside the container of an owner on the host. ok
// is false if either has none. It allocates nothing.
func (m Mapping) ToContainer(uid, gid uint32) (containerUID, containerGID uint32, ok bool) {
	containerUID, okU := m.UIDs.ToContainer(uid)
	containerGID, okG := m.GIDs.ToContainer(gid)
	return containerUID, containerGID, okU && okG
}

// String is both sides as ParseExtents reads them:
// "uids=0:100000:65536 gids=0:100000:65536".
func (m Mapping) String() string {
	return "uids=" + m.UIDs.String() + " gids=" + m.GIDs.String()
}
