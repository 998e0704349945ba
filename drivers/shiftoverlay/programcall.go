package shiftoverlay

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	mounts "github.com/shiftoverlay/shiftoverlay/internal/mount"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// ProgramCall is what the storage library's overlay driver asks of a program
// that mounts in its place (mount_program in storage.conf): it is called as
//
//	PROGRAM -o OPTIONS TARGET
//
// in the driver's home, the folder of its layers (drivers/overlay/overlay.go of
// containers/storage).
type ProgramCall struct {
	// Home is the driver's home, Target where to mount.
	Home, Target string
	// Lowers are folders, uppermost first.
	Lowers []string
	// Upper and Work are empty for a mount that cannot be written.
	Upper, Work string
	// Mapping is the container's; nil for a mount without one.
	Mapping *idshift.Mapping
	// Label is the SELinux context of all files, "" for none.
	Label string
	// Options are the others, for the kernel.
	Options ovl.Options

	lowerdir string // as it was given
}

// layerDir is the folder of the layer that is mounted.
func (c *ProgramCall) layerDir() string {
	if c.Upper != "" {
		return filepath.Dir(c.Upper)
	}
	return filepath.Dir(c.Lowers[0])
}

// OfLayer tells whether the call is about a layer of a store. podman and buildah
// also have volumes mounted (pkg/overlay of buildah): then MountFolders is to do it.
func (c *ProgramCall) OfLayer() bool {
	dir := c.layerDir()
	_, err := os.Stat(filepath.Join(dir, "link"))
	_, linksErr := os.Stat(filepath.Join(filepath.Dir(dir), "l"))
	return err == nil && linksErr == nil
}

// MountFolders mounts a call's folders as they are. The error may be a
// HandOverError.
func (c *ProgramCall) MountFolders() error {
	if err := rootOnly(); err != nil {
		return err
	}
	if c.Mapping != nil {
		return &HandOverError{"folders that are no layers cannot be mounted with a mapping"}
	}
	options := slices.DeleteFunc(slices.Clone(c.Options), notKernels)
	err := mounts.Classic{Lowers: []string{c.lowerdir}, Upper: c.Upper, Work: c.Work, Label: c.Label, Flags: c.flags(), Options: options}.Mount(c.Target)
	if err == nil && slices.Contains(c.Options, "private") {
		err = os.NewSyscallError("mount", unix.Mount("", c.Target, "", unix.MS_PRIVATE, ""))
	}
	return err
}

// flags are those of mount(2). The library takes those of mountopt out before it
// calls a mount program; fuse-overlayfs, too, mounts without devices.
func (c *ProgramCall) flags() uintptr {
	if c.Upper == "" {
		return unix.MS_NODEV | unix.MS_RDONLY
	}
	return unix.MS_NODEV
}

// notKernels tells whether an option is none of the kernel's overlay.
func notKernels(option string) bool {
	key, _, _ := strings.Cut(option, "=")
	return slices.Contains(otherOptions, key) || isPrivate(option)
}

// otherOptions are options of fuse-overlayfs that the kernel's overlay does not
// know and that mean nothing here (fuse-overlayfs(1)), and one of mount(8).
var otherOptions = []string{
	"allow_other", "clone_fd", "debug", "default_permissions", "fast_ino", "fsync", "max_idle_threads", "max_threads", "max_write",
	"noacl", "noxattrs", "plugins", "private", "static_nlink", "threaded", "timeout", "writeback",
}

// ParseProgramCall reads the arguments of a call. Paths are made absolute.
func ParseProgramCall(home, options, target string) (*ProgramCall, error) {
	abs := func(path string) string {
		if filepath.IsAbs(path) {
			return path
		}
		return home + "/" + path
	}
	c := &ProgramCall{Home: home, Target: abs(target)}
	ids := map[string]idshift.Extents{}
	for _, o := range splitQuoted(options) {
		key, val, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "lowerdir":
			c.lowerdir = val
			for _, l := range ovl.SplitLowers(val) {
				c.Lowers = append(c.Lowers, abs(l))
			}
		case "upperdir":
			c.Upper = abs(val)
		case "workdir":
			c.Work = abs(val)
		case "context":
			c.Label = val
		case "uidmapping", "gidmapping":
			ids[key[:3]], err = programExtents(val)
		case "squash_to_uid", "squash_to_gid":
			ids[key[len("squash_to_"):]], err = programExtents("0:" + val + ":1")
		case "xattr_permissions":
			return nil, errors.New("force_mask in storage.conf is for file systems of another kind: leave it out")
		default:
			c.Options = append(c.Options, o)
		}
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", o, err)
		}
	}
	if len(c.Lowers) == 0 || (c.Upper == "") != (c.Work == "") {
		return nil, fmt.Errorf("options %q: want lowerdir, and upperdir and workdir or neither", options)
	}
	if len(ids) > 0 {
		for _, side := range []string{"uid", "gid"} {
			if ids[side] == nil {
				ids[side] = everyID
			}
		}
		m, err := idshift.NewMapping(ids["uid"], ids["gid"])
		if err != nil {
			return nil, err
		}
		c.Mapping = &m
	}
	return c, nil
}

// splitQuoted splits mount options at commas outside of double quotes, with
// which the library surrounds SELinux contexts, and takes the quotes away.
func splitQuoted(options string) []string {
	var out []string
	var one strings.Builder
	quoted := false
	end := func() {
		if one.Len() > 0 {
			out = append(out, one.String())
		}
		one.Reset()
	}
	for _, r := range []byte(options) {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ',' && !quoted:
			end()
		default:
			one.WriteByte(r)
		}
	}
	end()
	return out
}

// programExtents reads "CONTAINER:HOST:SIZE[:CONTAINER:HOST:SIZE...]", before
// which the library writes one more colon.
func programExtents(text string) (idshift.Extents, error) {
	fields := strings.Split(strings.TrimPrefix(text, ":"), ":")
	if len(fields)%3 != 0 {
		return nil, errors.New("want CONTAINER:HOST:SIZE")
	}
	var out idshift.Extents
	var n [3]uint32
	for i, f := range fields {
		id, err := strconv.ParseUint(f, 10, 32)
		if err != nil || id > math.MaxUint32 {
			return nil, fmt.Errorf("%q is no 32-bit ID", f)
		}
		n[i%3] = uint32(id)
		if i%3 == 2 {
			out = append(out, idshift.Extent{ContainerID: n[0], HostID: n[1], Size: n[2]})
		}
	}
	return out, nil
}
