//go:build race

package worstcase_test

// fileSystems are those of TestEngines. With the race detector, which looks at
// threads and not at file systems, one must do.
var fileSystems = []string{"ext4"}
