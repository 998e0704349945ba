package idshift

import (
	"errors"
	"fmt"
	"strings"
)

// Names of the extended attributes that hold IDs.
const (
	// ACLAccess is the attribute of a POSIX access ACL (acl(5)).
	ACLAccess = "system.posix_acl_access"
	// ACLDefault is the attribute of a directory's POSIX default ACL (acl(5)).
	ACLDefault = "system.posix_acl_default"
	// Capability is the attribute of file capabilities (capabilities(7)).
	Capability = "security.capability"

	// The names under which XFS stores, and lists besides, the ACLs above: the
	// same IDs once more, in a form that the kernel does not translate for
	// idmapped mounts either (fs/xfs/libxfs/xfs_format.h).
	xfsACLAccess  = "trusted.SGI_ACL_FILE"
	xfsACLDefault = "trusted.SGI_ACL_DEFAULT"
)

// Xattr applies the rule for one extended attribute of an inode. If keep is
// false, the target does not get the attribute. The value that was passed is
// not changed; out is that very value where nothing is to be translated, and
// then nothing is allocated.
//
//   - POSIX ACLs: users and groups are translated (ShiftACL).
//   - File capabilities: the root user is translated (ShiftCapability). Under
//     Overflow a capability whose root user is unmapped is dropped: the kernel
//     shows no value for it either, and it is void in this container.
//   - trusted.overlay.* are overlay's own notes: Walk interprets them, and a
//     copy would make the kernel do so a second time (overlayfs.rst, sections
//     "Whiteouts and opaque directories" and "Metadata only copy up").
//     Dropped. The same names below user. mean something to an overlay with
//     option userxattr only, whose notes Walk takes out itself; for others
//     they are attributes as any, such as those of a container storage that
//     is part of an image.
//   - trusted.overlay.overlay.* is the escaped form that stands for an
//     attribute of a nested overlay (Linux 6.8, overlayfs.rst, section
//     "Nesting overlayfs mounts"). The target is read through an overlay mount
//     as the source is, which takes one level of escapes off: kept as it is,
//     escaped.
//   - trusted.SGI_ACL_FILE and trusted.SGI_ACL_DEFAULT are how XFS stores the
//     ACLs, which it lists by their own names, too. A copy would undo the
//     shift of those. Dropped.
//   - Everything else, security.selinux and security.ima among it, is kept
//     byte for byte.
//
// An ID that the policy does not allow is an *UnmappedError without a path (see
// AtPath); a malformed ACL or capability is an error that wraps ErrBadACL or
// ErrBadCapability and names the attribute.
func (s *Shift) Xattr(name string, value []byte) (out []byte, keep bool, err error) {
	switch {
	case name == ACLAccess || name == ACLDefault:
		out, err = s.acl(value)
	case name == Capability:
		out, keep, err = s.capability(value)
		if err == nil {
			return out, keep, nil
		}
	case IsOverlayXattr(name), name == xfsACLAccess, name == xfsACLDefault:
		return nil, false, nil
	default:
		return value, true, nil
	}
	if err == nil {
		return out, true, nil
	}
	if u, ok := errors.AsType[*UnmappedError](err); ok {
		return nil, false, u
	}
	return nil, false, fmt.Errorf("shift xattr %s: %w", name, err)
}

// IsOverlayXattr says whether an attribute is one that an overlay of root
// interprets. The escaped form of nested overlays, trusted.overlay.overlay.*,
// is not.
func IsOverlayXattr(name string) bool {
	rest, ok := strings.CutPrefix(name, string(TrustedOverlay))
	return ok && !strings.HasPrefix(rest, "overlay.")
}

func (s *Shift) acl(value []byte) ([]byte, error) {
	return ShiftACL(value,
		func(id uint32) (uint32, error) { return s.user("acl user", id) },
		func(id uint32) (uint32, error) { return s.group("acl group", id) })
}

// capability translates a file capability; keep is false where it is dropped.
func (s *Shift) capability(value []byte) (out []byte, keep bool, err error) {
	out, err = ShiftCapability(value, s.rootID)
	if errors.Is(err, errDropCapability) {
		return nil, false, nil
	}
	return out, err == nil, err
}

// errDropCapability leaves ShiftCapability when the policy is to drop.
var errDropCapability = errors.New("capability of an unmapped root user")

// rootID translates the root user of a file capability. On the way back, a
// capability of the host's own root (version 2) in the upper of a container
// that does not contain that user stays what it is: a capability without a
// root user, which in an image means "root, wherever this runs". Such files
// come from the host, by podman cp or a build's COPY.
func (s *Shift) rootID(id uint32) (uint32, error) {
	if to, ok := s.uids.ToHost(id); ok {
		return to, nil
	}
	switch {
	case s.back && id == 0:
		return 0, nil
	case s.back:
		return 0, &UnmappedError{Kind: "capability rootid", ID: id, Err: ErrNotMappedBack}
	case s.policy == Refuse:
		return 0, &UnmappedError{Kind: "capability rootid", ID: id, Err: ErrNotMapped}
	default:
		return 0, errDropCapability
	}
}
