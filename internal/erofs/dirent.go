package erofs

import "sort"

// The entries of a directory are its names with "." and "..", all in the order
// of their bytes, so that a name such as "!" comes before them. Each block is
// complete in itself: entries of 12 bytes, then names, then zeros.

// measure finds the places of "." and ".." and the size of the directory.
func (d *dir) measure() {
	before := func(name string) int {
		return sort.Search(len(d.nodes), func(i int) bool { return string(d.name(&d.nodes[i])) >= name })
	}
	d.dot, d.dotdot = before("."), before("..")+1
	size := int64(0)
	for k := 0; k < d.entries(); {
		var used int
		if k, used = d.block(k); k < d.entries() {
			used = blockSize
		}
		size += int64(used)
	}
	d.self.size = size
}

// entries is the number of entries.
func (d *dir) entries() int { return len(d.nodes) + 2 }

// entry returns the k-th name; its node is nil for "." and "..".
func (d *dir) entry(k int) (name []byte, n *node) {
	switch {
	case k == d.dot:
		return []byte("."), nil
	case k == d.dotdot:
		return []byte(".."), nil
	case k > d.dotdot:
		k -= 2
	case k > d.dot:
		k--
	}
	n = &d.nodes[k]
	return d.name(n), n
}

// block returns the end of the block that begins with entry k, and how many
// bytes it uses.
func (d *dir) block(k int) (end, used int) {
	for end = k; end < d.entries(); end++ {
		name, _ := d.entry(end)
		if used+direntSize+len(name) > blockSize {
			break
		}
		used += direntSize + len(name)
	}
	return end, used
}

// appendBlock appends the block that begins with entry k, without zeros at its
// end, and returns the first entry of the next block. All inodes have their
// places.
func (d *dir) appendBlock(b []byte, k int) ([]byte, int) {
	end, _ := d.block(k)
	offset := direntSize * (end - k)
	names := k
	for ; k < end; k++ {
		name, n := d.entry(k)
		nid, mode := d.self.nid, d.self.mode
		switch {
		case n != nil:
			nid, mode = n.nid, n.mode
		case k == d.dotdot && d.parent != nil:
			nid = d.parent.self.nid
		}
		b = le.AppendUint64(b, uint64(nid))
		b = le.AppendUint16(b, uint16(offset))
		b = append(b, direntType(mode), 0)
		offset += len(name)
	}
	for ; names < end; names++ {
		name, _ := d.entry(names)
		b = append(b, name...)
	}
	return b, end
}
