// Package podmandb changes the graph driver in podman's database, and the paths
// of containers that follow from its name. podman refuses a store whose driver is
// not the one that its database notes, and has no command for a change
// (ValidateDBConfig in libpod/sqlite_state.go and checkRuntimeConfig in
// libpod/boltdb_state_internal.go of podman 5.6.2).
package podmandb
