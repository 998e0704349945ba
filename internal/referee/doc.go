// Package referee compares two directory trees the way a program inside a
// container sees them. It decides whether a shifted mount is right, and so it
// shares no code with what it judges: it reads both trees through plain system
// calls, below nothing but their roots, and knows only the arithmetic of
// pkg/idshift, which [Tree.Shift] applies to a tree that has been read.
//
// For every path it compares: type; permission bits with setuid, setgid and
// sticky; owner; size of regular files; modification time in nanoseconds;
// target of symbolic links; device number; the set of paths that are hard
// links of one inode, and the number of links; every extended attribute with
// its value; and, on demand, the content.
//
// Not compared, because two correct trees may differ in it: size and number
// of links of directories (they belong to the file system), inode and device
// numbers, access, change and birth times, allocated blocks, and the
// modification time of the root (the root of a container's mount is its
// upper's own folder, made when the container was made).
//
// # When not to use it
//
// Both trees are held in memory, about 400 bytes a path, and must not change
// during the scan. For the difference between a container and its image use
// the storage library's Changes.
package referee
