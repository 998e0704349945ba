package worstcase

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// attributeFeatures are about extended attributes.
func attributeFeatures() []Feature {
	return []Feature{
		{Name: "capabilities", What: "file capabilities of version 2, and of version 3 with root user 0 and others", add: capabilities},
		{Name: "acls", What: "ACLs that name users and groups, defaults, masks, IDs that no mapping has", add: acls},
		{Name: "user-xattrs", What: "user.*: odd names and values, and many", add: userXattrs},
		{Name: "trusted-xattrs", What: "trusted.*, on every type", add: typesWith("trusted", attr("trusted.mine", "value"), attr("trusted.empty", ""))},
		{Name: "security-selinux", What: "labels of SELinux", add: typesWith("selinux", attr("security.selinux", "system_u:object_r:bin_t:s0:c1,c2\x00"))},
		{Name: "security-ima", What: "hashes of IMA", add: filesWith("ima", attr("security.ima", "\x04\x04"+strings.Repeat("\xa5", 32)))},
		{Name: "security-evm", What: "signatures of EVM", add: filesWith("evm", attr("security.evm", "\x05\x02\x04"+strings.Repeat("\x5a", 64)))},
		{Name: "security-others", What: "attributes of modules that are not there", add: filesWith("others", attr("security.apparmor", "x"), attr("security.SMACK64", "_"), attr("security.unheard", "of"))},
		{Name: "xattr-limit", What: "attributes that leave no room for another", add: xattrLimit},
		{Name: "xattr-list-limit", What: "as many names as listxattr(2) can give", add: xattrListLimit},
	}
}

func capabilities(t *tree, _ limits) {
	l := t.on(0)
	const bind, all = 1 << 10, 1<<41 - 1
	for name, value := range sorted(map[string]string{
		"v2": capV2(bind, 0), "v2-all": capV2(all, all), "v2-none": capV2(0, 0), "v2-inheritable": capV2(0, bind),
		"v3-0": capV3(bind, 0), "v3-1000": capV3(bind, 1000), "v3-65534": capV3(bind, 65534), "v3-65535": capV3(bind, 65535),
		"v3-65536": capV3(bind, 65536), "v3-2-31": capV3(all, 1<<31), "v3-last": capV3(all, 1<<32-2),
	}) {
		l.file("caps/"+name, "x", mode(0o755), attr(capability, value))
		l.file("caps/suid-"+name, "x", owner(1000, 1000), mode(0o6755), attr(capability, value), attr("user.beside", "v"))
		l.file("caps/empty-"+name, "", mode(0o700), attr(capability, value))
		l.link("caps/link-"+name, "caps/"+name)
	}
}

func acls(t *tree, _ limits) {
	l := t.on(0)
	var users, groups, many []entry
	for i, id := range strangeIDs() {
		users = append(users, entry{uint16(i % 8), id})
		groups = append(groups, entry{uint16(7 - i%8), id})
	}
	for i := range uint32(100) {
		many = append(many, entry{uint16(i % 8), i * 655})
	}
	for name, value := range sorted(map[string]string{
		"user": acl([]entry{{6, 1000}}, nil, 7), "group": acl(nil, []entry{{4, 1000}}, 7),
		"mask": acl([]entry{{7, 1}}, []entry{{7, 2}}, 1), "mask-0": acl([]entry{{7, 1}}, nil, 0), "only-mask": acl(nil, nil, 4),
		"strange": acl(users, groups, 7), "unmapped": acl([]entry{{7, 1 << 31}, {6, 1<<31 + 1}}, []entry{{5, 1 << 30}}, 7), "many": acl(many, many, 5),
	}) {
		p, access := "acls/"+name, attr(aclAccess, value)
		l.file(p+"-file", "x", access, owner(1000, 33), mode(0o4644))
		l.file(p+"-empty", "", access)
		l.fifo(p+"-fifo", access)
		l.socket(p+"-socket", access)
		l.device(p+"-device", unix.S_IFBLK, 8, 70000, access)
		l.dir(p+"-dir", access, mode(0o1755))
		l.dir(p+"-default", attr(aclDefault, value), mode(0o2770), owner(5, 6))
		l.file(p+"-default/inside", "made before the ACL")
		l.dir(p+"-both", access, attr(aclDefault, value))
		l.link(p+"-link", p+"-file")
	}
	l.dir("acls/merged", attr(aclDefault, acl([]entry{{7, 1}}, nil, 7)))
	l.file("acls/merged/lower", "x")
	t.on(3).dir("acls/merged", attr(aclAccess, acl([]entry{{6, 65536}}, nil, 6)))
}

func userXattrs(t *tree, _ limits) {
	l := t.on(0)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	l.file("xattrs/values", "x", attr("user.empty", ""), attr("user.zero", "\x00"), attr("user.bytes", string(every)))
	l.file("xattrs/names", "x", attr("user."+strings.Repeat("n", 250), "longest name"), attr("user.a b\nc:d,e=f\\", "odd"),
		attr("user.\xff\xfe", "no UTF-8"), attr("user..", "dot"), attr("user.system.posix_acl_access", "no ACL"))
	var many []option
	for i := range 60 {
		many = append(many, attr(fmt.Sprintf("user.%d", i), fmt.Sprint(i*i)))
	}
	l.file("xattrs/many", "x", many...)
	l.dir("xattrs/many-dir", many...)
	l.file("xattrs/read-only", "x", mode(0o444), owner(1000, 1000), attr("user.a", "b"))
	l.file("xattrs/closed", "x", mode(0), owner(1000, 1000), attr("user.a", "b"))
	l.dir("xattrs/sticky", mode(0o1777), owner(1000, 1000), attr("user.a", "b"))
	l.file("xattrs/link", "x", attr("user.a", "b"))
	l.link("xattrs/linked", "xattrs/link")
	t.on(4).dir("xattrs", attr("user.only", "of the upper layer"), attr("trusted.only", "likewise"))
	l.dir("xattrs", attr("user.lower", "hidden"))
}

// typesWith makes a feature of attributes on every type.
func typesWith(name string, options ...option) func(*tree, limits) {
	return func(t *tree, l limits) {
		filesWith(name, options...)(t, l)
		p := "xattrs/" + name
		t.on(1).symlink(p+"-link", "x", options...)
		t.on(1).fifo(p+"-fifo", options...)
		t.on(1).socket(p+"-socket", options...)
		t.on(1).device(p+"-device", unix.S_IFCHR, 1, 5, options...)
	}
}

// filesWith makes a feature of attributes on files and directories.
func filesWith(name string, options ...option) func(*tree, limits) {
	return func(t *tree, _ limits) {
		l, p := t.on(1), "xattrs/"+name
		l.file(p+"-file", "x", append(slices.Clip(options), owner(1, 1))...)
		l.file(p+"-empty", "", options...)
		l.file(p+"-closed", "x", append(slices.Clip(options), owner(1000, 1000), mode(0))...)
		l.dir(p+"-dir", options...)
		l.file(p+"-twice", "x", options...)
		l.link(p+"-linked", p+"-twice")
	}
}

func xattrLimit(t *tree, l limits) {
	full := []option{owner(1000, 1000), attr(bigName, strings.Repeat("v", max(l.value, 0)))}
	if l.rest >= 0 {
		full = append(full, attr(restName, strings.Repeat("v", l.rest)))
	}
	t.on(0).file("xattrs/full-file", "x", full...)
	t.on(0).file("xattrs/full-empty", "", full...)
	t.on(0).dir("xattrs/full-dir", full...)
	t.on(0).file("xattrs/full-dir/inside", "x")
}

// xattrListLimit has 65,280 bytes of names, of 65,536 that the kernel can list
// (XATTR_LIST_MAX in include/uapi/linux/limits.h).
func xattrListLimit(t *tree, _ limits) {
	var list []option
	for i := range 255 {
		list = append(list, attr(fmt.Sprintf("user.%0250d", i), "v"))
	}
	t.on(0).file("xattrs/list", "x", list...)
}
