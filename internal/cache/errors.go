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
	// Damaged: the entry lacks parts or its meta.json cannot be read.
	Damaged Reason = "damaged"
)

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

// absent reports whether an error says that a path does not exist.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

// noSpace reports whether an error says that no file can be made for lack of
// blocks, inodes or quota.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
