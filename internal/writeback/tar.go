package writeback

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// Whiteouts in a layer's tar (OCI image specification, layer.md, section
// "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// paxXattr is the prefix of the records that hold extended attributes, as star
// and GNU tar write them.
const paxXattr = "SCHILY.xattr."

// noACL is the value that removes an ACL: a header without entries
// (include/uapi/linux/posix_acl_xattr.h; vfs_set_acl in fs/posix_acl.c).
const noACL = "\x02\x00\x00\x00"

// Tar writes the change as an uncompressed layer. The bytes depend on the
// layer only, not on the time of day.
func Tar(ctx context.Context, c Change, w io.Writer) error {
	tw := tar.NewWriter(w)
	err := c.Scan(ctx, func(it *Item) error {
		if err := writeItem(ctx, tw, it); err != nil {
			return fmt.Errorf("archive %s: %w", it.Path, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	return nil
}

// writeItem writes one changed path.
func writeItem(ctx context.Context, tw *tar.Writer, it *Item) error {
	switch it.Kind {
	case Deleted:
		dir, name := path.Split(it.Path)
		return tw.WriteHeader(whiteout(dir + whiteoutPrefix + name))
	case Emptied:
		if it.Implied {
			return nil
		}
		return tw.WriteHeader(whiteout(path.Join(it.Path, whiteoutOpaque)))
	case Modified, Added:
	}
	hdr := header(it)
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeReg || hdr.Size == 0 {
		return nil
	}
	fd, err := it.Open()
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), it.Path)
	defer f.Close()
	// A file that grows while it is read has the size that was announced.
	n, err := io.Copy(tw, &contextReader{ctx: ctx, r: io.LimitReader(f, hdr.Size)})
	if err == nil && n < hdr.Size {
		err = fmt.Errorf("file became shorter while it was read: %w", io.ErrUnexpectedEOF)
	}
	return err
}

func whiteout(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
}

// header makes the header of a changed path.
func header(it *Item) *tar.Header {
	st := &it.Entry.Stat
	h := &tar.Header{
		Name:       it.Path,
		Mode:       int64(st.Mode & 0o7777),
		Uid:        int(st.Uid),
		Gid:        int(st.Gid),
		ModTime:    time.Unix(st.Mtim.Sec, st.Mtim.Nsec), //nolint:unconvert // 32 bits on some platforms
		PAXRecords: xattrRecords(it),
		Format:     tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		h.Linkname = it.Entry.Target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		h.Typeflag = tar.TypeReg
		h.Size = st.Size
	}
	if it.LinkTo != "" {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, it.LinkTo, 0
	}
	return h
}

// xattrRecords returns the attributes that belong into an image: those of
// programs (user), file capabilities, IMA signatures and POSIX ACLs. A record
// cannot hold a name with "=". An ACL that unpacking would inherit and the
// original does not have gets a record that removes it.
func xattrRecords(it *Item) map[string]string {
	out := make(map[string]string)
	if it.InheritsACL && it.LinkTo == "" && it.Entry.Stat.Mode&unix.S_IFMT != unix.S_IFLNK {
		out[paxXattr+idshift.ACLAccess] = noACL
		if it.Entry.IsDir() {
			out[paxXattr+idshift.ACLDefault] = noACL
		}
	}
	for _, x := range it.Entry.Xattrs {
		switch {
		case strings.Contains(x.Name, "="):
		case x.Name == idshift.Capability, x.Name == "security.ima",
			x.Name == idshift.ACLAccess, x.Name == idshift.ACLDefault,
			strings.HasPrefix(x.Name, "user.") && !strings.HasPrefix(x.Name, "user.overlay."):
			out[paxXattr+x.Name] = string(x.Value)
		}
	}
	return out
}

// contextReader ends reading when the context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Size returns the bytes of file content that the change adds. A file of which
// it holds the metadata only counts nothing, a hard link once.
func Size(ctx context.Context, c Change) (int64, error) {
	var n int64
	err := c.Scan(ctx, func(it *Item) error {
		if it.IsRegular() && (it.InUpper || c.Against != nil) && !it.MetadataOnly {
			n += it.Entry.Stat.Size
		}
		return nil
	})
	return n, err
}
