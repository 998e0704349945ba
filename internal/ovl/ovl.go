// Package ovl holds what is to be known of overlay mounts, as types and
// names: its extended attributes, lists of lowers and mount options. The
// source is Documentation/filesystems/overlayfs.rst and fs/overlayfs of the
// kernel.
package ovl

import (
	"slices"
	"strings"
)

// Overlay's extended attributes, in the namespace that root uses.
const (
	Metacopy = "trusted.overlay.metacopy" // the data is in a lower; the value may hold a digest
	Opaque   = "trusted.overlay.opaque"   // "y": nothing below shows; "x": holds whiteouts of the attribute form
)

// Options is a list of mount options in the order given.
type Options []string

// ParseOptions splits the text of a mountopt setting.
func ParseOptions(text string) Options {
	var o Options
	for s := range strings.SplitSeq(text, ",") {
		if s = strings.TrimSpace(s); s != "" {
			o = append(o, s)
		}
	}
	return o
}

// String joins the options as mount(2) wants them.
func (o Options) String() string { return strings.Join(o, ",") }

// Value returns the value of the last option of a name, and whether there is
// one. An option without "=" has the value "".
func (o Options) Value(name string) (string, bool) {
	for _, s := range slices.Backward(o) {
		if k, v, _ := strings.Cut(s, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// Take removes the options whose names begin with prefix and returns them as
// pairs of name (without prefix) and value.
func (o Options) Take(prefix string) (rest Options, taken [][2]string) {
	for _, s := range o {
		if k, ok := strings.CutPrefix(s, prefix); ok {
			k, v, _ := strings.Cut(k, "=")
			taken = append(taken, [2]string{k, v})
			continue
		}
		rest = append(rest, s)
	}
	return rest, taken
}

// SplitLowers splits a list of lowers as in the lowerdir option. Folders that
// contain a colon are not supported by the classic option.
func SplitLowers(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ":")
}
