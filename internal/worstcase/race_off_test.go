//go:build !race

package worstcase_test

// fileSystems are those of TestEngines.
var fileSystems = []string{"ext4", "xfs", "btrfs"}
