// Package shiftoverlay is a graph driver for containers/storage: overlay, with
// a fast way to show an image to a container in a user namespace of its own.
// A blank import registers it under the name "shiftoverlay"; storage.conf
// selects it with driver = "shiftoverlay".
//
// A mount without an ID mapping is a mount of the embedded overlay driver. A
// mount with one gets, as its uppermost lower, the image's metadata with
// shifted owners (packages internal/shifter and internal/engine), or is left
// to overlay's idmapped lowers where the kernel has them. Whichever it is, the
// mapping is recorded beside the layer, so that what the container wrote can
// be translated back (Diff, Changes, DiffSize).
package shiftoverlay
