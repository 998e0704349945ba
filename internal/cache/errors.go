package cache

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reason says why an entry could not be used.
type Reason string

// The reasons of a miss.
const (
	// Absent: there is no such entry.
	Absent Reason = "absent"
	// OtherBoot: the entry was built before the machine last started, and it
	// is not known to have reached the disk.
	OtherBoot Reason = "built under another boot ID, not durable"
	// UnknownVersion: the entry was written by another version of the cache.
	UnknownVersion Reason = "unknown version"
	// Damaged: the entry lacks parts, or has others in their place, or its
	// meta.json cannot be read.
	Damaged Reason = "damaged"
	// Copied: the entry's data is not the folder that was built. Whoever copied
	// it, or restored it from a backup, may have lost attributes of its files.
	Copied Reason = "a copy of what was built"
)

// ErrDoubtful is the error of MarkDurable for an entry that may not have reached
// the disk, and never will.
var ErrDoubtful = errors.New("the disk has failed since it was built (see the kernel's log), so it is made anew after the next start of the machine")

// MissError is a lookup that found nothing usable. Acquire returns it when
// there is no Build function, and MarkDurable when there is nothing to mark.
type MissError struct {
	Ref    Ref
	Reason Reason
	// Err is the cause, if there is one besides the reason.
	Err error
}

// Error implements error.
func (e *MissError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("cache entry %s: %s: %v", e.Ref, e.Reason, e.Err)
	}
	return fmt.Sprintf("cache entry %s: %s", e.Ref, e.Reason)
}

// Unwrap returns the cause.
func (e *MissError) Unwrap() error { return e.Err }

// ErrAbandoned is, or is in, the cause of a context (context.Cause) whose end
// lets Acquire return at once: what a build has made so far is left to the next
// one, or to Sweep.
var ErrAbandoned = errors.New("abandoned")

// absent reports whether an error says that a path does not exist.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

// broken reports whether an error says that something else is at a path than
// the cache puts there, or that the file system has lost what was there.
func broken(err error) bool {
	for _, is := range []error{
		unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENXIO, unix.EFBIG, // another kind of file
		unix.EIO, unix.EUCLEAN, unix.EBADMSG, unix.ENODATA, // ext4, xfs and btrfs about damaged metadata and unreadable blocks
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// noSpace reports whether an error says that no file can be made for lack of
// blocks, inodes or quota.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
