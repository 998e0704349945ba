package erofs

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// readTable returns all places of a table.
func readTable(b []byte, size int64) (owners, values []int64, err error) {
	count := segments(size)
	for i := range count {
		part, err := tablePart(b, count, i)
		if err != nil {
			return nil, nil, err
		}
		limit := min(segmentSize, size-i*segmentSize)
		part, err = places(part, slotSize, limit, func(at int64) error {
			owners = append(owners, i*segmentSize+at)
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		part, err = places(part, xattrAlign, limit, func(at int64) error {
			values = append(values, i*segmentSize+at)
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		if len(part) > 0 {
			return nil, nil, damaged("rest")
		}
	}
	return owners, values, nil
}

// TestTable checks that what was noted is read back, over several segments,
// empty ones among them.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 5*segmentSize/blockSize).Draw(t, "blocks") * blockSize
		draw := func(unit int64, label string) []int64 {
			list := rapid.SliceOfDistinct(rapid.Int64Range(0, size/unit-1), rapid.ID[int64]).Draw(t, label)
			slices.Sort(list)
			for i := range list {
				list[i] *= unit
			}
			return list
		}
		owners, values := draw(slotSize, "owners"), draw(xattrAlign, "values")
		var tab table
		for i, j := 0, 0; i < len(owners) || j < len(values); {
			if j == len(values) || i < len(owners) && owners[i] <= values[j] {
				tab.owner(owners[i])
				i++
			} else {
				tab.value(values[j])
				j++
			}
		}
		gotOwners, gotValues, err := readTable(tab.bytes(size), size)
		require.NoError(t, err)
		assert.True(t, slices.Equal(owners, gotOwners))
		assert.True(t, slices.Equal(values, gotValues))
	})
}

// FuzzTable checks that no table leads outside of its segments.
func FuzzTable(f *testing.F) {
	var tab table
	for at := int64(1152); at < 3*segmentSize; at += 40000 * slotSize / 32 {
		tab.owner(at &^ (slotSize - 1))
		tab.value(at &^ (slotSize - 1))
	}
	f.Add(tab.bytes(3*segmentSize), uint16(3*segmentSize/blockSize))
	f.Add([]byte{2, 0, 0, 0, 0, 0}, uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, blocks uint16) {
		size := max(int64(blocks), 1) * blockSize
		owners, values, err := readTable(b, size)
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			return
		}
		for _, list := range [][]int64{owners, values} {
			require.True(t, slices.IsSorted(list))
			for _, at := range list {
				require.Less(t, at, size)
				require.GreaterOrEqual(t, at, int64(0))
			}
		}
	})
}
