package mount

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxData is the size from which on mount(2) takes no data: a page.
const maxData = 4096

// Classic is an overlay of folders for mount(2), which every kernel has. Folders
// may be named relative to the current directory, which saves room.
type Classic struct {
	// Lowers are uppermost first. One may be a list already, in the form of the option.
	Lowers []string
	// Upper and Work make the overlay writable; both or neither.
	Upper, Work string
	// Options are further options of overlay; Label is the SELinux context of
	// all its files, "" for none.
	Options []string
	Label   string
	// Flags are those of mount(2).
	Flags uintptr
}

// Mount mounts the overlay at a folder.
func (c Classic) Mount(target string) error {
	if len(c.Lowers) == 1 && c.Upper == "" && !strings.Contains(c.Lowers[0], ":") {
		return bind(c.Lowers[0], target, c.Flags)
	}
	options := []string{"lowerdir=" + strings.Join(c.Lowers, ":")}
	if c.Upper != "" {
		options = append(options, "upperdir="+c.Upper, "workdir="+c.Work)
	}
	options = append(options, c.Options...)
	if c.Label != "" {
		options = append(options, `context="`+c.Label+`"`)
	}
	data := strings.Join(options, ",")
	if len(data) >= maxData {
		return fmt.Errorf("mount overlay at %s: the options for %d lowers have %d bytes, and the kernel takes fewer than %d: squash the image", target, len(c.Lowers), len(data), maxData)
	}
	if err := unix.Mount("overlay", target, "overlay", c.Flags, data); err != nil {
		return fmt.Errorf("mount overlay at %s with %s: %w", target, data, err)
	}
	return nil
}

// bind shows a single folder, of which overlay makes no mount, at target.
func bind(dir, target string, flags uintptr) error {
	if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind mount of " + dir, Path: target, Err: err}
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		return &os.PathError{Op: "remount", Path: target, Err: err}
	}
	return nil
}
