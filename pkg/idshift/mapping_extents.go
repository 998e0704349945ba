package idshift

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

const (
	// MaxExtents is the number of extents that the kernel accepts for one side
	// of a mapping since Linux 4.15 (user_namespaces(7)). It is checked after
	// adjacent extents have been merged.
	MaxExtents = 340

	// lastID is the greatest valid ID: 4294967295 is (uid_t)-1.
	lastID = 1<<32 - 2

	// linearExtents is the number of extents up to which a lookup is a plain
	// loop; the kernel's lookup (kernel/user_namespace.c) uses the same bound.
	linearExtents = 5
)

// Extent maps Size container IDs, from ContainerID on, to as many host IDs,
// from HostID on: one line of /proc/PID/uid_map.
type Extent struct {
	ContainerID uint32 `json:"container_id"`
	HostID      uint32 `json:"host_id"`
	Size        uint32 `json:"size"`
}

// String is the extent as podman's --uidmap spells it, "0:100000:65536".
func (x Extent) String() string {
	return string(x.appendText(make([]byte, 0, 32)))
}

func (x Extent) appendText(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(x.ContainerID), 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, uint64(x.HostID), 10)
	b = append(b, ':')
	return strconv.AppendUint(b, uint64(x.Size), 10)
}

// Extents is one side of a Mapping, its users or its groups. The values that
// this package returns are normalised: sorted by ContainerID, free of overlaps,
// extents that continue each other on both sides merged. The methods that look
// IDs up expect that form; call Normalize on a value made by hand. Nothing
// writes to a value once made, so it may be shared between goroutines.
type Extents []Extent

// Normalize validates the extents and returns their normalised form as a new
// value. It fails with an error that names the extent if there is none
// (ErrNoExtents), if one is empty (ErrExtentSize) or goes beyond the last valid
// ID 4294967294 (ErrExtentRange), if two overlap in container IDs or in host
// IDs (ErrOverlap), or if more than MaxExtents are left (ErrTooManyExtents).
func (e Extents) Normalize() (Extents, error) {
	list := make([]written, len(e))
	for i, x := range e {
		list[i].Extent = x
	}
	return normalize(list)
}

// written is an extent and how the user spelt it; text is empty for an extent
// that was not parsed.
type written struct {
	Extent
	text string
}

func (w *written) String() string {
	if w.text != "" {
		return w.text
	}
	return w.Extent.String()
}

func containerStart(x Extent) uint32 { return x.ContainerID }
func hostStart(x Extent) uint32      { return x.HostID }

// normalize does the work of Normalize; its errors spell extents as written.
func normalize(list []written) (Extents, error) {
	if len(list) == 0 {
		return nil, ErrNoExtents
	}
	for i := range list {
		if err := list[i].check(); err != nil {
			return nil, err
		}
	}
	order, err := sortBy(list, containerStart, "container")
	if err != nil {
		return nil, err
	}
	if _, err := sortBy(list, hostStart, "host"); err != nil {
		return nil, err
	}
	out := make(Extents, 0, len(list))
	for _, i := range order {
		x := list[i].Extent
		if n := len(out); n > 0 && out[n-1].continuedBy(x) {
			out[n-1].Size += x.Size
			continue
		}
		out = append(out, x)
	}
	if len(out) > MaxExtents {
		return nil, extentErrorf(ErrTooManyExtents,
			"mapping has %d extents, the kernel accepts at most %d; merge or drop some", len(out), MaxExtents)
	}
	return out, nil
}

// continuedBy says whether y maps the IDs right behind those of x, on both
// sides.
func (x Extent) continuedBy(y Extent) bool {
	return x.ContainerID+x.Size == y.ContainerID && x.HostID+x.Size == y.HostID
}

func (w *written) check() error {
	if w.Size == 0 {
		return extentErrorf(ErrExtentSize, "extent %s: size is zero; an extent maps at least one ID", w)
	}
	for _, side := range []struct {
		name  string
		start uint32
	}{{"container", w.ContainerID}, {"host", w.HostID}} {
		if last := uint64(side.start) + uint64(w.Size) - 1; last > lastID {
			return extentErrorf(ErrExtentRange, "extent %s has %s; the last valid ID is %d",
				w, idRange(side.name, uint64(side.start), last), uint32(lastID))
		}
	}
	return nil
}

// sortBy returns the indexes of list in the order of start, or an error if two
// extents overlap there. It is enough to look at neighbours: if any two
// overlap, then so do two neighbours.
func sortBy(list []written, start func(Extent) uint32, side string) ([]int, error) {
	order := make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(start(list[a].Extent), start(list[b].Extent))
	})
	for k := 1; k < len(order); k++ {
		a, b := &list[order[k-1]], &list[order[k]]
		endA := uint64(start(a.Extent)) + uint64(a.Size)
		startB := uint64(start(b.Extent))
		if startB >= endA {
			continue
		}
		last := min(endA, startB+uint64(b.Size)) - 1
		if order[k-1] > order[k] { // name them in the order in which they were given
			a, b = b, a
		}
		return nil, extentErrorf(ErrOverlap, "extent %s overlaps extent %s in %s", a, b, idRange(side, startB, last))
	}
	return order, nil
}

func idRange(side string, first, last uint64) string {
	if first == last {
		return fmt.Sprintf("%s ID %d", side, first)
	}
	return fmt.Sprintf("%s IDs %d-%d", side, first, last)
}

// ToHost returns the host ID of a container ID, and whether there is one. It
// allocates nothing; its cost grows with the logarithm of the number of
// extents.
func (e Extents) ToHost(id uint32) (uint32, bool) {
	if len(e) > linearExtents {
		lo, hi := 0, len(e) // the extents before lo start at id or before it
		for lo < hi {
			mid := int(uint(lo+hi) >> 1)
			if e[mid].ContainerID <= id {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		if lo == 0 {
			return 0, false
		}
		e = e[lo-1 : lo]
	}
	for i := range e {
		x := &e[i]
		// Below the start the difference wraps and is too large: start and size
		// together do not exceed 32 bits.
		if d := id - x.ContainerID; d < x.Size {
			return x.HostID + d, true
		}
	}
	return 0, false
}

// ToContainer returns the container ID of a host ID, and whether there is one.
// It allocates nothing and looks at every extent; where many IDs are looked up
// in a long mapping, Invert once and call ToHost.
func (e Extents) ToContainer(id uint32) (uint32, bool) {
	for i := range e {
		x := &e[i]
		if d := id - x.HostID; d < x.Size {
			return x.ContainerID + d, true
		}
	}
	return 0, false
}

// Invert returns the mapping from host IDs to container IDs as a new,
// normalised value.
func (e Extents) Invert() Extents {
	if len(e) == 0 {
		return nil
	}
	out := make(Extents, len(e))
	for i, x := range e {
		out[i] = Extent{ContainerID: x.HostID, HostID: x.ContainerID, Size: x.Size}
	}
	slices.SortFunc(out, func(a, b Extent) int { return cmp.Compare(a.ContainerID, b.ContainerID) })
	return out
}

// String is the extents as ParseExtents reads them, separated by commas:
// "0:100000:65536,70000:0:1". No extents are the empty string.
func (e Extents) String() string {
	b := make([]byte, 0, 32*len(e))
	for i, x := range e {
		if i > 0 {
			b = append(b, ',')
		}
		b = x.appendText(b)
	}
	return string(b)
}

// identity says whether every mapped ID maps to itself.
func (e Extents) identity() bool {
	for _, x := range e {
		if x.ContainerID != x.HostID {
			return false
		}
	}
	return true
}

// UnmarshalJSON reads an array of extents and normalises it, so that a recorded
// mapping is as trustworthy as a parsed one. null and [] give no extents.
func (e *Extents) UnmarshalJSON(data []byte) error {
	var list []Extent
	if err := json.Unmarshal(data, &list); err != nil {
		return fmt.Errorf("decode mapping: %w", err)
	}
	if len(list) == 0 {
		*e = nil
		return nil
	}
	out, err := Extents(list).Normalize()
	if err != nil {
		return fmt.Errorf("decode mapping: %w", err)
	}
	*e = out
	return nil
}
