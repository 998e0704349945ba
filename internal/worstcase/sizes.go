package worstcase

import (
	"fmt"
	"path"
	"strings"
)

// sizeFeatures are about what is large.
func sizeFeatures() []Feature {
	return []Feature{
		{Name: "sparse-1TiB", What: "sparse files of a tebibyte", add: sparse},
		{Name: "data", What: "files whose data is in one piece, around the size of a block, and all zeros", add: data, certain: true},
		{Name: "nesting", What: "directories 200 deep, in two layers", add: nesting, certain: true},
		{Name: LongPaths, What: "paths beyond 4,096 bytes, in three layers", add: longPaths},
		{Name: "wide", What: "a directory of 50,000 entries, from three layers", add: wide, certain: true},
	}
}

func sparse(t *tree, _ limits) {
	l := t.on(0)
	const tib = 1 << 40
	l.sparse("sparse/tib", tib, []extent{{tib/2 + 5, "far away"}, {tib - 3, "end"}}, owner(1, 1), mode(0o4755))
	l.link("sparse/tib-link", "sparse/tib")
	l.sparse("sparse/hole", tib, nil, owner(2, 2))
	l.sparse("sparse/odd", tib+12345, []extent{{0, "start"}}, owner(3, 3))
	t.on(3).sparse("sparse/hole", tib-1, []extent{{tib - 2, "x"}}, owner(4, 4))
}

func data(t *tree, _ limits) {
	l := t.on(0)
	for i, n := range []int{1, 511, 512, 4095, 4096, 4097, 65535, 65536, 1 << 20} {
		l.file(fmt.Sprintf("data/%d", n), strings.Repeat("0123456789abcdef", n/16+1)[:n], owner(uint32(i), uint32(n)%65536), mode(0o600))
	}
	l.file("data/zeros", strings.Repeat("\x00", 100000), owner(1, 1))
	l.sparse("data/ends-in-hole", 1<<20, []extent{{0, "start"}})
}

// nesting is 200 directories, each of which an upper layer changes.
func nesting(t *tree, _ limits) {
	p := "nesting"
	for i := range uint32(200) {
		p = path.Join(p, fmt.Sprintf("d%d", i))
		t.on(0).dir(p, owner(i, i))
		t.on(0).file(p+"/f", p, owner(i, 1))
		if i%2 == 0 {
			t.on(2).dir(p, owner(1000+i, i), mode(0o700))
			t.on(2).file(p+"/g", p, owner(1, i))
		}
	}
	t.on(3).whiteout(p + "/f")
}

func longPaths(t *tree, _ limits) {
	p := LongPathsFolder
	for i := range uint32(20) {
		p = path.Join(p, strings.Repeat(string(rune('a'+i)), 250))
		t.on(0).dir(p, owner(i, i), attr("user.d", "x"))
		t.on(0).file(p+"/f", p, owner(i, 1), mode(0o4755))
		t.on(0).symlink(p+"/l", "f", owner(2, i))
		t.on(0).fifo(p+"/p", attr("trusted.f", "y"))
		t.on(2).dir(p, owner(i, 1000+i))
	}
	t.on(2).file(p+"/upper", "beyond 4,096 bytes", owner(5, 5), attr("user.f", "x"))
	t.on(3).whiteout(p + "/l")
	// Names on both sides of the limit.
	t.on(0).link(LongPathsFolder+"/up-here", p+"/f")
	t.on(0).link(p+"/down-here", p+"/p")
	t.on(0).symlink(LongPathsFolder+"/link", strings.TrimPrefix(p, LongPathsFolder+"/")[:1000])
}

// wideEntries is the number of entries that the merged view shows.
const wideEntries = 50000

func wide(t *tree, _ limits) {
	for i := range uint32(wideEntries) {
		t.on(0).file(fmt.Sprintf("wide/%05d", i), "", owner(i, 65535-i%65536), mode(0o600+i%64))
	}
	t.on(0).dir("wide", owner(7, 7), mode(0o1777))
	for i := uint32(0); i < wideEntries; i += 500 {
		t.on(1).whiteout(fmt.Sprintf("wide/%05d", i))
		t.on(1).file(fmt.Sprintf("wide/%05d", i+1), "replaced", owner(1, i%65536))
		t.on(3).file(fmt.Sprintf("wide/new%05d", i), "new", owner(3, i%65536), mode(0o4711))
	}
}
