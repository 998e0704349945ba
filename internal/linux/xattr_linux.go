package linux

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"
)

// XattrBuffer holds the space that reading extended attributes needs, to be
// used again for the next file. The zero value is ready. It is not safe for
// concurrent use.
type XattrBuffer struct {
	names, value []byte
}

// fill calls read with a growing buffer until the result fits.
func fill(buf *[]byte, read func([]byte) (int, error)) ([]byte, error) {
	if len(*buf) == 0 {
		*buf = make([]byte, 4096)
	}
	for {
		n, err := read(*buf)
		switch {
		case err == nil:
			return (*buf)[:n], nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ERANGE) && len(*buf) < 1<<20:
			*buf = make([]byte, 4*len(*buf))
		default:
			return nil, err
		}
	}
}

// Llist calls yield with the name of each extended attribute of path, which
// is not followed if it is a symbolic link. A file system without extended
// attributes has none. The name may be kept, being a copy.
func (b *XattrBuffer) Llist(path string, yield func(name string) error) error {
	names, err := fill(&b.names, func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	return eachName(names, path, err, yield)
}

// Flist is Llist for an open file; name is used in the error only.
func (b *XattrBuffer) Flist(fd int, name string, yield func(name string) error) error {
	names, err := fill(&b.names, func(p []byte) (int, error) { return unix.Flistxattr(fd, p) })
	return eachName(names, name, err, yield)
}

func eachName(names []byte, path string, err error, yield func(name string) error) error {
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return pathError("listxattr", path, err)
	}
	for len(names) > 0 {
		i := bytes.IndexByte(names, 0)
		if i < 0 {
			i = len(names) - 1
		}
		if err := yield(string(names[:i])); err != nil {
			return err
		}
		names = names[i+1:]
	}
	return nil
}

// Lget returns a copy of an extended attribute's value. A missing attribute
// is an error that is unix.ENODATA.
func (b *XattrBuffer) Lget(path, name string) ([]byte, error) {
	v, err := fill(&b.value, func(p []byte) (int, error) { return unix.Lgetxattr(path, name, p) })
	if err != nil {
		return nil, pathError("getxattr "+name, path, err)
	}
	return bytes.Clone(v), nil
}

// Fget is Lget for an open file; file is used in the error only.
func (b *XattrBuffer) Fget(fd int, file, name string) ([]byte, error) {
	v, err := fill(&b.value, func(p []byte) (int, error) { return unix.Fgetxattr(fd, name, p) })
	if err != nil {
		return nil, pathError("getxattr "+name, file, err)
	}
	return bytes.Clone(v), nil
}

// Lset sets an extended attribute, not following a symbolic link.
func Lset(path, name string, value []byte) error {
	return pathError("setxattr "+name, path, retry(func() error { return unix.Lsetxattr(path, name, value, 0) }))
}

// Fset sets an extended attribute of an open file; file is used in the error
// only.
func Fset(fd int, file, name string, value []byte) error {
	return pathError("setxattr "+name, file, retry(func() error { return unix.Fsetxattr(fd, name, value, 0) }))
}
