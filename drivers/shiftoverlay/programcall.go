package shiftoverlay

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

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
