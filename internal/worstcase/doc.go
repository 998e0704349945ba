// Package worstcase writes the worst image that we can think of: five layers
// with everything that a change of owners or the merging of layers could get
// wrong, and layers that mean harm. It is the same in every run, for tests and
// for `plugin-test worst-case`.
//
// # How it is written
//
// Straight into the folders of layers, the "diff" folders of overlay's layers:
// a whiteout is a character device 0/0, an opaque directory has
// trusted.overlay.opaque=y. There is no archive in between, because an archive
// cannot hold all of it: no format has immutable files, one inode in two
// layers, or overlay's own attributes without an unpacker that takes them for
// its own; and tar has no holes of a terabyte, no whiteouts with attributes and
// no paths beyond what unpackers can open. What the driver is given is a folder
// in any case, so nothing that is tested here is left out by that.
//
// Everything goes through open directories, one component at a time, so that a
// path may have any length and any bytes. Each path has a modification time of
// its own, made from its name, and is read back after it was written.
//
// # What a file system cannot hold
//
// Each feature is tried in a scratch folder beside the layer before it is
// written. What cannot be written, or is not there afterwards as it was
// written, is left out by name, and the caller is told (LeftOut): times before
// 1901 on ext4, symbolic links of 4,095 bytes on XFS, and so on. Nothing is
// left out silently.
//
// # When not to use it
//
// It needs root and some 55,000 inodes, and makes devices and setuid programs:
// write it where others cannot get at it. Immutable files cannot be deleted
// with rm; Remove can.
package worstcase
