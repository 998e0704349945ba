package idshift

import (
	"fmt"
	"strconv"
)

// OverflowID is the ID that the kernel shows for an ID without a mapping
// (/proc/sys/kernel/overflowuid, user_namespaces(7)). It is what an idmapped
// mount shows, and what Overflow stores.
const OverflowID = 65534

// Unmapped is the policy for IDs that the mapping does not map.
type Unmapped int

const (
	// Overflow gives unmapped owners and ACL entries to OverflowID and drops
	// file capabilities whose root user is unmapped, as the kernel's idmapped
	// mounts do. It is still an error if the mapping gives OverflowID to a
	// container user, who would own the file then.
	Overflow Unmapped = iota
	// Refuse makes each unmapped ID an *UnmappedError.
	Refuse
)

// ParseUnmapped reads a policy, "overflow" or "refuse".
func ParseUnmapped(text string) (Unmapped, error) {
	for _, u := range []Unmapped{Overflow, Refuse} {
		if text == u.String() {
			return u, nil
		}
	}
	return 0, fmt.Errorf("parse unmapped policy: %q is neither %q nor %q", text, Overflow, Refuse)
}

// String is the policy as ParseUnmapped reads it.
func (u Unmapped) String() string {
	switch u {
	case Overflow:
		return "overflow"
	case Refuse:
		return "refuse"
	default:
		return "Unmapped(" + strconv.Itoa(int(u)) + ")"
	}
}

// Shift translates the metadata of one inode at a time from the container's IDs
// to the host's, or back. It is immutable and safe for concurrent use. Make one
// with NewShift or NewUnshift.
type Shift struct {
	policy Unmapped
	back   bool
	// uids and gids are normalised and lead from the IDs that come in to the
	// IDs that go out; the others are their inverse.
	uids, gids           Extents
	backUIDs, backGIDs   Extents
	overflowU, overflowG bool // OverflowID is an outgoing ID of the mapping
}

// NewShift returns the shift from container IDs to host IDs. It fails if the
// mapping is not valid (see NewMapping) or the policy unknown.
func NewShift(m Mapping, policy Unmapped) (*Shift, error) {
	if policy != Overflow && policy != Refuse {
		return nil, fmt.Errorf("make shift: unknown policy for unmapped IDs %s", policy)
	}
	m, err := NewMapping(m.UIDs, m.GIDs)
	if err != nil {
		return nil, fmt.Errorf("make shift: %w", err)
	}
	s := &Shift{
		policy: policy,
		uids:   m.UIDs, gids: m.GIDs,
		backUIDs: m.UIDs.Invert(), backGIDs: m.GIDs.Invert(),
	}
	_, s.overflowU = s.backUIDs.ToHost(OverflowID)
	_, s.overflowG = s.backGIDs.ToHost(OverflowID)
	return s, nil
}

// NewUnshift returns the way back, from the host IDs that a container's upper
// holds to container IDs: what diff and commit need. An unmapped ID is always
// an error, because an image must not get an owner that was guessed. It fails
// as NewShift does.
func NewUnshift(m Mapping) (*Shift, error) {
	s, err := NewShift(m, Refuse)
	if err != nil {
		return nil, err
	}
	return s.Back(), nil
}

// Back returns the shift in the opposite direction: for a shift of NewShift
// what NewUnshift returns, and the original for one that goes back already.
func (s *Shift) Back() *Shift {
	b := &Shift{
		policy: s.policy,
		back:   !s.back,
		uids:   s.backUIDs, gids: s.backGIDs,
		backUIDs: s.uids, backGIDs: s.gids,
	}
	_, b.overflowU = b.backUIDs.ToHost(OverflowID)
	_, b.overflowG = b.backGIDs.ToHost(OverflowID)
	return b
}

// Mapping returns the mapping from container IDs to host IDs, whichever
// direction the shift has.
func (s *Shift) Mapping() Mapping {
	if s.back {
		return Mapping{UIDs: s.backUIDs, GIDs: s.backGIDs}
	}
	return Mapping{UIDs: s.uids, GIDs: s.gids}
}

// Owner translates the owner of an inode. The error is an *UnmappedError
// without a path; see AtPath. Owner allocates nothing unless it fails.
func (s *Shift) Owner(uid, gid uint32) (newUID, newGID uint32, err error) {
	if newUID, err = s.user("uid", uid); err != nil {
		return 0, 0, err
	}
	if newGID, err = s.group("gid", gid); err != nil {
		return 0, 0, err
	}
	return newUID, newGID, nil
}

func (s *Shift) user(kind string, id uint32) (uint32, error) {
	if to, ok := s.uids.ToHost(id); ok {
		return to, nil
	}
	return s.unmapped(kind, id, s.overflowU)
}

func (s *Shift) group(kind string, id uint32) (uint32, error) {
	if to, ok := s.gids.ToHost(id); ok {
		return to, nil
	}
	return s.unmapped(kind, id, s.overflowG)
}

// unmapped applies the policy to an ID that has no mapping.
func (s *Shift) unmapped(kind string, id uint32, overflowTaken bool) (uint32, error) {
	var reason error
	switch {
	case s.back:
		reason = ErrNotMappedBack
	case s.policy == Refuse:
		reason = ErrNotMapped
	case overflowTaken:
		reason = ErrOverflowMapped
	default:
		return OverflowID, nil
	}
	return 0, &UnmappedError{Kind: kind, ID: id, Err: reason}
}
