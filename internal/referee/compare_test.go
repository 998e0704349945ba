package referee_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// acl makes the value of a POSIX ACL with one named user and one named group.
func acl(user, group uint32) []byte {
	v := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, 4, user}, {4, 4, ^uint32(0)}, {8, 4, group}, {16, 4, ^uint32(0)}, {32, 4, ^uint32(0)}} {
		v = binary.LittleEndian.AppendUint16(v, e.tag)
		v = binary.LittleEndian.AppendUint16(v, e.perm)
		v = binary.LittleEndian.AppendUint32(v, e.id)
	}
	return v
}

// capability makes a file capability: v2 for rootid 0, else v3.
func capability(rootid uint32) []byte {
	v := make([]byte, 20, 24)
	binary.LittleEndian.PutUint32(v, 0x02000001)
	binary.LittleEndian.PutUint32(v[4:], 1<<10) // CAP_NET_BIND_SERVICE
	if rootid != 0 {
		binary.LittleEndian.PutUint32(v, 0x03000001)
		v = binary.LittleEndian.AppendUint32(v, rootid)
	}
	return v
}

// sample is a small tree and its hard links.
func sample() ([]referee.Node, map[string]uint64) {
	at := unix.Timespec{Sec: 1700000000, Nsec: 123456789}
	return []referee.Node{
		{Path: ".", Mode: unix.S_IFDIR | 0o755, Mtime: at},
		{Path: "bin", Mode: unix.S_IFDIR | 0o755, Mtime: at},
		{Path: "bin/su", Mode: unix.S_IFREG | 0o4755, Size: 9, Mtime: at, Nlink: 1},
		{
			Path: "bin/ping", Mode: unix.S_IFREG | 0o755, Size: 9, Mtime: at, Nlink: 2, UID: 5, GID: 6,
			Xattrs: []referee.Xattr{
				{Name: "security.capability", Value: capability(0)},
				{Name: "security.selinux", Value: []byte("system_u:object_r:bin_t:s0\x00")},
				{Name: "system.posix_acl_access", Value: acl(7, 8)},
			},
		},
		{Path: "bin/ping6", Mode: unix.S_IFREG | 0o755, Size: 9, Mtime: at, Nlink: 2, UID: 5, GID: 6},
		{Path: "null", Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3), Mtime: at, Nlink: 1},
		{Path: "sh", Mode: unix.S_IFLNK | 0o777, Target: "bin/dash", Size: 8, Mtime: at, Nlink: 1},
	}, map[string]uint64{"bin/ping": 1, "bin/ping6": 1}
}

func sampleTree(t *testing.T, change func(byPath map[string]*referee.Node, inodes map[string]uint64)) *referee.Tree {
	t.Helper()
	nodes, inodes := sample()
	if change != nil {
		byPath := map[string]*referee.Node{}
		for i := range nodes {
			byPath[nodes[i].Path] = &nodes[i]
		}
		change(byPath, inodes)
	}
	tree, err := referee.NewTree("sample", nodes, inodes)
	require.NoError(t, err)
	return tree
}

func TestCompareFindsEachAttribute(t *testing.T) {
	type nodeMap = map[string]*referee.Node
	tests := []struct {
		name    string
		change  func(n nodeMap, inodes map[string]uint64)
		options referee.Options
		want    []string
	}{
		{name: "nothing", change: func(nodeMap, map[string]uint64) {}},
		{"type", func(n nodeMap, _ map[string]uint64) { n["null"].Mode = unix.S_IFBLK | 0o666 }, referee.Options{}, []string{"null: type: character device != block device"}},
		{"setuid", func(n nodeMap, _ map[string]uint64) { n["bin/su"].Mode &^= 0o4000 }, referee.Options{}, []string{"bin/su: mode: 4755 != 0755"}},
		{"uid", func(n nodeMap, _ map[string]uint64) { n["bin/ping"].UID = 50 }, referee.Options{}, []string{"bin/ping: uid: 5 != 50"}},
		{"gid of the root", func(n nodeMap, _ map[string]uint64) { n["."].GID = 1 }, referee.Options{}, []string{".: gid: 0 != 1"}},
		{"size", func(n nodeMap, _ map[string]uint64) { n["bin/su"].Size = 10 }, referee.Options{}, []string{"bin/su: size: 9 != 10"}},
		{"nanosecond", func(n nodeMap, _ map[string]uint64) { n["bin"].Mtime.Nsec++ }, referee.Options{}, []string{"bin: mtime: 1700000000.123456789 != 1700000000.123456790"}},
		{name: "mtime of the root", change: func(n nodeMap, _ map[string]uint64) { n["."].Mtime.Sec++ }},
		{"target", func(n nodeMap, _ map[string]uint64) { n["sh"].Target = "bin/bash" }, referee.Options{}, []string{"sh: target: bin/dash != bin/bash"}},
		{"device", func(n nodeMap, _ map[string]uint64) { n["null"].Rdev = unix.Mkdev(1, 70000) }, referee.Options{}, []string{"null: rdev: 1:3 != 1:70000"}},
		{"nlink", func(n nodeMap, _ map[string]uint64) { n["bin/su"].Nlink = 3 }, referee.Options{}, []string{"bin/su: nlink: 1 != 3"}},
		{name: "nlink merged", change: func(n nodeMap, _ map[string]uint64) { n["bin/su"].Nlink = 3 }, options: referee.Options{MergedNlink: true}},
		{"links lost", func(n nodeMap, inodes map[string]uint64) {
			delete(inodes, "bin/ping")
			n["bin/ping"].Nlink, n["bin/ping6"].Nlink = 1, 1
		}, referee.Options{}, []string{
			"bin/ping: nlink: 2 != 1", "bin/ping: links: bin/ping = bin/ping6 != bin/ping",
			"bin/ping6: nlink: 2 != 1", "bin/ping6: links: bin/ping = bin/ping6 != bin/ping6",
		}},
		{"links merged", func(_ nodeMap, inodes map[string]uint64) { delete(inodes, "bin/ping") }, referee.Options{MergedNlink: true}, []string{
			"bin/ping: nlink: 2 != 1", "bin/ping: links: bin/ping = bin/ping6 != bin/ping",
			"bin/ping6: nlink: 2 != 1", "bin/ping6: links: bin/ping = bin/ping6 != bin/ping6",
		}},
		{"one link more", func(_ nodeMap, inodes map[string]uint64) { inodes["bin/su"] = 1 }, referee.Options{}, []string{
			"bin/ping: links: bin/ping = bin/ping6 != bin/ping = bin/ping6 = bin/su",
			"bin/su: links: bin/su != bin/ping = bin/ping6 = bin/su",
		}},
		{"xattr lost", func(n nodeMap, _ map[string]uint64) { n["bin/ping"].Xattrs = n["bin/ping"].Xattrs[1:] }, referee.Options{}, []string{
			"bin/ping: xattr security.capability: 0x0100000200040000000000000000000000000000 != (absent)",
		}},
		{"xattr more", func(n nodeMap, _ map[string]uint64) {
			n["sh"].Xattrs = []referee.Xattr{{Name: "trusted.x", Value: []byte("1")}}
		}, referee.Options{}, []string{`sh: xattr trusted.x: (absent) != "1"`}},
		{"label", func(n nodeMap, _ map[string]uint64) { n["bin/ping"].Xattrs[1].Value = []byte("other\x00") }, referee.Options{}, []string{
			`bin/ping: xattr security.selinux: "system_u:object_r:bin_t:s0\x00" != "other\x00"`,
		}},
		{"content", func(n nodeMap, _ map[string]uint64) { n["bin/su"].Unknown = true }, referee.Options{Content: true}, []string{
			"bin/su: content: sha256 of the non-zero blocks 0000000000000000000000000000000000000000000000000000000000000000 != (not read)",
		}},
		{"path and name", func(n nodeMap, _ map[string]uint64) { n["sh"].Path = "s\nh" }, referee.Options{}, []string{
			`"s\nh": presence: (absent) != symbolic link`, "sh: presence: symbolic link != (absent)",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := sampleTree(t, nil), sampleTree(t, tt.change)
			var got []string
			for _, d := range referee.Compare(a, b, tt.options) {
				got = append(got, d.String())
			}
			assert.Equal(t, tt.want, got)
			assert.Len(t, referee.Compare(b, a, tt.options), len(tt.want), "the other way round")
		})
	}
}

func TestCompareUnmappedACL(t *testing.T) {
	with := func(user, group uint32) *referee.Tree {
		return sampleTree(t, func(n map[string]*referee.Node, _ map[string]uint64) {
			n["bin/ping"].Xattrs[2].Value = acl(user, group)
		})
	}
	assert.Empty(t, referee.Compare(with(^uint32(0), 100), with(idshift.OverflowID, 100), referee.Options{}))
	assert.Empty(t, referee.Compare(with(100, idshift.OverflowID), with(100, ^uint32(0)), referee.Options{}))
	assert.Len(t, referee.Compare(with(^uint32(0), 100), with(100, 100), referee.Options{}), 1)
}

func TestTreeShift(t *testing.T) {
	m, err := idshift.ParseMapping("0:100000:65536", "0:200000:65536")
	require.NoError(t, err)
	s, err := idshift.NewShift(m, idshift.Overflow)
	require.NoError(t, err)
	shifted, err := sampleTree(t, nil).Shift(s)
	require.NoError(t, err)

	want := sampleTree(t, func(n map[string]*referee.Node, _ map[string]uint64) {
		for _, node := range n {
			node.UID += 100000
			node.GID += 200000
		}
		n["bin/ping"].Xattrs[0].Value = capability(100000)
		n["bin/ping"].Xattrs[2].Value = acl(100007, 200008)
	})
	assert.Empty(t, referee.Compare(want, shifted, referee.Options{}))
	assert.Len(t, referee.Compare(sampleTree(t, nil), shifted, referee.Options{}), 2*shifted.Len()+2, "the original must stay as it was")

	refuse, err := idshift.NewShift(mustMapping(t, "0:100000:1"), idshift.Refuse)
	require.NoError(t, err)
	_, err = sampleTree(t, nil).Shift(refuse)
	var unmapped *idshift.UnmappedError
	require.ErrorAs(t, err, &unmapped)
	assert.ErrorContains(t, err, "bin/ping")
}

func mustMapping(t *testing.T, text string) idshift.Mapping {
	t.Helper()
	m, err := idshift.ParseMapping(text, text)
	require.NoError(t, err)
	return m
}

func TestNewTreeRefusesDuplicates(t *testing.T) {
	_, err := referee.NewTree("r", []referee.Node{{Path: "a"}, {Path: "a"}}, nil)
	assert.ErrorContains(t, err, `"a" appears twice`)
}

func TestLookup(t *testing.T) {
	tree := sampleTree(t, nil)
	n, ok := tree.Lookup("bin/ping6")
	require.True(t, ok)
	assert.Equal(t, []string{"bin/ping", "bin/ping6"}, n.Links())
	n, ok = tree.Lookup("bin/su")
	require.True(t, ok)
	assert.Equal(t, []string{"bin/su"}, n.Links())
	_, ok = tree.Lookup("bin/nothing")
	assert.False(t, ok)
	assert.Equal(t, "sample", tree.Root())
}
