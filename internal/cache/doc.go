// Package cache keeps shifted lowers on disk: one entry for each chain of
// layers, mapping and engine, built aside, published whole, trimmed. It knows
// no engine and no storage library; what an entry holds is the caller's
// business.
//
// # Vocabulary
//
// A key names what an entry holds; whoever computes it must put everything in
// it that changes the result (layers, normalised mapping, engine, format
// version). A layer groups the entries whose chain it is the uppermost layer
// of, so that all of them can go when the layer goes. A user is a name,
// usually the ID of a container's layer, that stays registered with an entry
// from Acquire until Release: through mounts, stops and reboots. An entry that
// has a living user is not trimmed. Durable says that the entry reached the
// disk and can be believed after a crash. Disposable entries are made again in
// no time and go first. Entries of one kin are such that one can be made out of
// the other for less than a new one costs: recycled.
//
// # Layout
//
// Below the cache's folder, which is made at the first build (mode 0700, no
// default ACL):
//
//	<layer>/<key>/data/         what Builder.Build filled
//	<layer>/<key>/meta.json     version, boot ID, time of the build, kin, the builder's own record
//	<layer>/<key>/users/<user>  an empty file for each registered user
//	<layer>/<key>/used          empty; its modification time is the last use, to the minute
//	<layer>/<key>/size          allocated bytes and inodes, once somebody asked
//	<layer>/<key>/durable       empty; there when syncfs(2) followed the build
//	tmp/<random>/begun.json     what is being built there, if another process could go on with it
//	tmp/<random>/               a build or recycling under way, or something that is being deleted
//	tmp/<random>.lock           held by the living owner of tmp/<random>
//	locks/<key>.lock            held by the one builder of a key, or who takes its entry to recycle it
//	locks/slot-<n>              held by a running build, to bound their number
//	locks/doubt                 the boot ID; its modification time is when the disk last failed
//
// # What is promised
//
// Nothing is ever half there. A build happens in tmp/ and appears by
// rename(2); a removal is a rename(2) into tmp/ before the first file is
// deleted. Whoever dies leaves something in tmp/ whose lock nobody holds: the
// next builder and the next Trim delete it, but for a build that the next builder
// of the same entry can go on with (begun.json says what it is), so that builds
// which are killed again and again come to their end. Locks are flock(2) locks, which
// the kernel releases with their holder.
//
// An entry is used at once after its build, without fsync(2): as long as the
// machine runs, what was written can be read. After a crash that is not so
// (rename may be on the disk without the files), therefore an entry that was
// built under another boot ID and lacks the durable mark is built anew.
// MarkDurable sets the mark, when the caller has time for it. If the disk fails
// then, no entry that was built before gets the mark any more: the kernel tells
// of a lost write once, and would not the next time. An entry that is
// recycled loses the mark, on the disk too, before the first file is changed;
// what is made out of it is a new entry without one. A file system that loses
// writes while the machine keeps running (a disk pulled out, a forced unmount)
// is not noticed.
//
// All methods of Cache may be called by any number of goroutines and
// processes at the same time. Acquire registers its user under a shared lock
// of the entry's folder, Trim decides and removes under an exclusive one, and
// both look again whether the folder is still the one at the path once they
// hold the lock: an entry that Acquire returned stays until its user is
// released or no longer alive. Recycling takes an entry as Trim does, but asks
// nobody whether users are alive: one that is registered is enough to keep the
// entry. Only the data is used again; the folder of the entry itself goes, with
// whatever somebody may be writing there about the old data. StageLayerRemoval
// does not ask users; the caller knows that the image is gone.
//
// A mount that outlives the last user of its entry, because some other mount
// namespace has a copy of it, shows files that vanish once the entry is trimmed,
// and owners that change once it is recycled.
//
// A future change of the layout must come with keys of its own: an entry
// whose version is not known here is replaced even if it has users.
//
// # When not to use
//
// For something that costs less to make than to look up (a hit is about a
// dozen system calls, without a write to disk). For things that must survive a
// crash without being made again. For data that is not derived: everything in
// here may vanish between two calls unless a user is registered. On file
// systems without flock(2) or atomic rename(2).
package cache
