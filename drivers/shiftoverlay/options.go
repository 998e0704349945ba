package shiftoverlay

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/storage/pkg/parsers"

	"github.com/shiftoverlay/shiftoverlay/internal/config"
	"github.com/shiftoverlay/shiftoverlay/internal/ovl"
)

// privatePrefix marks mount options that are for this driver: the fstab
// convention for options of user space, which the kernel never sees.
const privatePrefix = "x-shiftoverlay."

// driverOptions is what the storage library passes to the driver, sorted out.
type driverOptions struct {
	// others are the options for the embedded driver but for mountopt and
	// additional image stores.
	others []string
	// stores are the folders of additional image stores.
	stores []string
	// mount are the mount options without private ones; private are those.
	mount   ovl.Options
	private [][2]string
	// mountProgram is the program that mounts in overlay's place, if any.
	mountProgram string
}

// parseDriverOptions reads options in every spelling in which the storage
// library passes them: with the prefix "shiftoverlay.", "overlay.",
// "overlay2.", "." or none. The prefix of this driver's name wins over a bare
// key, a bare key over overlay's.
func parseDriverOptions(options []string) (driverOptions, error) {
	type option struct {
		rank     int
		key, val string
	}
	var all []option
	for _, text := range options {
		key, val, err := parsers.ParseKeyValueOpt(text)
		if err != nil {
			return driverOptions{}, fmt.Errorf("storage option %q: %w", text, err)
		}
		o := option{key: strings.ToLower(key), val: val, rank: 1}
		for prefix, rank := range map[string]int{driverName + ".": 2, "overlay.": 0, "overlay2.": 0, ".": 1} {
			if k, ok := strings.CutPrefix(o.key, prefix); ok {
				o.key, o.rank = k, rank
				break
			}
		}
		all = append(all, o)
	}
	slices.SortStableFunc(all, func(a, b option) int { return a.rank - b.rank })
	var d driverOptions
	for _, o := range all {
		switch o.key {
		case "mountopt":
			d.mount, d.private = ovl.ParseOptions(o.val).Take(privatePrefix)
		case "imagestore", "additionalimagestore":
			for s := range strings.SplitSeq(o.val, ",") {
				if s != "" && !slices.Contains(d.stores, s) {
					d.stores = append(d.stores, s)
				}
			}
		case "mount_program":
			d.mountProgram = o.val
			d.others = append(d.others, "overlay."+o.key+"="+o.val)
		default:
			d.others = append(d.others, "overlay."+o.key+"="+o.val)
		}
	}
	return d, nil
}

// configure applies private mount options to the settings of
// shiftoverlay.conf.
func (d driverOptions) configure(c config.Config) (config.Config, error) {
	for _, p := range d.private {
		if err := c.Apply(p[0], p[1]); err != nil {
			return c, fmt.Errorf("mount option %s%s: %w", privatePrefix, p[0], err)
		}
	}
	return c, nil
}

// metacopyConflict returns why metacopy=on cannot be added to the mount
// options, "" if it can or is there already (overlayfs.rst: metacopy implies
// redirect_dir=on and excludes nfs_export and userxattr).
func (d driverOptions) metacopyConflict() string {
	for name, bad := range map[string][]string{
		"metacopy":     {"off"},
		"redirect_dir": {"off", "follow", "nofollow"},
		"nfs_export":   {"on"},
		"userxattr":    {""},
	} {
		if v, ok := d.mount.Value(name); ok && slices.Contains(bad, v) {
			if v != "" {
				name += "=" + v
			}
			return fmt.Sprintf("mountopt in storage.conf has %s, which excludes metacopy=on", name)
		}
	}
	return ""
}

// rootlessConflict returns which mount option the kernel refuses beside userxattr,
// without which there is no overlay for the root of a user namespace
// (fs/overlayfs/params.c, ovl_fs_params_verify).
func (d driverOptions) rootlessConflict() string {
	for _, name := range []string{"metacopy", "redirect_dir"} {
		if v, _ := d.mount.Value(name); v == "on" {
			return name + "=on"
		}
	}
	return ""
}

// forOverlay returns the options for the embedded driver.
func (d driverOptions) forOverlay(stores []string) []string {
	out := slices.Clone(d.others)
	if len(d.mount) > 0 {
		out = append(out, "overlay.mountopt="+d.mount.String())
	}
	for _, s := range stores {
		out = append(out, "overlay.imagestore="+s)
	}
	return out
}

// usesMountProgram tells whether overlay will mount through a program, because
// it is told to or because the store was used with one before (overlay's own
// flag file in its home).
func (d driverOptions) usesMountProgram(home string) bool {
	if d.mountProgram != "" {
		return true
	}
	b, err := os.ReadFile(filepath.Join(home, ".has-mount-program"))
	return err == nil && strings.TrimSpace(string(b)) == "true"
}
