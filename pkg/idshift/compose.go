package idshift

// Then returns the mapping that does what m does and next after it: the
// container IDs are those of m, the host IDs those that next gives to m's host
// IDs. An ID that either leaves out is left out; it fails like NewMapping,
// with ErrNoExtents if nothing is left.
func (m Mapping) Then(next Mapping) (Mapping, error) {
	return NewMapping(m.UIDs.then(next.UIDs), m.GIDs.then(next.GIDs))
}

// then intersects the host side of e with the container side of next.
func (e Extents) then(next Extents) []Extent {
	var out []Extent
	for _, a := range e {
		for _, b := range next {
			from := max(uint64(a.HostID), uint64(b.ContainerID))
			to := min(uint64(a.HostID)+uint64(a.Size), uint64(b.ContainerID)+uint64(b.Size))
			if from >= to {
				continue
			}
			out = append(out, Extent{
				ContainerID: a.ContainerID + uint32(from-uint64(a.HostID)),
				HostID:      b.HostID + uint32(from-uint64(b.ContainerID)),
				Size:        uint32(to - from),
			})
		}
	}
	return out
}
