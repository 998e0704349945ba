//go:build !torture

package failpoint

// Hit says that something has just been changed, or is about to be. name says
// what, for whoever reads the log.
func Hit(string) {}
