// Package idshift says what it means to shift the file metadata of a container
// image from the IDs inside a container to the IDs of the host, and back.
//
// A container in a user namespace (user_namespaces(7)) has IDs of its own: its
// root is, say, user 100000 of the host. A Mapping holds which is which. A
// Shift applies it to one inode at a time, to everything that holds an ID: the
// owner, POSIX ACLs, and the root user of file capabilities. All else stays
// byte for byte what it was. The rules are those by which the kernel shows a
// file through an idmapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP); the
// tests compare the two.
//
// # A worked example
//
// Podman gave a container the mapping 0:100000:65536, for users and groups. A
// file of the image belongs to 0:42, its ACL names user 33, and it has a file
// capability:
//
//	m, err := idshift.ParseMapping("0:100000:65536", "0:100000:65536")
//	shift, err := idshift.NewShift(m, idshift.Overflow)
//	uid, gid, err := shift.Owner(0, 42)
//	acl, keep, err := shift.Xattr(idshift.ACLAccess, value)
//	cap, keep, err := shift.Xattr(idshift.Capability, value)
//
// On the host the file belongs to 100000:100042, the ACL names user 100033, and
// the capability, which had no root user (version 2), has the root user 100000
// (version 3): it counts in this container and nowhere else.
//
// When the container is committed, shift.Back(), or NewUnshift, restores what
// the image had: 0:42, user 33 and version 2.
//
// A user of the image beyond the mapping, say 70000, shows as OverflowID under
// the policy Overflow, as it would on an idmapped mount, and is an
// *UnmappedError under Refuse. On the way back it is always an error.
//
// m.Key() names the mapping, for caches: all spellings of one mapping, in
// whatever order or division of extents, have the same key.
//
// # Where it differs from an idmapped mount
//
// An idmapped mount is a view; a shifted file is stored, so what cannot be
// stored looks different. An ACL entry of an unmapped user shows as 4294967295
// through an idmapped mount and is stored as OverflowID, because the kernel
// refuses to store the former. A file capability whose root user is unmapped is
// listed but unreadable (EOVERFLOW) through an idmapped mount and absent here.
// Neither way is there a user of the container to whom it grants anything.
//
// # When not to use it
//
//   - Where the kernel can do an idmapped mount of the files, that is cheaper
//     and needs no copy of anything.
//   - It does not resolve names, subordinate ranges of subuid(5), or podman's
//     relative mappings; it starts where those have become numbers.
//   - It does not translate the owners in an archive's headers; there Mapping
//     alone is enough.
//   - Signatures over metadata (security.evm) cover the owner. They are kept,
//     hence no longer valid, as behind an idmapped mount.
package idshift
