// Package version says which version of shiftoverlay a program is.
package version

import "runtime/debug"

// Release is the version that a program was built as, set by the linker (-X);
// empty for a build by hand.
var Release string

// String is Release, or else the version of the module.
func String() string {
	if Release != "" {
		return Release
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}
