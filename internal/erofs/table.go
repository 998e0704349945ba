package erofs

import "encoding/binary"

// The table of a template says where IDs are, for each segment of the image by
// itself: the number of inodes that begin in it, how far each is from the one
// before in slots of 32 bytes, the number of attributes with IDs that begin in
// it, and how far each is from the one before in units of 4 bytes. All are
// unsigned varints (encoding/binary), and the first of each row counts from
// the beginning of the segment. In front of that is, for each segment, the
// 32-bit offset behind its part.

// table is made in the order of the image.
type table struct {
	ends    []byte
	parts   []byte
	current int64 // segment
	owners  row
	values  row
}

// row is a list of ascending places in one segment.
type row struct {
	n     int
	last  int64
	bytes []byte
}

func (r *row) add(at int64) {
	r.bytes = binary.AppendUvarint(r.bytes, uint64(at-r.last))
	r.last = at
	r.n++
}

// close appends the row to b and empties it.
func (r *row) close(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(r.n))
	b = append(b, r.bytes...)
	r.n, r.last, r.bytes = 0, 0, r.bytes[:0]
	return b
}

// owner notes an inode.
func (t *table) owner(at int64) {
	t.owners.add(t.within(at) / slotSize)
}

// value notes the entry of an attribute with IDs.
func (t *table) value(at int64) {
	t.values.add(t.within(at) / xattrAlign)
}

// within returns the offset in the segment.
func (t *table) within(at int64) int64 {
	for t.current < at/segmentSize {
		t.close()
	}
	return at % segmentSize
}

func (t *table) close() {
	t.parts = t.owners.close(t.parts)
	t.parts = t.values.close(t.parts)
	t.ends = le.AppendUint32(t.ends, uint32(len(t.parts)))
	t.current++
}

// bytes is the table of an image of size bytes.
func (t *table) bytes(size int64) []byte {
	for t.current < segments(size) {
		t.close()
	}
	return append(t.ends, t.parts...)
}

// segments is the number of segments of an image of size bytes.
func segments(size int64) int64 { return align(size, segmentSize) / segmentSize }

// tablePart returns the part of segment i.
func tablePart(table []byte, count, i int64) ([]byte, error) {
	if int64(len(table)) < 4*count {
		return nil, damaged("table of %d bytes", len(table))
	}
	parts := table[4*count:]
	from, to := uint32(0), le.Uint32(table[4*i:])
	if i > 0 {
		from = le.Uint32(table[4*(i-1):])
	}
	if from > to || int64(to) > int64(len(parts)) {
		return nil, damaged("table of segment %d", i)
	}
	return parts[from:to], nil
}

// places calls yield for each place of a row, which is below limit, and
// returns what is behind the row.
func places(part []byte, unit, limit int64, yield func(at int64) error) ([]byte, error) {
	count, n := binary.Uvarint(part)
	if n <= 0 || count > uint64(limit) {
		return nil, damaged("row of the table")
	}
	part = part[n:]
	at := int64(0)
	for i := range count {
		var delta uint64
		if len(part) > 0 && part[0] < 0x80 {
			delta, part = uint64(part[0]), part[1:]
		} else {
			if delta, n = binary.Uvarint(part); n <= 0 {
				return nil, damaged("row of the table")
			}
			part = part[n:]
		}
		if delta > uint64(limit) || i > 0 && delta == 0 {
			return nil, damaged("row of the table")
		}
		if at += int64(delta) * unit; at >= limit {
			return nil, damaged("row of the table")
		}
		if err := yield(at); err != nil {
			return nil, err
		}
	}
	return part, nil
}
