package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// memory is a file that may not grow beyond its length.
type memory []byte

func (m memory) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > int64(len(m)) {
		return 0, errors.New("wild write")
	}
	return copy(m[at:], b), nil
}

// newFile makes an empty file for an image.
func newFile(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(dir, "image")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func newShift(t testing.TB, text string, policy idshift.Unmapped) *idshift.Shift {
	t.Helper()
	m, err := idshift.ParseMapping(text, text)
	require.NoError(t, err)
	s, err := idshift.NewShift(m, policy)
	require.NoError(t, err)
	return s
}

// smallTree is a template of a tree that anybody can make. Its own owners and
// times are those of the test; it gets others instead, so that the bytes are
// known: each kind of ID is there once, the rest is 0.
func smallTree(t testing.TB, layout Layout) []byte {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a", "b/c", "b/d/e", "longer-name"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	require.NoError(t, os.Symlink(strings.Repeat("x", 4090), filepath.Join(dir, "link")))
	require.NoError(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b/hard")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600))
	c, err := newCollector(layout)
	require.NoError(t, err)
	require.NoError(t, idshift.Walk(t.Context(), []string{dir}, idshift.WalkOptions{}, c))
	for _, d := range depthFirst(c.root) {
		if d.parent == nil {
			smallNode(t, c, ".", d.self)
		}
		for i := range d.nodes {
			smallNode(t, c, d.rel(string(d.name(&d.nodes[i]))), &d.nodes[i])
		}
	}
	p, err := c.place(t.Context())
	require.NoError(t, err)
	f := newFile(t, t.TempDir())
	_, err = p.write(t.Context(), f)
	require.NoError(t, err)
	b, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	return b
}

// smallIDs are where smallTree has which IDs.
var smallIDs = map[string]idshift.UnmappedError{
	"b":           {Kind: "uid", ID: 11},
	"b/c":         {Kind: "gid", ID: 12},
	"b/d":         {Kind: "acl group", ID: 13},
	"b/d/e":       {Kind: "acl user", ID: 14},
	"longer-name": {Kind: "capability rootid", ID: 15},
	"link":        {Kind: "uid", ID: 16},
}

// smallNode gives a path of smallTree its IDs.
func smallNode(t testing.TB, c *collector, path string, n *node) {
	t.Helper()
	n.uid, n.gid, n.sec, n.nsec = 0, 0, 1, 2
	id := smallIDs[path].ID
	var x []idshift.Xattr
	switch smallIDs[path].Kind {
	case "uid":
		n.uid = id
	case "gid":
		n.gid = id
	case "acl user":
		x = []idshift.Xattr{{Name: idshift.ACLAccess, Value: []byte(fstree.ACL([]uint32{0, id}, nil))}}
	case "acl group":
		x = []idshift.Xattr{{Name: idshift.ACLDefault, Value: []byte(fstree.ACL(nil, []uint32{0, id}))}}
	case "capability rootid":
		x = []idshift.Xattr{{Name: idshift.Capability, Value: []byte(fstree.CapV3(id))}}
	default:
		if path == "empty" || path == "b" { // one that is shared
			x = []idshift.Xattr{{Name: idshift.Capability, Value: []byte(fstree.CapV2())}}
		}
	}
	if len(x) > 0 {
		f := filler{collector: c}
		var err error
		n.set, err = c.xattrs.add(x, f.markOf(n, &idshift.Entry{Name: path}))
		require.NoError(t, err)
		c.xattrs.use(n.set, 1)
	}
}

// patchBytes patches a template in memory.
func patchBytes(t testing.TB, template []byte, s *idshift.Shift) ([]byte, error) {
	t.Helper()
	var size int64
	if h, err := readHeader(bytes.NewReader(template), int64(len(template))); err == nil {
		size = h.size
	}
	out := make(memory, size)
	return out, patch(t.Context(), out, bytes.NewReader(template), int64(len(template)), s)
}

// TestPatchIdentity checks that a shift that changes nothing changes nothing
// but the header, and that the result is no template.
func TestPatchIdentity(t *testing.T) {
	for _, layout := range both {
		template := smallTree(t, layout)
		out, err := patchBytes(t, template, newShift(t, "0:0:65536", idshift.Refuse))
		require.NoError(t, err)
		assert.Equal(t, template[superOffset+superChecksum+4:len(out)], out[superOffset+superChecksum+4:])
		before, err := readHeader(bytes.NewReader(template), int64(len(template)))
		require.NoError(t, err)
		after, err := readHeader(bytes.NewReader(out), int64(len(out)))
		require.NoError(t, err)
		want := before.info()
		want.Patched = true
		assert.Equal(t, want, after.info())
		assert.True(t, want.ACL)
		assert.Equal(t, layout, want.Layout)
		_, err = patchBytes(t, out, newShift(t, "0:0:65536", idshift.Refuse))
		require.ErrorIs(t, err, ErrDamaged)
		assert.ErrorContains(t, err, "no template")
	}
}

// TestPatchBack checks that the opposite shift of the patched bytes, owners
// and attributes, leads back.
func TestPatchBack(t *testing.T) {
	template := smallTree(t, DataOnly)
	s := newShift(t, "0:100000:65536", idshift.Refuse)
	out, err := patchBytes(t, template, s)
	require.NoError(t, err)
	const behind = superOffset + superSize
	assert.NotEqual(t, template[behind:len(out)], out[behind:])
	again := slices.Concat(out, template[len(out):])
	reseal(again)
	back, err := patchBytes(t, again, s.Back())
	require.NoError(t, err)
	assert.Equal(t, template[behind:len(out)], back[behind:])
}

// reseal makes all checksums of a template right, and turns a patched image
// with a table into a template again.
func reseal(b []byte) {
	if len(b) < blockSize {
		return
	}
	size := min(int64(le.Uint64(b[headerImage:])), int64(len(b))) &^ (blockSize - 1)
	if size < blockSize {
		return
	}
	h := header{
		layout: DataOnly, acl: b[headerFlags]&flagACL != 0, size: size, inodes: int64(le.Uint64(b[headerInodes:])),
	}
	if b[headerFlags]&flagOpaque != 0 {
		h.layout = Opaque
	}
	sums := make([]uint32, size/blockSize)
	sumBlocks(sums, 0, b[:size])
	h.digest = digest(h.layout, h.inodes, sums)
	h.setTable(b[size:])
	h.put(b)
	s := super{
		layout: h.layout, inodes: h.inodes, blocks: size / blockSize, xattrs: int64(le.Uint32(b[superOffset+superXattrs:])),
		root: uint32(le.Uint16(b[superOffset+superRoot:])), uuid: h.uuid(),
	}
	s.put(b)
}

// TestPatchDamaged checks that no changed byte and no missing end goes
// unnoticed.
func TestPatchDamaged(t *testing.T) {
	template := smallTree(t, Opaque)
	s := newShift(t, "0:100000:65536", idshift.Overflow)
	_, err := patchBytes(t, slices.Concat(template, []byte{0}), s)
	require.ErrorIs(t, err, ErrDamaged)
	rapid.Check(t, func(rt *rapid.T) {
		b := slices.Clone(template)
		at := rapid.IntRange(0, len(b)-1).Draw(rt, "at")
		b[at] ^= rapid.ByteRange(1, 255).Draw(rt, "change")
		_, err := patchBytes(t, b, s)
		require.ErrorIs(rt, err, ErrDamaged, "byte %d", at)
		_, err = patchBytes(t, template[:at], s)
		require.ErrorIs(rt, err, ErrDamaged, "%d bytes", at)
	})
}

// TestHeaderBounds checks that a header that promises too much is refused
// before anything is allocated for it.
func TestHeaderBounds(t *testing.T) {
	good := smallTree(t, DataOnly)
	h, err := readHeader(bytes.NewReader(good), int64(len(good)))
	require.NoError(t, err)
	for name, change := range map[string]func(h *header) (length int64){
		"size":           func(h *header) int64 { h.size = imageMax + blockSize; return h.size + h.table },
		"negative size":  func(h *header) int64 { h.size = -blockSize; return 0 },
		"odd size":       func(h *header) int64 { h.size++; return h.size + h.table },
		"no size":        func(h *header) int64 { h.size = 0; return h.table },
		"inodes":         func(h *header) int64 { h.inodes = h.size/inodeSize + 1; return h.size + h.table },
		"no inodes":      func(h *header) int64 { h.inodes = 0; return h.size + h.table },
		"table":          func(h *header) int64 { h.table = h.size/tableDivisor + 1; return h.size + h.table },
		"negative table": func(h *header) int64 { h.table = -1; return h.size },
		"longer":         func(h *header) int64 { return h.size + h.table + 1 },
		"shorter":        func(h *header) int64 { return h.size + h.table - 1 },
		"patched":        func(h *header) int64 { h.patched = true; return h.size + h.table },
	} {
		b, bad := make([]byte, headerSize), *h
		length := change(&bad)
		bad.put(b)
		_, err := readHeader(bytes.NewReader(b), length)
		require.ErrorIs(t, err, ErrDamaged, name)
	}
}

// TestTableFits checks that the table of an image with as many IDs as can be
// is within the bounds of readHeader.
func TestTableFits(t *testing.T) {
	self := idshift.Entry{}
	self.Stat.Mode = typeDir
	var entries []idshift.Entry
	for i := range 3000 {
		e := idshift.Entry{Name: fmt.Sprintf("%04d", i)}
		e.Stat.Mode, e.Stat.Nlink = typeDir, 1
		e.Xattrs = []idshift.Xattr{
			{Name: idshift.ACLAccess, Value: []byte(fstree.ACL(nil, nil))},
			{Name: idshift.ACLDefault, Value: []byte(fstree.ACL([]uint32{uint32(i)}, nil))},
			{Name: idshift.Capability, Value: []byte(fstree.CapV3(uint32(i)))},
		}
		entries = append(entries, e)
	}
	for _, n := range []int{0, 1, 30, 3000} {
		b := flat(t, Opaque, self, entries[:n])
		_, err := readHeader(bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
	}
}

// TestRefused checks that the path with the unmapped ID is named, wherever the
// ID is, and the first of several.
func TestRefused(t *testing.T) {
	for _, layout := range both {
		template := smallTree(t, layout)
		for path, want := range smallIDs {
			want.Path, want.Err = path, idshift.ErrNotMapped
			all := newShift(t, fmt.Sprintf("0:100000:%d,%d:200000:100", want.ID, want.ID+1), idshift.Refuse)
			_, err := patchBytes(t, template, all)
			got, ok := errors.AsType[*idshift.UnmappedError](err)
			if assert.True(t, ok, "%s: %v", path, err) {
				assert.Equal(t, want, *got)
			}
		}
		_, err := patchBytes(t, template, newShift(t, "0:100000:1", idshift.Refuse))
		got, ok := errors.AsType[*idshift.UnmappedError](err)
		require.True(t, ok)
		assert.Equal(t, "b", got.Path)
		// The overflow ID belongs to the container.
		_, err = patchBytes(t, template, newShift(t, "0:65534:5", idshift.Overflow))
		require.ErrorIs(t, err, idshift.ErrOverflowMapped)
	}
}

// TestRefusedBounded checks that directories that are all the same do not keep
// the search for the refused path busy.
func TestRefusedBounded(t *testing.T) {
	self := idshift.Entry{}
	self.Stat.Mode = typeDir
	var entries []idshift.Entry
	for i := range 20000 {
		e := idshift.Entry{Name: fmt.Sprintf("directory-%05d", i)}
		e.Stat.Mode = typeDir
		entries = append(entries, e)
	}
	b := flat(t, Opaque, self, entries)
	root := b[int(le.Uint16(b[superOffset+superRoot:]))*slotSize:]
	size, block := le.Uint64(root[inodeBytes:]), le.Uint32(root[inodeUnion:])
	h, err := readHeader(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	owners, _, err := readTable(b[h.size:], h.size)
	require.NoError(t, err)
	for _, at := range owners {
		in := b[at:]
		le.PutUint16(in[inodeFormat:], extended|flatPlain<<1)
		le.PutUint64(in[inodeBytes:], size&^(blockSize-1))
		le.PutUint32(in[inodeUnion:], block)
		le.PutUint32(in[inodeUID:], 0)
	}
	// The last directory is the one that is refused; nobody gets there.
	le.PutUint32(b[owners[len(owners)-1]+inodeUID:], 9)
	reseal(b)
	start := time.Now()
	_, err = patchBytes(t, b, newShift(t, "0:0:1", idshift.Refuse))
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorIs(t, err, idshift.ErrNotMapped)
	assert.Less(t, time.Since(start), 10*time.Second)
}

// TestPatchCancelled checks that a cancelled context ends it.
func TestPatchCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	template := smallTree(t, DataOnly)
	err := patch(ctx, make(memory, len(template)), bytes.NewReader(template), int64(len(template)), newShift(t, "0:1:5", idshift.Overflow))
	require.ErrorIs(t, err, why)
	h, err := readHeader(bytes.NewReader(template), int64(len(template)))
	require.NoError(t, err)
	err = findRefused(ctx, bytes.NewReader(template), h, newShift(t, "1:1:5", idshift.Refuse), errors.New("first"))
	require.ErrorIs(t, err, why)
}

// failing is a file whose disk is broken.
type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error)  { return 0, f.err }
func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.err }

// TestPatchFailing checks that an error of the disk is not called damage, and
// not forgotten.
func TestPatchFailing(t *testing.T) {
	template := smallTree(t, DataOnly)
	s, broken := newShift(t, "0:1:500", idshift.Overflow), failing{io.ErrNoProgress}
	err := patch(t.Context(), make(memory, len(template)), broken, int64(len(template)), s)
	require.ErrorIs(t, err, io.ErrNoProgress)
	require.NotErrorIs(t, err, ErrDamaged)
	err = patch(t.Context(), broken, bytes.NewReader(template), int64(len(template)), s)
	require.ErrorIs(t, err, io.ErrNoProgress)
}

// TestTemplateInfo checks what the header tells, and that other files are
// damaged ones.
func TestTemplateInfo(t *testing.T) {
	f := newFile(t, t.TempDir())
	_, err := TemplateInfo(f)
	require.ErrorIs(t, err, ErrDamaged)
	template := smallTree(t, Opaque)
	_, err = f.Write(template)
	require.NoError(t, err)
	info, err := TemplateInfo(f)
	require.NoError(t, err)
	assert.Equal(t, Info{Layout: Opaque, ACL: true, Inodes: 9, Size: info.Size, UUID: info.UUID}, info)
	assert.Equal(t, template[superOffset+superUUID:][:16], info.UUID[:])
	require.NoError(t, f.Truncate(info.Size))
	_, err = TemplateInfo(f)
	assert.ErrorIs(t, err, ErrDamaged)
	assert.ErrorContains(t, err, f.Name())
}

// FuzzTemplateInfo checks that no file makes TemplateInfo panic or promise
// more than there is.
func FuzzTemplateInfo(f *testing.F) {
	template := smallTree(f, DataOnly)
	patched, err := patchBytes(f, template, newShift(f, "0:100000:65536", idshift.Overflow))
	require.NoError(f, err)
	for _, b := range [][]byte{template, patched, template[:2*blockSize], []byte(headerMagic)} {
		f.Add(b, false)
		f.Add(b, true)
	}
	file := newFile(f, f.TempDir())
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= headerSize {
			le.PutUint32(b[headerSum:], crc32.Checksum(b[:headerSum], castagnoli))
		}
		require.NoError(t, file.Truncate(0))
		_, err := file.WriteAt(b, 0)
		require.NoError(t, err)
		info, err := TemplateInfo(file)
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			return
		}
		require.LessOrEqual(t, info.Size, int64(len(b)))
		require.GreaterOrEqual(t, info.Size, int64(blockSize))
		require.LessOrEqual(t, info.Inodes*inodeSize, info.Size)
	})
}

// FuzzPatch checks that no template makes Patch panic or write beyond the
// image, with the checksums right as well as wrong, and that whatever it
// writes can be told from a template. The input is what is changed of a
// template, three bytes each: where, as 16 bits, and to what.
func FuzzPatch(f *testing.F) {
	templates := map[bool][]byte{false: smallTree(f, DataOnly), true: smallTree(f, Opaque)}
	for _, same := range []bool{false, true} {
		b := templates[same]
		require.Less(f, len(b), 1<<16)
		for _, at := range []int{headerTable, headerFlags, superOffset + superRoot, superOffset + superSize + inodeXattrs, superOffset + superSize + inodeBytes, len(b) - 1} {
			f.Add([]byte{byte(at), byte(at >> 8), 7}, uint16(0), same, true, true)
			f.Add([]byte{byte(at), byte(at >> 8), 255, 0, 0, 'X'}, uint16(3), same, false, false)
		}
	}
	// An owner that is refused, in a template with an ACL that is damaged, too.
	f.Add([]byte("\xc9\xc90\x00eH"), uint16(0), true, true, true)
	shifts := map[bool]*idshift.Shift{true: newShift(f, "0:100000:3", idshift.Refuse), false: newShift(f, "0:100000:3", idshift.Overflow)}
	f.Fuzz(func(t *testing.T, changes []byte, cut uint16, same, fix, strict bool) {
		b := slices.Clone(templates[same])
		b = b[:len(b)-min(len(b), int(cut))]
		for ; len(changes) >= 3 && len(b) > 0; changes = changes[3:] {
			b[int(le.Uint16(changes))%len(b)] = changes[2]
		}
		if fix {
			reseal(b)
		}
		out, err := patchBytes(t, b, shifts[strict])
		if err != nil {
			if _, ok := errors.AsType[*idshift.UnmappedError](err); !ok {
				require.ErrorIs(t, err, ErrDamaged)
			}
			return
		}
		h, err := readHeader(bytes.NewReader(out), int64(len(out)))
		require.NoError(t, err)
		require.True(t, h.patched)
	})
}
