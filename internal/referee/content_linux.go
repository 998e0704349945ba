package referee

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"os"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096
	chunkSize = 256 * blockSize
)

// digest hashes the blocks of a regular file that hold anything but zeros,
// each with its offset. So the digest does not depend on where the file has
// holes, and a sparse file of a terabyte takes no longer than its data.
func (r *reader) digest(dirfd int, name, path string, size int64) (sum [sha256.Size]byte, err error) {
	if r.block == nil {
		r.block = make([]byte, chunkSize)
	}
	fd, err := openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return sum, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	h := sha256.New()
	for offset := int64(0); offset < size; {
		start, end, err := dataAt(fd, offset, size)
		if err != nil {
			return sum, &os.PathError{Op: "seek", Path: path, Err: err}
		}
		if err := r.hashRange(h, fd, start, end); err != nil {
			return sum, &os.PathError{Op: "read", Path: path, Err: err}
		}
		offset = end
	}
	h.Sum(sum[:0])
	return sum, nil
}

// dataAt finds the next range that is not a hole, widened to whole blocks.
// Both ends are size when only a hole is left.
func dataAt(fd int, offset, size int64) (start, end int64, err error) {
	start, err = unix.Seek(fd, offset, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL): // the file system does not know of holes
		return offset, size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	start -= start % blockSize
	if rest := end % blockSize; rest != 0 {
		end += blockSize - rest
	}
	return max(start, offset), min(end, size), nil
}

func (r *reader) hashRange(h hash.Hash, fd int, start, end int64) error {
	for start < end {
		want := min(end-start, chunkSize)
		n, err := readFull(fd, r.block[:want], start)
		if err != nil {
			return err
		}
		for b := 0; b < n; b += blockSize {
			block := r.block[b:min(b+blockSize, n)]
			if !allZero(block) {
				var where [8]byte
				binary.LittleEndian.PutUint64(where[:], uint64(start)+uint64(b))
				h.Write(where[:])
				h.Write(block)
			}
		}
		start += want
	}
	return nil
}

func readFull(fd int, buf []byte, offset int64) (int, error) {
	for done := 0; done < len(buf); {
		var n int
		err := retry(func() (err error) { n, err = unix.Pread(fd, buf[done:], offset+int64(done)); return err })
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, errShrunk
		}
		done += n
	}
	return len(buf), nil
}

var errShrunk = errors.New("file ends before its size: it changed during the scan")

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
