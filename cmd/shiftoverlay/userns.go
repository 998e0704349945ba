package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/pkg/unshare"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// idRange are the IDs from Start up to, not including, End.
type idRange struct{ Start, End uint64 }

// idRanges are in order and do not touch each other.
type idRanges []idRange

// newRanges puts ranges in order and joins those that touch.
func newRanges(list []idRange) idRanges {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b idRange) int { return cmp.Compare(a.Start, b.Start) })
	var out idRanges
	for _, r := range list {
		switch last := len(out) - 1; {
		case r.Start >= r.End:
		case last >= 0 && r.Start <= out[last].End:
			out[last].End = max(out[last].End, r.End)
		default:
			out = append(out, r)
		}
	}
	return out
}

// hostRanges are the host IDs of the storage library's mappings.
func hostRanges(maps []idtools.IDMap) idRanges {
	list := make([]idRange, len(maps))
	for i, m := range maps {
		list[i] = idRange{uint64(m.HostID), uint64(m.HostID) + uint64(m.Size)}
	}
	return newRanges(list)
}

// minus takes away the IDs of another set.
func (s idRanges) minus(other idRanges) idRanges {
	var out idRanges
	for _, r := range s {
		for _, o := range other {
			if o.End <= r.Start || o.Start >= r.End {
				continue
			}
			if o.Start > r.Start {
				out = append(out, idRange{r.Start, o.Start})
			}
			r.Start = min(o.End, r.End)
		}
		if r.Start < r.End {
			out = append(out, r)
		}
	}
	return out
}

// size is the number of IDs.
func (s idRanges) size() (n uint64) {
	for _, r := range s {
		n += r.End - r.Start
	}
	return n
}

// take returns the lowest n IDs, out of several ranges where the first is too
// small, as extents for container IDs from 0 on, and what is left.
func (s idRanges) take(n uint64) (extents []idshift.Extent, left idRanges, ok bool) {
	var at uint64
	for i, r := range s {
		size := min(n-at, r.End-r.Start)
		extents = append(extents, idshift.Extent{ContainerID: uint32(at), HostID: uint32(r.Start), Size: uint32(size)}) //nolint:gosec // IDs have 32 bits
		at += size
		if at == n {
			left = slices.Clone(s[i:])
			left[0].Start += size
			return extents, newRanges(left), true
		}
	}
	return nil, s, false
}

// pool is what automatic user namespaces come from.
type pool struct {
	user       string
	uids, gids idRanges // all
	freeUIDs   idRanges
	freeGIDs   idRanges
	containers int // that have a user namespace
}

// pool finds out which IDs are free, as the storage library does when a
// container with an automatic user namespace is made (getAutoUserNS): those of
// the user in /etc/subuid and /etc/subgid that no container has.
func (a *app) pool() (*pool, error) {
	p := &pool{user: a.autoUser()}
	sub, err := idtools.NewIDMappings(p.user, p.user)
	if err != nil {
		return nil, fmt.Errorf("find IDs for automatic user namespaces: %w: add the line %s:2147483647:2147483648 to /etc/subuid and /etc/subgid", err, p.user)
	}
	containers, err := a.store.Containers()
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var uids, gids []idtools.IDMap
	for i := range containers {
		uids, gids = append(uids, containers[i].UIDMap...), append(gids, containers[i].GIDMap...)
		if len(containers[i].UIDMap)+len(containers[i].GIDMap) > 0 {
			p.containers++
		}
	}
	p.uids, p.gids = hostRanges(sub.UIDs()), hostRanges(sub.GIDs())
	if unshare.IsRootless() {
		// Host IDs are those of this user namespace, where they follow root's own
		// (getAvailableIDs in the storage library).
		p.uids, p.gids = newRanges([]idRange{{1, p.uids.size() + 1}}), newRanges([]idRange{{1, p.gids.size() + 1}})
	}
	p.freeUIDs, p.freeGIDs = p.uids.minus(hostRanges(uids)), p.gids.minus(hostRanges(gids))
	return p, nil
}

// left is how many mappings of a size there are.
func (p *pool) left(size uint64) uint64 { return min(p.freeUIDs.size(), p.freeGIDs.size()) / size }

// next is the mapping of the next container with an automatic user namespace of
// this size; the one after it gets another.
func (p *pool) next(size uint32) (idshift.Mapping, error) {
	uids, freeUIDs, ok := p.freeUIDs.take(uint64(size))
	gids, freeGIDs, okay := p.freeGIDs.take(uint64(size))
	if !ok || !okay {
		return idshift.Mapping{}, fmt.Errorf("no %d IDs are left for user %s (free: %d user IDs, %d group IDs): remove containers, or give the user more IDs in /etc/subuid and /etc/subgid",
			size, p.user, p.freeUIDs.size(), p.freeGIDs.size())
	}
	p.freeUIDs, p.freeGIDs = freeUIDs, freeGIDs
	return idshift.NewMapping(uids, gids)
}

// parseAuto reads podman's --userns=auto:size=N.
func parseAuto(text string) (uint32, error) {
	mode, options, _ := strings.Cut(text, ":")
	if mode != "auto" {
		return 0, fmt.Errorf("--userns %s: only auto:size=N has mappings that can be told beforehand; give others with --uidmap and --gidmap", text)
	}
	var size uint64
	for option := range strings.SplitSeq(options, ",") {
		value, ok := strings.CutPrefix(option, "size=")
		switch {
		case option == "":
		case !ok:
			return 0, fmt.Errorf("--userns %s: option %q is not known here: write auto:size=N", text, option)
		default:
			var err error
			if size, err = strconv.ParseUint(value, 10, 32); err != nil || size == 0 {
				return 0, fmt.Errorf("--userns %s: size %q is not a number from 1 on", text, value)
			}
		}
	}
	if size == 0 {
		return 0, errors.New("--userns auto: how many IDs podman takes without a size depends on the container: write auto:size=65536, and the same in `podman run`")
	}
	return uint32(size), nil
}
