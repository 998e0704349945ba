// Package probe finds out what the kernel and one file system can do, by
// trying it there: versions and names of file systems prove nothing. Answers
// hold for a boot, a kernel and a file system, so they are remembered in a
// file of the run root, which does not survive a reboot.
//
// A probe leaves nothing behind: its overlays are mounted detached (fsopen(2),
// fsmount(2)), in no mount table, and its files are in one temporary folder
// that is removed.
package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/failpoint"
	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// Result is the answer to one question: empty if the thing works, otherwise
// why it does not.
type Result string

// OK tells whether the thing works.
func (r Result) OK() bool { return r == "" }

// result turns an attempt's error into a Result.
func result(err error) Result {
	if err == nil {
		return ""
	}
	return Result(err.Error())
}

// reportVersion changes with what is tried: a report that a former version of
// this package left in this boot is not believed.
const reportVersion = 5

// ReportName is the name of the file for a report. Each version has its own, so
// that programs with several of them, on one store, do not each undo what the
// other has remembered.
var ReportName = fmt.Sprintf("shiftoverlay-probe-%d.json", reportVersion)

// Report is what was found out about one file system on the running kernel.
type Report struct {
	// Version is the version of the report's format.
	Version int `json:"version"`
	// BootID, Kernel and Dev say for what the report holds.
	BootID string `json:"boot_id"`
	Kernel string `json:"kernel"`
	Dev    uint64 `json:"dev"`
	// FileSystem is the type as statfs(2) tells it, in words where known.
	FileSystem string `json:"file_system"`
	// TrustedXattr: attributes trusted.overlay.* can be set.
	TrustedXattr Result `json:"trusted_xattr"`
	// Metacopy: overlay reads the data of a hand-made metadata-only file from
	// the lower below it (mount option metacopy=on).
	Metacopy Result `json:"metacopy"`
	// IdmapMount: the file system allows idmapped mounts. Whether overlay
	// takes them as lowers is for overlay to say.
	IdmapMount Result `json:"idmap_mount"`
	// IdmapACL: overlay maps the IDs in POSIX ACLs, too, of lowers that are
	// idmapped mounts.
	IdmapACL Result `json:"idmap_acl"`
	// IdmapDetached: overlay takes such lowers although they are in no mount
	// table, by descriptor.
	IdmapDetached Result `json:"idmap_detached"`
	// Erofs: overlay takes an EROFS image as a lower, in whatever way.
	Erofs Result `json:"erofs"`
	// ErofsFile: the image is mounted from its file, without a loop device.
	ErofsFile Result `json:"erofs_file"`
	// ErofsData: overlay finds the data of the image's files in data-only
	// lowers.
	ErofsData Result `json:"erofs_data"`
	// ErofsIdmap: overlay takes an idmapped mount of an image, and maps the IDs
	// in its POSIX ACLs, too.
	ErofsIdmap Result `json:"erofs_idmap"`
	// Rootless says for whom the report holds: the root of a user namespace.
	Rootless bool `json:"rootless"`
	// UserMetacopy: overlay finds the data of hand-made metadata-only files with
	// user.overlay.* attributes in data-only lowers (mount option userxattr),
	// under a writable upper; all that there is for the root of a user namespace.
	UserMetacopy Result `json:"user_metacopy"`
	// Reflink: files can share data (FICLONE).
	Reflink Result `json:"reflink"`
}

// Options are what a probe needs from its caller.
type Options struct {
	// Dir is a folder on the file system in question, in which temporary
	// files may be made.
	Dir string
	// Remember is the file that keeps the report for this boot; empty for
	// none. Its folder must exist; [ReportName] is a name for it.
	Remember string
	// UserNS makes a user namespace and returns a descriptor of it, which the
	// probe closes. It is called at most once.
	UserNS func() (int, error)
	// Rootless says that the process is the root of a user namespace.
	Rootless bool
}

// BootID returns the kernel's identifier of this boot
// (/proc/sys/kernel/random/boot_id).
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Run returns what works in o.Dir, from memory if it was found out in this
// boot. An error means that nothing could be tried, such as on a file system
// that is mounted read-only; a thing that was tried and failed is in the
// report. It is safe for concurrent use by several processes.
func Run(o Options) (Report, error) {
	want, err := identity(o.Dir)
	if err != nil {
		return Report{}, err
	}
	want.Rootless = o.Rootless
	if b, err := os.ReadFile(o.Remember); err == nil {
		if got, ok := recall(want, b); ok {
			return got, nil
		}
	}
	dir, err := os.MkdirTemp(o.Dir, ".shiftoverlay-probe-")
	if err != nil {
		return Report{}, fmt.Errorf("probe file system: %w", err)
	}
	failpoint.Hit("probe-folder")
	defer os.RemoveAll(dir)
	r := want
	r.TrustedXattr = result(trustedXattr(dir))
	r.Metacopy = r.TrustedXattr
	if r.Metacopy.OK() {
		r.Metacopy = result(metacopy(dir))
	}
	r.UserMetacopy = result(userMetacopy(dir))
	r.Reflink = result(reflink(dir))
	ns, err := o.openUserNS()
	if err == nil {
		defer linux.Close(ns)
		r.IdmapMount = result(idmapMount(dir, ns))
	} else {
		r.IdmapMount = result(err)
	}
	r.IdmapACL, r.IdmapDetached = r.IdmapMount, r.IdmapMount
	if r.IdmapMount.OK() {
		r.IdmapACL = result(idmapACL(dir, ns))
		r.IdmapDetached = result(idmapDetached(dir, ns))
	}
	r.probeErofs(dir, ns)
	failpoint.Hit("probed")
	r.dropName(dir)
	return r, r.remember(o.Remember)
}

// recall reads a remembered report, if it holds where want does.
func recall(want Report, text []byte) (got Report, ok bool) {
	ok = json.Unmarshal(text, &got) == nil && got.Version == want.Version && got.BootID == want.BootID && got.Kernel == want.Kernel && got.Dev == want.Dev && got.Rootless == want.Rootless
	return got, ok
}

// dropName takes the name of the probe's folder, which is another one each
// time, out of the reasons.
func (r *Report) dropName(dir string) {
	for _, result := range []*Result{
		&r.TrustedXattr, &r.Metacopy, &r.UserMetacopy, &r.IdmapMount, &r.IdmapACL, &r.IdmapDetached, &r.Reflink, &r.Erofs, &r.ErofsFile, &r.ErofsData, &r.ErofsIdmap,
	} {
		*result = Result(strings.ReplaceAll(string(*result), dir+"/", ""))
	}
}

// identity says where a report holds.
func identity(dir string) (Report, error) {
	boot, err := BootID()
	if err != nil {
		return Report{}, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Report{}, os.NewSyscallError("uname", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Report{}, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Report{}, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return Report{
		Version:    reportVersion,
		BootID:     boot,
		Kernel:     unix.ByteSliceToString(uts.Release[:]),
		Dev:        st.Dev,
		FileSystem: fsName(fs.Type),
	}, nil
}

// remember writes the report in one piece; a run root that cannot be written
// costs time, not correctness.
func (r Report) remember(file string) error {
	if file == "" {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode probe report: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".probe-")
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remember probe report: %w", err)
	}
	_, err = f.Write(b)
	failpoint.Hit("probe-report-written")
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("remember probe report: %w", err)
	}
	return nil
}

// fsName puts a magic number of statfs(2) in words.
func fsName(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs",
		unix.F2FS_SUPER_MAGIC: "f2fs", unix.FUSE_SUPER_MAGIC: "fuse", 0x2fc12fc1: "zfs",
	}
	if n, ok := names[magic]; ok {
		return n
	}
	return fmt.Sprintf("file system %#x", magic)
}
