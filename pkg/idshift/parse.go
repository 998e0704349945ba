package idshift

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// defaultSize is the size of an extent that podman's --uidmap gives no size.
const defaultSize = "1"

// ParseExtents reads one side of a mapping in every form in which podman, the
// kernel and mount programs write it, and normalises it:
//
//	0:100000:65536              container ID, host ID, size
//	5:1005                      podman's --uidmap without a size: one ID
//	0:100000:65536,70000:0:1    several, separated by commas or line ends
//	0     100000      65536     a line of /proc/PID/uid_map, any blanks
//	:0:100000:65536:70000:0:1   option uidmapping= of a mount program: numbers
//	                            in threes, with or without the leading colon
//
// Numbers are decimal and have at most 32 bits. Blanks around an extent and
// empty lines do not count. podman's relative forms (the flags +, u, g and @ of
// podman-run(1), --uidmap) stand for something that only podman knows and are
// refused. A text that is none of these is an ErrSyntax; further errors are
// those of Extents.Normalize, with extents spelt as in the text.
func ParseExtents(text string) (Extents, error) {
	var list []written
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		for item := range strings.SplitSeq(line, ",") {
			var err error
			if list, err = parseItem(list, strings.TrimSpace(item)); err != nil {
				return nil, err
			}
		}
	}
	return normalize(list)
}

// parseItem appends the extents of one item: what stands between commas.
func parseItem(list []written, item string) ([]written, error) {
	if item == "" {
		return nil, extentErrorf(ErrSyntax, "extent is missing before or after a comma; write container:host:size")
	}
	if podmanFlags(item) {
		return nil, extentErrorf(ErrSyntax,
			"extent %s: the flags +, u, g and @ are podman's own and are resolved by podman; write plain numbers, container:host:size", quote(item))
	}
	if blanks := strings.Fields(item); len(blanks) > 1 {
		if len(blanks) != 3 {
			return nil, extentErrorf(ErrSyntax,
				"extent %s: %d columns, /proc/PID/uid_map has 3: container ID, host ID, size", quote(item), len(blanks))
		}
		return appendExtent(list, [3]string(blanks), strings.Join(blanks, " "))
	}
	rest, wire := strings.CutPrefix(item, ":")
	numbers := strings.Split(rest, ":")
	if len(numbers) == 2 && !wire {
		return appendExtent(list, [3]string{numbers[0], numbers[1], defaultSize}, item)
	}
	if len(numbers)%3 != 0 {
		return nil, extentErrorf(ErrSyntax, "extent %s: %d numbers; write container:host:size", quote(item), len(numbers))
	}
	for ; len(numbers) > 0; numbers = numbers[3:] {
		var err error
		three := [3]string(numbers)
		if list, err = appendExtent(list, three, strings.Join(three[:], ":")); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func appendExtent(list []written, columns [3]string, text string) ([]written, error) {
	w := written{text: text}
	for i, to := range []*uint32{&w.ContainerID, &w.HostID, &w.Size} {
		n, err := strconv.ParseUint(columns[i], 10, 32)
		switch what := [...]string{"container ID", "host ID", "size"}[i]; {
		case errors.Is(err, strconv.ErrRange):
			return nil, extentErrorf(ErrExtentRange, "extent %s: %s %s has more than 32 bits", quote(text), what, quote(columns[i]))
		case err != nil:
			return nil, extentErrorf(ErrSyntax, "extent %s: %s %s is not a decimal number", quote(text), what, quote(columns[i]))
		}
		*to = uint32(n)
	}
	return append(list, w), nil
}

// podmanFlags says whether an item uses the relative forms of podman-run(1),
// --uidmap: "+u0:@1000:1".
func podmanFlags(item string) bool {
	tail := strings.TrimLeft(item, "+ug")
	if len(tail) < len(item) && tail != "" && (isDigit(tail[0]) || tail[0] == '@') {
		return true
	}
	for number := range strings.SplitSeq(item, ":") {
		if len(number) > 1 && number[0] == '@' && isDigit(number[1]) {
			return true
		}
	}
	return false
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// quote quotes what the user wrote; a message does not grow with the input.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return strconv.Quote(s)
}
