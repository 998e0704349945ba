package enginetest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/engine"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// issues are the bugs that others had, and ours.
func issues() []Case {
	const access, capability = "system.posix_acl_access", "security.capability"
	return []Case{
		// Capabilities of files were lost with the change of their owner.
		// https://github.com/containers/storage/pull/217
		// https://github.com/canonical/lxd/issues/4862
		{Name: "StorageCapabilitiesLost", Layers: [][]fstree.Node{
			{fstree.File("usr/bin/ping", "x", fstree.Mode(0o755), fstree.Xattr(capability, fstree.CapV2()))},
			{fstree.File("usr/bin/newuidmap", "x", fstree.Owner(0, 5), fstree.Mode(0o4755), fstree.Xattr(capability, fstree.CapV2()))},
		}},
		// Capabilities of a user namespace (version 3) were lost.
		// https://github.com/vpsfreecz/vpsadminos/issues/61
		{Name: "VpsadminosRootID", Layers: [][]fstree.Node{{fstree.File("f", "x", fstree.Xattr(capability, fstree.CapV3(1000)))}}},
		// The root directory stayed with the host's root and showed as nobody.
		// https://github.com/containerd/containerd/pull/1352
		// https://github.com/containers/storage/pull/1564
		{Name: "ContainerdRootFolder", Layers: [][]fstree.Node{
			{fstree.Dir(".", fstree.Mode(0o555))},
			{fstree.Dir(".", fstree.Owner(3, 3)), fstree.Dir("etc", fstree.Mode(0o755))},
		}, Check: func(t *testing.T, merged string) {
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(merged, &st))
			assert.Equal(t, []uint32{2147483647, 2147483647, 0o555}, []uint32{st.Uid, st.Gid, st.Mode & 0o7777})
		}},
		// ACLs with an unmapped user, as the journal has them, stopped the
		// container with EINVAL.
		// https://github.com/canonical/lxd/issues/6771
		// https://github.com/canonical/lxd/issues/7670
		{Name: "LxdJournalACL", UIDs: Short, GIDs: Short, Layers: [][]fstree.Node{{
			fstree.Dir("var/log/journal", fstree.Owner(0, 101), fstree.Mode(0o2755),
				fstree.Xattr(access, fstree.ACL(nil, []uint32{4, 100000})), fstree.Xattr("system.posix_acl_default", fstree.ACL([]uint32{100000}, []uint32{4}))),
			fstree.File("var/log/journal/system.journal", "x", fstree.Owner(0, 101), fstree.Mode(0o640), fstree.Xattr(access, fstree.ACL(nil, []uint32{4}))),
		}}},
		// Hard links became nobody's after a shift: the second name was
		// shifted a second time.
		// https://github.com/nestybox/sysbox/issues/922
		{Name: "SysboxPerl", Layers: [][]fstree.Node{
			{fstree.Dir("usr/bin")},
			{fstree.File("usr/bin/perl", "perl", fstree.Mode(0o755)), fstree.Link("usr/bin/perl5.34.0", "usr/bin/perl"), fstree.Dir("usr/share")},
		}},
		// Making hard links changed the times of the folders they are in.
		// https://github.com/podman-container-tools/container-libs/issues/1172
		// https://github.com/containers/storage/issues/1257
		{Name: "ContainerLibsFolderTimes", Layers: [][]fstree.Node{{
			fstree.Dir("a", fstree.Time(1700000000, 0)), fstree.Dir("b", fstree.Time(1700000000, 1)),
			fstree.File("a/one", "contents"), fstree.Link("b/two", "a/one"), fstree.Link("a/three", "a/one"),
		}}},
		// XFS lists an ACL a second time, as trusted.SGI_ACL_FILE: copied like
		// any attribute it overwrites the shifted ACL. Ours; seen on XFS only.
		{Name: "XFSRawACL", Layers: [][]fstree.Node{{
			fstree.File("f", "x", fstree.Xattr(access, fstree.ACL([]uint32{1000}, nil))),
			fstree.Dir("d", fstree.Xattr("system.posix_acl_default", fstree.ACL(nil, []uint32{1000}))),
		}}},
		// A file that its owner may not write has an attribute user.*: set as
		// the owner it is EACCES. Ours.
		{Name: "UserXattrReadOnly", Layers: [][]fstree.Node{{
			fstree.File("f", "x", fstree.Owner(1000, 1000), fstree.Mode(0o444), fstree.Xattr("user.a", "b")),
		}}},
		// An image with IDs beyond the mapping.
		// https://github.com/containers/storage/issues/1220
		{Name: "StorageOverflow", UIDs: "0:1000000:1024", GIDs: "0:1000000:1024", Layers: [][]fstree.Node{{
			fstree.Dir("d", fstree.Owner(99999, 99999), fstree.Mode(0o755)), fstree.File("d/f", "x", fstree.Owner(99999, 0)), fstree.File("d/own", "x", fstree.Owner(1023, 1023)),
		}}},
		// A setuid program of an unmapped owner must not become somebody's
		// (CVE-2023-0386).
		// https://git.kernel.org/torvalds/c/4f11ada10d0a
		{Name: "KernelUnmappedSetuid", UIDs: Short, GIDs: Short, Layers: [][]fstree.Node{{
			fstree.File("suid", "x", fstree.Owner(4000, 4000), fstree.Mode(0o6755)),
		}}, Check: func(t *testing.T, merged string) {
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(filepath.Join(merged, "suid"), &st))
			assert.Equal(t, [2]uint32{idshift.OverflowID, idshift.OverflowID}, [2]uint32{st.Uid, st.Gid})
		}},
		// Mappings of three ranges, as keep-id makes them.
		// https://github.com/containers/podman/issues/26300
		{Name: "PodmanKeepID", UIDs: "0:1:1000,1000:0:1,1001:1001:64536", GIDs: "0:1:1000,1000:0:1,1001:1001:64536", Layers: [][]fstree.Node{{
			fstree.File("mine", "x", fstree.Owner(1000, 1000), fstree.Mode(0o600)), fstree.File("roots", "x"), fstree.File("other", "x", fstree.Owner(1001, 999)),
		}}},
	}
}

// busybox is a tree with one inode of many names in many folders.
func busybox(links int) []fstree.Node {
	out := []fstree.Node{fstree.File("bin/busybox", "busybox", fstree.Mode(0o4755), fstree.Owner(0, 7), fstree.Xattr("security.capability", fstree.CapV2()))}
	for i := range links {
		out = append(out, fstree.Link(fmt.Sprintf("dir%02d/applet%d", i%40, i), "bin/busybox"))
	}
	return out
}

// hardLinkRace shifts an inode with many names with many threads, many times:
// threads that meet it at the same time must shift it once.
// https://github.com/containers/storage/issues/1143
// https://github.com/containers/podman/issues/8259
func (s *suite) hardLinkRace(t *testing.T) {
	const links = 400
	chain := s.layers(t, s.place(t), [][]fstree.Node{busybox(links)})
	sh := shift(t, mapping(t, Three, ""), idshift.Overflow)
	for round := range 50 {
		lower := s.build(t, chain, sh, 16)
		var first unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(lower, "bin/busybox"), &first))
		require.Equal(t, []uint64{100000, 2147483654, 0o4755, links + 1},
			[]uint64{uint64(first.Uid), uint64(first.Gid), uint64(first.Mode & 0o7777), uint64(first.Nlink)}, "round %d: owner, mode, links", round) //nolint:unconvert // Nlink is 32 bits wide on some architectures
		for i := range links {
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(filepath.Join(lower, fmt.Sprintf("dir%02d/applet%d", i%40, i)), &st))
			require.Equal(t, first.Ino, st.Ino, "round %d", round)
		}
	}
}

// hardLinkPairs has many inodes with one name in each of many directories, so
// that threads find different inodes for the first time while others make
// further names.
func (s *suite) hardLinkPairs(t *testing.T) {
	const inodes, dirs = 24, 24
	chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.Dir("d00")}})
	for d := range dirs {
		require.NoError(t, os.MkdirAll(filepath.Join(chain[0], fmt.Sprintf("d%02d", d)), 0o755))
		for i := range inodes {
			// Each directory begins with another inode.
			from, to := filepath.Join(chain[0], "d00", fmt.Sprintf("f%02d", i)), filepath.Join(chain[0], fmt.Sprintf("d%02d/f%02d", d, i))
			if d == 0 {
				require.NoError(t, os.WriteFile(to, nil, 0o600))
				continue
			}
			require.NoError(t, os.Link(from, to))
			require.NoError(t, os.Rename(to, filepath.Join(filepath.Dir(to), fmt.Sprintf("g%02d-%02d", (i+d)%inodes, i))))
		}
	}
	sh := shift(t, mapping(t, Three, ""), idshift.Overflow)
	for round := range 10 {
		lower := s.build(t, chain, sh, 16)
		for i := range inodes {
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(filepath.Join(lower, fmt.Sprintf("d00/f%02d", i)), &st))
			require.EqualValues(t, dirs, st.Nlink, "round %d, inode %d", round, i)
		}
	}
}

// voidCapability has a file whose capability is garbage: the kernel lists it
// and refuses to show it. It grants nothing and must not stop the container.
// https://github.com/containers/storage/issues/1183
func (s *suite) voidCapability(t *testing.T) {
	chain := s.layers(t, s.place(t), [][]fstree.Node{{fstree.File("f", "data", fstree.Owner(1, 1), fstree.Xattr("security.capability", ""))}})
	_, err := unix.Lgetxattr(filepath.Join(chain[0], "f"), "security.capability", make([]byte, 100))
	require.ErrorIs(t, err, unix.EINVAL, "the trap works")
	dir := filepath.Join(s.place(t), "built")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, s.b.Build(t.Context(), dir, engine.Job{Chain: chain, Shift: shift(t, mapping(t, "", ""), idshift.Overflow)}))
	point := s.merged(t, append([]string{s.o.Mount(t, dir)}, chain...), "metacopy=on")
	_, err = unix.Lgetxattr(filepath.Join(point, "f"), "security.capability", make([]byte, 100))
	require.ErrorIs(t, err, unix.ENODATA)
	content, err := os.ReadFile(filepath.Join(point, "f"))
	require.NoError(t, err)
	assert.Equal(t, "data", string(content))
}
