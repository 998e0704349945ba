// Package adopt gives a container store to another graph driver by name. The
// storage library names a store's folders after the driver (store.go of
// containers/storage: "overlay", "overlay-layers", "overlay-images",
// "overlay-containers", in graph root and run root), so a store changes hands by
// renames, without a copy.
//
// A journal in the graph root says what is under way as long as it is; every
// step may be done again, and each leaves the store such that the next call
// finishes, or goes back. Nothing but the caches of shifted lowers and empty
// folders is removed.
package adopt
