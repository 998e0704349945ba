package erofs

import (
	"crypto/sha256"
	"hash/crc32"
	"os"
)

// output writes an image in pieces, in the background: whoever makes the bytes
// does not wait for the disk. The first block comes last, because it names the
// rest.
type output struct {
	f     *os.File
	sums  []uint32 // of each block
	first [blockSize]byte

	work   chan piece
	spare  chan []byte
	result chan error
}

// piece is a number of whole blocks.
type piece struct {
	at  int64
	buf []byte
}

// pieces is how many may wait to be written.
const pieces = 3

func newOutput(f *os.File, size int64) *output {
	o := &output{
		f: f, sums: make([]uint32, size/blockSize),
		work: make(chan piece), spare: make(chan []byte, pieces), result: make(chan error, 1),
	}
	for range pieces {
		o.spare <- nil
	}
	go func() { o.result <- o.run() }()
	return o
}

// run writes all pieces; after an error it takes them and throws them away.
func (o *output) run() error {
	var failed error
	for p := range o.work {
		sumBlocks(o.sums, p.at, p.buf)
		at, buf := p.at, p.buf
		if at == 0 {
			copy(o.first[:], buf)
			at, buf = blockSize, buf[blockSize:]
		}
		if failed == nil {
			_, failed = o.f.WriteAt(buf, at)
		}
		o.spare <- p.buf[:0]
	}
	return failed
}

// finish waits until everything is written.
func (o *output) finish() error {
	close(o.work)
	return <-o.result
}

// sumBlocks notes the checksums of the blocks in b, which is at an offset of
// the image. Header and superblock do not count: they hold what the sums are
// for.
func sumBlocks(sums []uint32, at int64, b []byte) {
	for ; len(b) > 0; at, b = at+blockSize, b[blockSize:] {
		block := b[:blockSize]
		if at == 0 {
			block = block[superOffset+superSize:]
		}
		sums[at/blockSize] = crc32.Checksum(block, castagnoli)
	}
}

// digest is what identifies the content of an image. It protects against
// accidents, as its parts are checksums.
func digest(layout Layout, inodes int64, sums []uint32) [sha256.Size]byte {
	b := make([]byte, 0, 32+4*len(sums))
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, uint32(layout))
	b = le.AppendUint64(b, uint64(inodes))
	for _, s := range sums {
		b = le.AppendUint32(b, s)
	}
	return sha256.Sum256(b)
}

// stream is a part of the image that is made from its beginning to its end.
type stream struct {
	out *output
	at  int64 // of buf in the image, a multiple of the size of a block
	buf []byte
}

// pos is the offset in the image of what comes next.
func (s *stream) pos() int64 { return s.at + int64(len(s.buf)) }

// zeros appends zeros up to an offset in the image.
func (s *stream) zeros(to int64) {
	var none [256]byte
	for n := to - s.pos(); n > 0; n = to - s.pos() {
		s.buf = append(s.buf, none[:min(n, int64(len(none)))]...)
	}
}

// drain hands on whole blocks, when they are many or if all is set.
func (s *stream) drain(all bool) {
	if len(s.buf) < segmentSize && !all {
		return
	}
	n := len(s.buf) &^ (blockSize - 1)
	if n == 0 {
		return
	}
	next := <-s.out.spare
	if next == nil {
		next = make([]byte, 0, segmentSize+64<<10)
	}
	next = append(next, s.buf[n:]...)
	s.out.work <- piece{s.at, s.buf[:n]}
	s.at, s.buf = s.at+int64(n), next
}
