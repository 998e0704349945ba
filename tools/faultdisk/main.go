// Faultdisk shows an image as a file of a FUSE file system, to be put under a loop
// device: a disk that keeps a log of what is written to it, in its order, and that
// fails when it is told to.
//
//	faultdisk FOLDER IMAGE [LOG]
//
// shows IMAGE as FOLDER/disk until standard input ends. It reads commands from
// standard input, one a line, and answers each with a line "ok", or with what is
// wrong:
//
//	fail write 5    from now on writes fail with this error number; 0: no more
//	fail read 5     the same for reads
//	fail flush 5    and for flushes of the disk's cache (fsync(2) of the file)
//	writes          answers "ok N", the number of records in the log
//
// The log is a sequence of records: kind (1 a write, 2 a flush that has ended),
// length of the data, offset, each 8 bytes, little endian, and then the data.
// A write that has failed is not in it.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "faultdisk:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 && len(args) != 3 {
		return fmt.Errorf("usage: faultdisk FOLDER IMAGE [LOG]")
	}
	image, err := os.OpenFile(args[1], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	d := &disk{image: image}
	if len(args) == 3 {
		f, err := os.OpenFile(args[2], os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		d.log = f
	}
	root := &fs.Inode{}
	_, err = fs.Mount(args[0], root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, d, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "faultdisk", Name: "faultdisk", MaxWrite: 1 << 20},
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", args[0], err)
	}
	// Whoever mounted the disk has it unmounted before; what is left ends with
	// the connection.
	return d.obey(in, out)
}

// disk is the file.
type disk struct {
	fs.Inode
	image *os.File

	failWrite, failRead, failFlush atomic.Int32

	mu      sync.Mutex // of the log, and the order of writes
	log     *os.File
	records int
}

var (
	_ fs.NodeOpener    = (*disk)(nil)
	_ fs.NodeGetattrer = (*disk)(nil)
	_ fs.NodeReader    = (*disk)(nil)
	_ fs.NodeWriter    = (*disk)(nil)
	_ fs.NodeFsyncer   = (*disk)(nil)
	_ fs.NodeSetattrer = (*disk)(nil)
)

// Open implements fs.NodeOpener. Nothing is cached: each read and write gets here.
func (d *disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Getattr implements fs.NodeGetattrer.
func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	st, err := d.image.Stat()
	if err != nil {
		return fs.ToErrno(err)
	}
	out.Mode, out.Size, out.Blocks = syscall.S_IFREG|0o600, uint64(st.Size()), uint64(st.Size()/512)
	return 0
}

// Setattr implements fs.NodeSetattrer: times are no matter, and the size stays.
func (d *disk) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, f, out)
}

// Read implements fs.NodeReader.
func (d *disk) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if e := d.failRead.Load(); e != 0 {
		return nil, syscall.Errno(e)
	}
	n, err := d.image.ReadAt(dest, off)
	if err != nil && err != io.EOF {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// Write implements fs.NodeWriter.
func (d *disk) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if e := d.failWrite.Load(); e != 0 {
		return 0, syscall.Errno(e)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.image.WriteAt(data, off); err != nil {
		return 0, fs.ToErrno(err)
	}
	if err := d.note(1, data, off); err != nil {
		return 0, syscall.EIO
	}
	return uint32(len(data)), 0
}

// Fsync implements fs.NodeFsyncer. Every write that has been answered is in the
// log already.
func (d *disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if e := d.failFlush.Load(); e != 0 {
		return syscall.Errno(e)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.note(2, nil, 0); err != nil {
		return syscall.EIO
	}
	return 0
}

// note writes a record.
func (d *disk) note(kind uint64, data []byte, off int64) error {
	d.records++
	if d.log == nil {
		return nil
	}
	b := binary.LittleEndian.AppendUint64(nil, kind)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	_, err := d.log.Write(append(b, data...))
	return err
}

// obey carries out commands until there are no more.
func (d *disk) obey(in io.Reader, out io.Writer) error {
	fmt.Fprintln(out, "ok")
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var what string
		var errno int32
		n, _ := fmt.Sscanf(lines.Text(), "fail %s %d", &what, &errno)
		switch {
		case lines.Text() == "writes":
			d.mu.Lock()
			fmt.Fprintln(out, "ok", d.records)
			d.mu.Unlock()
			continue
		case n == 2 && what == "write":
			d.failWrite.Store(errno)
		case n == 2 && what == "read":
			d.failRead.Store(errno)
		case n == 2 && what == "flush":
			d.failFlush.Store(errno)
		default:
			fmt.Fprintf(out, "unknown command %q\n", lines.Text())
			continue
		}
		fmt.Fprintln(out, "ok")
	}
	return lines.Err()
}
