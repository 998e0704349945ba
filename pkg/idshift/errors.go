package idshift

import (
	"errors"
	"fmt"
)

// Sentinels of this package, for errors.Is. The error that wraps one names the
// extent, the attribute or the ID that it is about.
var (
	// ErrNoExtents means that a side of a mapping maps nothing.
	ErrNoExtents = errors.New("mapping has no extents")
	// ErrSyntax means that a text is not a mapping.
	ErrSyntax = errors.New("malformed mapping text")
	// ErrExtentSize means that an extent maps zero IDs.
	ErrExtentSize = errors.New("size is zero")
	// ErrExtentRange means that an extent reaches an ID that does not exist:
	// the last valid ID is 4294967294, because 4294967295 is (uid_t)-1.
	ErrExtentRange = errors.New("extent goes beyond the last valid ID")
	// ErrOverlap means that two extents map one ID, on either side.
	ErrOverlap = errors.New("extents overlap")
	// ErrTooManyExtents means that a side has more than MaxExtents extents.
	ErrTooManyExtents = errors.New("too many extents")
	// ErrBadACL means that a value is not a POSIX ACL as getxattr(2) gives it.
	ErrBadACL = errors.New("malformed POSIX ACL")
	// ErrBadCapability means that a value is not a file capability.
	ErrBadCapability = errors.New("malformed file capability")
	// ErrNotMapped means that a container ID has no host ID in the mapping and
	// that the policy is Refuse.
	ErrNotMapped = errors.New("container ID is not mapped")
	// ErrNotMappedBack means that a host ID belongs to no container ID of the
	// mapping. Writing back never guesses, whatever the policy.
	ErrNotMappedBack = errors.New("host ID is not mapped")
	// ErrOverflowMapped means that an unmapped ID cannot be shown as
	// OverflowID, because the mapping gives OverflowID to a container user.
	ErrOverflowMapped = errors.New("overflow ID belongs to the mapping")
)

// extentError has a message of its own and one of the sentinels as its kind.
type extentError struct {
	msg  string
	kind error
}

func (e *extentError) Error() string { return e.msg }
func (e *extentError) Unwrap() error { return e.kind }

func extentErrorf(kind error, format string, args ...any) error {
	return &extentError{msg: fmt.Sprintf(format, args...), kind: kind}
}

// UnmappedError says which ID of which file the mapping does not map.
type UnmappedError struct {
	// Path is the file's path within the chain. The rules of this package know
	// only one inode at a time and leave it empty; AtPath fills it.
	Path string
	// Kind is the place of the ID: "uid", "gid", "acl user", "acl group" or
	// "capability rootid".
	Kind string
	// ID is the unmapped ID: a container ID, or a host ID when the shift goes
	// back.
	ID uint32
	// Err is the reason, for errors.Is: ErrNotMapped, ErrNotMappedBack or
	// ErrOverflowMapped.
	Err error
}

// Error names the path (where known), the ID, the reason and the remedy.
func (e *UnmappedError) Error() string {
	where := fmt.Sprintf("%s %d", e.Kind, e.ID)
	if e.Path != "" {
		where = fmt.Sprintf("%q: %s", e.Path, where)
	}
	switch {
	case errors.Is(e.Err, ErrNotMappedBack):
		return where + " is not a host ID of the mapping, so it has no ID inside the container; give the file an owner of the container"
	case errors.Is(e.Err, ErrOverflowMapped):
		return fmt.Sprintf("%s has no host ID in the mapping and cannot be shown as the overflow ID %d, which the mapping gives to a container user; extend the mapping to cover %d",
			where, OverflowID, e.ID)
	default:
		return fmt.Sprintf("%s has no host ID in the mapping; extend the mapping to cover it or allow the overflow ID (unmapped = %q)",
			where, Overflow)
	}
}

// Unwrap returns the reason.
func (e *UnmappedError) Unwrap() error { return e.Err }

// AtPath adds the path of the file to an error of Shift's methods: an
// *UnmappedError without a path is copied and gets one, every other error is
// wrapped. A nil error stays nil.
func AtPath(err error, path string) error {
	if err == nil {
		return nil
	}
	if u, ok := errors.AsType[*UnmappedError](err); ok && u.Path == "" {
		c := *u
		c.Path = path
		return &c
	}
	return fmt.Errorf("shift %q: %w", path, err)
}
