package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/unshare"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

const (
	// autoUser owns the ranges that automatic user namespaces come from, in
	// /etc/subuid and /etc/subgid (containers-storage.conf(5), root-auto-userns-user).
	autoUser = "containers"

	// Without such a line, the upper half of all IDs; 4294967295 is not one.
	fallbackStart = 2147483647
	fallbackEnd   = 4294967295
)

// idRange are the IDs from start up to, not including, end.
type idRange struct{ start, end uint64 }

// parseSubID reads the ranges of a user from a file in the form of subuid(5).
func parseSubID(r io.Reader, name, user string) ([]idRange, error) {
	var ranges []idRange
	scanner := bufio.NewScanner(r)
	for line := 1; scanner.Scan(); line++ {
		fields := strings.Split(strings.TrimSpace(scanner.Text()), ":")
		if fields[0] != user {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("%s line %d: want %s:START:COUNT", name, line, user)
		}
		start, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%s line %d: %w", name, line, err)
		}
		ranges = append(ranges, idRange{start, min(start+count, fallbackEnd)})
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return ranges, nil
}

// autoRanges are the IDs that both files, in the form of subuid(5) and
// subgid(5), give to autoUser, or the fallback.
func autoRanges(uidFile, gidFile string) ([]idRange, error) {
	var sides [2][]idRange
	for i, name := range []string{uidFile, gidFile} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read ranges of %s: %w", autoUser, err)
		}
		sides[i], err = parseSubID(f, name, autoUser)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	if len(sides[0])+len(sides[1]) == 0 {
		return []idRange{{fallbackStart, fallbackEnd}}, nil
	}
	return intersect(sides[0], sides[1]), nil
}

func intersect(a, b []idRange) []idRange {
	var both []idRange
	for _, x := range a {
		for _, y := range b {
			if r := (idRange{max(x.start, y.start), min(x.end, y.end)}); r.start < r.end {
				both = append(both, r)
			}
		}
	}
	return both
}

// usedRanges are the host IDs of all containers in the store.
func usedRanges(store storage.Store) ([]idRange, error) {
	containers, err := store.Containers()
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var used []idRange
	for i := range containers {
		for _, m := range slices.Concat(containers[i].UIDMap, containers[i].GIDMap) {
			used = append(used, idRange{uint64(m.HostID), uint64(m.HostID) + uint64(m.Size)})
		}
	}
	return used, nil
}

// ownRanges are the IDs of this user namespace but for its root's, from files in
// the form of /proc/self/uid_map (user_namespaces(7)).
func ownRanges(uidFile, gidFile string) ([]idRange, error) {
	var sides [2][]idRange
	for i, name := range []string{uidFile, gidFile} {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read the IDs of this user namespace: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			var start, host, count uint64
			if _, err := fmt.Sscan(line, &start, &host, &count); err != nil {
				return nil, fmt.Errorf("%s: %q: %w", name, line, err)
			}
			sides[i] = append(sides[i], idRange{max(start, 1), min(start+count, fallbackEnd)})
		}
	}
	return intersect(sides[0], sides[1]), nil
}

// freeRange finds the first size IDs of available that are not used.
func freeRange(available, used []idRange, size uint32) (uint32, error) {
	if size == 0 {
		return 0, errors.New("a user namespace of 0 IDs cannot be: use --auto-size with at least 1")
	}
	available, used = slices.Clone(available), slices.Clone(used)
	byStart := func(a, b idRange) int { return cmp.Compare(a.start, b.start) }
	slices.SortFunc(available, byStart)
	slices.SortFunc(used, byStart)
	for _, a := range available {
		start := a.start
		for _, u := range used {
			if u.end > start && u.start < start+uint64(size) {
				start = u.end
			}
		}
		if start+uint64(size) <= a.end {
			return uint32(start), nil
		}
	}
	return 0, fmt.Errorf("no %d free IDs for user %s: remove containers, or add a range to /etc/subuid and /etc/subgid, for example %s:%d:%d",
		size, autoUser, autoUser, fallbackStart, fallbackEnd-fallbackStart)
}

// autoMapping picks a mapping of container IDs 0 to size-1 that no container
// of the store has.
func autoMapping(store storage.Store, size uint32) (idshift.Mapping, error) {
	read, uidFile, gidFile := autoRanges, "/etc/subuid", "/etc/subgid"
	if unshare.IsRootless() {
		read, uidFile, gidFile = ownRanges, "/proc/self/uid_map", "/proc/self/gid_map"
	}
	available, err := read(uidFile, gidFile)
	if err != nil {
		return idshift.Mapping{}, err
	}
	used, err := usedRanges(store)
	if err != nil {
		return idshift.Mapping{}, err
	}
	start, err := freeRange(available, used, size)
	if err != nil {
		return idshift.Mapping{}, err
	}
	extents := []idshift.Extent{{HostID: start, Size: size}}
	return idshift.NewMapping(extents, extents)
}
