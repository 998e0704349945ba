package linux

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// DirBuffer holds the space that reading a directory needs. The zero value is
// ready. It is not safe for concurrent use.
type DirBuffer struct{ buf []byte }

// Read calls yield with each name of an open directory except "." and "..",
// and with its type (unix.DT_*, DT_UNKNOWN where the file system does not
// tell). name is used in errors only. The layout of the records is that of
// struct linux_dirent64, getdents64(2).
func (b *DirBuffer) Read(fd int, name string, yield func(name string, typ uint8) error) error {
	return b.read(fd, name, func(name string, typ uint8, _ uint64) error { return yield(name, typ) })
}

// ReadInodes is Read with inode numbers; that of a mount point is the folder's
// below the mount.
func (b *DirBuffer) ReadInodes(fd int, name string, yield func(name string, ino uint64)) error {
	return b.read(fd, name, func(name string, _ uint8, ino uint64) error {
		yield(name, ino)
		return nil
	})
}

func (b *DirBuffer) read(fd int, name string, yield func(name string, typ uint8, ino uint64) error) error {
	if b.buf == nil {
		b.buf = make([]byte, 64<<10)
	}
	for {
		n := 0
		err := retry(func() (err error) {
			n, err = unix.Getdents(fd, b.buf)
			return err
		})
		if err != nil {
			return pathError("getdents64", name, err)
		}
		if n == 0 {
			return nil
		}
		for p := b.buf[:n]; len(p) >= 19; {
			reclen := int(binary.NativeEndian.Uint16(p[16:]))
			rec := p[19:reclen]
			if i := bytes.IndexByte(rec, 0); i >= 0 {
				rec = rec[:i]
			}
			if s := string(rec); s != "." && s != ".." {
				if err := yield(s, p[18], binary.NativeEndian.Uint64(p)); err != nil {
					return err
				}
			}
			p = p[reclen:]
		}
	}
}
