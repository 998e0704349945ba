package worstcase

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// inodeFeatures are about what is in an inode itself, and its names.
func inodeFeatures() []Feature {
	return []Feature{
		{Name: "modes", What: "setuid, setgid and sticky in all combinations, with and without permissions", add: modes, certain: true},
		{Name: "owners", What: "owners 0, 65534, 65535, 65536, 2^31 and 2^32-2, on every type", add: owners, certain: true},
		{Name: "specials", What: "fifo, socket, devices with majors of 9 and minors of 18 bits, a block device 0/0", add: specials},
		{Name: "device-numbers", What: "devices with majors of 12 and minors of 20 bits", add: deviceNumbers},
		{Name: "hard-links", What: "hard links across directories, of every type, and with names that upper layers hide", add: hardLinks, certain: true},
		{Name: SharedInode, What: "one inode in two layers", add: sharedInode},
		{Name: "times-1969", What: "a nanosecond before 1970", add: times("1969", -1, 999999999)},
		{Name: "times-1901", What: "the first second of 32 bits", add: times("1901", -1<<31, 0)},
		{Name: "times-1600", What: "long before 1901", add: times("1600", -11644473600, 123456789)},
		{Name: "times-2038", What: "the first second that 32 bits cannot hold", add: times("2038", 1<<31, 999999999)},
		{Name: "times-2106", What: "the first second that 32 bits without a sign cannot hold", add: times("2106", 1<<32, 1)},
		{Name: "times-2400", What: "before the end of 34 bits", add: times("2400", 13569465600, 999999999)},
		{Name: "times-9999", What: "the last second that has four digits for the year", add: times("9999", 253402300799, 999999999)},
		{Name: Immutable, What: "files and a directory that are immutable, or append-only", add: immutables},
	}
}

// Features that callers leave out, each for a reason of its own.
const (
	// Immutable are files that cannot be deleted before that is undone.
	Immutable = "immutable"
	// SharedInode is one inode in the folders of two layers, as nobody makes
	// it who unpacks layers: the kernel shows its names as hard links.
	SharedInode = "shared-inode"
	// RootXattrs are attributes of the image's root folder. A container has a
	// root folder of its own, that of its upper, which shows in that place.
	RootXattrs = "root-xattrs"
	// LongPaths are paths of more than 4,096 bytes, all below LongPathsFolder.
	LongPaths       = "long-paths"
	LongPathsFolder = "long"
)

func modes(t *tree, _ limits) {
	l := t.on(0)
	for special := range uint32(8) {
		for _, permissions := range []uint32{0, 0o111, 0o644, 0o711, 0o755, 0o777} {
			m := special<<9 | permissions
			name := fmt.Sprintf("%05o", m)
			id := special*8 + permissions%7
			l.file("modes/file"+name, name, mode(m), owner(id, 1000+id))
			l.file("modes/empty"+name, "", mode(m), owner(id, 0))
			l.fifo("modes/fifo"+name, mode(m), owner(0, id))
			l.dir("modes/dir"+name, mode(m), owner(id, 1000+id))
			l.file("modes/dir"+name+"/inside", name, owner(1000+id, id))
		}
	}
	l.dir("modes/closed", mode(0), owner(1000, 1000))
	l.dir("modes/closed/closed", mode(0), owner(1001, 1001))
	l.file("modes/closed/closed/file", "behind two doors", mode(0), owner(1002, 1002))
	t.on(3).file("modes/closed/closed/upper", "from another layer", mode(0))
	t.on(3).dir("modes/closed/closed", mode(0), owner(1003, 1003))
	t.on(3).dir("modes/closed", mode(0), owner(1000, 1004))
}

// strangeIDs are those at which something begins or ends.
func strangeIDs() []uint32 {
	return []uint32{0, 1, 999, 1000, 65533, 65534, 65535, 65536, 1<<31 - 1, 1 << 31, 1<<32 - 2}
}

func owners(t *tree, _ limits) {
	l := t.on(0)
	for _, id := range strangeIDs() {
		p := fmt.Sprintf("owners/%d", id)
		// Where an owner has no ID, not even the machine's root may do what only
		// the owner may (capable_wrt_inode_uidgid in kernel/capability.c).
		l.dir(p, owner(id, id), mode(0o2755))
		l.file(p+"/user", "x", owner(id, 0), mode(0o4755))
		l.file(p+"/group", "x", owner(0, id), mode(0o2755))
		l.file(p+"/both", "x", owner(id, id), mode(0o6755), attr("user.owner", p))
		l.file(p+"/empty", "", owner(id, id))
		l.symlink(p+"/link", "both", owner(id, id))
		l.fifo(p+"/fifo", owner(id, id))
		l.socket(p+"/socket", owner(id, id))
		l.device(p+"/device", unix.S_IFCHR, 1, 3, owner(id, id))
	}
}

func specials(t *tree, _ limits) {
	l := t.on(0)
	l.fifo("specials/fifo", owner(7, 8), mode(0o620))
	l.socket("specials/socket", owner(9, 10), mode(0o700))
	for i, d := range [][2]uint32{{1, 3}, {0, 1}, {1, 0}, {5, 255}, {5, 256}, {8, 65536}, {7, 70000}, {259, 1<<18 - 1}, {1<<9 - 1, 1<<18 - 1}} {
		name := fmt.Sprintf("specials/%d-%d", d[0], d[1])
		l.device(name+"-char", unix.S_IFCHR, d[0], d[1], owner(uint32(i), 5), mode(0o620))
		l.device(name+"-block", unix.S_IFBLK, d[0], d[1], owner(0, uint32(i)), mode(0o4660))
	}
	// Not a whiteout: that is a character device.
	l.device("specials/0-0-block", unix.S_IFBLK, 0, 0, owner(3, 3))
}

// deviceNumbers are the largest that the kernel has (MINORBITS in
// linux/kdev_t.h).
func deviceNumbers(t *tree, _ limits) {
	t.on(0).device("specials/largest-char", unix.S_IFCHR, 1<<12-1, 1<<20-1, owner(1, 5))
	t.on(0).device("specials/largest-block", unix.S_IFBLK, 1<<12-1, 1<<20-1, owner(5, 1))
}

func hardLinks(t *tree, _ limits) {
	l := t.on(0)
	l.file("links/a", "shared", owner(1, 1), mode(0o6755), attr(capability, capV2(1<<10, 0)))
	l.file("links/empty", "", owner(2, 2), attr("user.x", "y"))
	l.file("links/closed", "foreign", owner(1000, 1000), mode(0))
	l.symlink("links/symlink", "target", owner(3, 3))
	l.device("links/char", unix.S_IFCHR, 1, 3, owner(4, 4))
	l.device("links/block", unix.S_IFBLK, 8, 70000, owner(4, 5))
	l.fifo("links/fifo", owner(5, 5))
	l.socket("links/socket", owner(6, 6))
	for i, name := range []string{"a", "empty", "closed", "symlink", "char", "block", "fifo", "socket"} {
		l.link("links/beside-"+name, "links/"+name)
		l.link(fmt.Sprintf("links/deep/%d/er/%s", i, name), "links/"+name)
		l.link("a-link-before-"+name, "links/"+name) // found before the name that was made first
	}
	for i := range 100 {
		l.link(fmt.Sprintf("links/many/%02d/%02d", i%10, i), "links/a")
	}
	// Across a layer boundary: three names of one inode, of which an upper
	// layer replaces one and another deletes one.
	l.file("links/crossed/kept", "three names", owner(7, 7), mode(0o4755))
	l.link("links/crossed/replaced", "links/crossed/kept")
	l.link("links/crossed/deleted", "links/crossed/kept")
	t.on(2).file("links/crossed/replaced", "one name", owner(8, 8))
	t.on(3).whiteout("links/crossed/deleted")
	// As archives have it: all names again, with another owner.
	l.file("links/again/one", "again", owner(9, 9))
	l.link("links/again/two", "links/again/one")
	t.on(4).file("links/again/one", "again", owner(10, 10))
	t.on(4).link("links/again/two", "links/again/one")
	// An inode that upper layers hide but for one name, and wholly.
	l.file("links/last/of", "four", owner(11, 11))
	for _, name := range []string{"links/last/gone1", "links/last/gone2", "links/last/gone3"} {
		l.link(name, "links/last/of")
		t.on(1).whiteout(name)
	}
}

func sharedInode(t *tree, _ limits) {
	t.on(1).file("shared/lower", "in two layers", owner(3, 3))
	t.on(2).linkFrom("shared/upper", 1, "shared/lower")
	t.on(4).linkFrom("shared/uppermost", 1, "shared/lower")
}

// times makes a feature of one time on every type.
func times(name string, sec, nsec int64) func(*tree, limits) {
	return func(t *tree, _ limits) {
		l, at := t.on(1), mtime(sec, nsec)
		p := "times/" + name
		l.file(p+"-file", name, at, owner(1, 1))
		l.file(p+"-empty", "", at)
		l.symlink(p+"-link", name, at)
		l.fifo(p+"-fifo", at)
		l.socket(p+"-socket", at)
		l.device(p+"-device", unix.S_IFCHR, 1, 3, at)
		l.dir(p+"-dir", at)
		l.file(p+"-dir/new", strings.Repeat(name, 10))
	}
}

func immutables(t *tree, _ limits) {
	l := t.on(0)
	l.file("immutable/file", "for ever", flags(immutable), owner(1, 1), mode(0o4755), attr("user.a", "b"))
	l.file("immutable/linked", "for ever", flags(immutable), owner(2, 2))
	l.link("immutable/linked-too", "immutable/linked")
	l.file("immutable/empty", "", flags(immutable), owner(3, 3))
	l.file("immutable/log", "append only", flags(appendOnly), owner(4, 4))
	l.dir("immutable/dir", flags(immutable), owner(5, 5), mode(0o2770))
	l.file("immutable/dir/file", "in an immutable directory", owner(6, 6))
	l.dir("immutable/dir/sub", flags(appendOnly), owner(7, 7))
	l.file("immutable/replaced", "below", flags(immutable))
	t.on(2).file("immutable/replaced", "above", owner(8, 8))
	l.file("immutable/deleted", "below", flags(immutable))
	t.on(2).whiteout("immutable/deleted")
}
