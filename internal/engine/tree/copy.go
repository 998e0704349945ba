package tree

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
)

// Copy fills the new file dst with the data of the original, sharing it where
// the file system can (FICLONE).
func (f File) Copy(ctx context.Context, dst int) error {
	if f.Stat.Size == 0 {
		return nil
	}
	src, err := f.Open()
	if err != nil {
		return err
	}
	defer linux.Close(src)
	if linux.CloneFile(dst, src, f.Name) == nil {
		return nil
	}
	if err := linux.Ftruncate(dst, f.Name, f.Stat.Size); err != nil {
		return err
	}
	return copySparse(ctx, dst, src, f.Stat.Size)
}

// chunk is the most that is copied between two looks at the context.
const chunk = 64 << 20

// copySparse copies the parts of src that hold data (lseek(2), SEEK_DATA) to
// the same places of dst.
func copySparse(ctx context.Context, dst, src int, size int64) error {
	for off := int64(0); off < size; {
		start, err := unix.Seek(src, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		end := size
		if err != nil {
			start = off // no such seek here: all of it is data
		} else if end, err = unix.Seek(src, start, unix.SEEK_HOLE); err != nil {
			end = size
		}
		if err := copyRange(ctx, dst, src, start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

func copyRange(ctx context.Context, dst, src int, off, end int64) error {
	in, out := off, off
	for in < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(src, &in, dst, &out, int(min(end-in, chunk)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
			return copyBuffered(ctx, dst, src, in, end)
		case err != nil:
			return fmt.Errorf("copy data: %w", err)
		case n == 0:
			return nil // the file ends here
		}
	}
	return nil
}

func copyBuffered(ctx context.Context, dst, src int, off, end int64) error {
	buf := make([]byte, 1<<20)
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Pread(src, buf[:min(int64(len(buf)), end-off)], off)
		if err != nil {
			return fmt.Errorf("read data: %w", err)
		}
		if n == 0 {
			return nil
		}
		for p := buf[:n]; len(p) > 0; {
			m, err := unix.Pwrite(dst, p, off)
			if err != nil {
				return fmt.Errorf("write data: %w", err)
			}
			p, off = p[m:], off+int64(m)
		}
	}
	return nil
}
