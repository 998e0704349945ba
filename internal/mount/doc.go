// Package mount makes mounts with the kernel's calls of Linux 5.2 and newer
// (fsopen(2), fsconfig(2), fsmount(2), move_mount(2)): of EROFS images and of
// overlays. A mount begins as a Tree, which no mount table shows, and becomes
// visible, if ever, in one step when it is finished.
//
// Overlay keeps a private clone of each of its layers' mounts, so the Tree of
// a lower can be closed as soon as the overlay has been mounted; the file
// system lives as long as the overlay.
package mount
