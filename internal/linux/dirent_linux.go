package linux

import (
	"bytes"
	"encoding/binary"
	"errors"

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

// Walk calls visit for an open folder and for each folder below it, from the top
// down, without following symbolic links. names are those of everything else in
// the folder, with their types. A folder that goes meanwhile is left out. Folders
// have to have types, as those that overlay takes as layers do. fd stays open.
func (b *DirBuffer) Walk(fd int, path string, visit func(fd int, path string, names []Dirent) error) error {
	var below []string
	var names []Dirent
	err := b.Read(fd, path, func(name string, typ uint8) error {
		if typ == unix.DT_DIR {
			below = append(below, name)
		} else {
			names = append(names, Dirent{name, typ})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := visit(fd, path, names); err != nil {
		return err
	}
	for _, name := range below {
		child, err := OpenDir(fd, name)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		err = b.Walk(child, path+"/"+name, visit)
		_ = Close(child)
		if err != nil {
			return err
		}
	}
	return nil
}

// Dirent is a name in a directory, and its type (unix.DT_*).
type Dirent struct {
	Name string
	Type uint8
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
