//go:build torture

package torture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// diskEnv names the program of tools/faultdisk.
const diskEnv = "TORTURE_FAULTDISK"

// disk is a file system on a disk that keeps a log and can be told to fail: a file
// of tools/faultdisk under a loop device.
type disk struct {
	t *testing.T
	// at is where the file system is mounted; image is the disk as it is, base as it
	// was in the beginning, and log what was written.
	at, image, base, log string
	fstype               string
	program              *exec.Cmd
	in                   io.WriteCloser
	out                  *bufio.Reader
}

// newDisk makes a disk with an empty file system and mounts it.
func newDisk(t *testing.T, fstype string) *disk {
	t.Helper()
	program := os.Getenv(diskEnv)
	require.NotEmpty(t, program, diskEnv+" names the program of tools/faultdisk")
	dir := t.TempDir()
	d := &disk{t: t, fstype: fstype, at: dir + "/fs", image: dir + "/image", base: dir + "/base", log: dir + "/log"}
	size, mkfs := "96M", "mkfs.ext4 -q -m 0 -N 8000 -J size=8 -E lazy_itable_init=0,nodiscard"
	if fstype == "xfs" {
		size, mkfs = "300M", "mkfs.xfs -q -K"
	}
	shell(t, "mkdir "+d.at+" "+dir+"/disk; truncate -s "+size+" "+d.image+" && "+mkfs+" "+d.image+" && cp --sparse=always "+d.image+" "+d.base)
	d.program = exec.Command(program, dir+"/disk", d.image, d.log)
	d.program.Stderr = os.Stderr
	var err error
	d.in, err = d.program.StdinPipe()
	require.NoError(t, err)
	out, err := d.program.StdoutPipe()
	require.NoError(t, err)
	d.out = bufio.NewReader(out)
	require.NoError(t, d.program.Start())
	t.Cleanup(func() {
		d.unmount()
		_ = unix.Unmount(dir+"/disk", unix.MNT_DETACH)
		_ = d.in.Close()
		_ = d.program.Wait()
	})
	d.answer()
	d.mount(dir + "/disk/disk")
	return d
}

// mount mounts the file system of an image.
func (d *disk) mount(image string) {
	d.t.Helper()
	options := "loop"
	if d.fstype == "xfs" {
		options += ",nouuid"
	}
	shell(d.t, "mount -t "+d.fstype+" -o "+options+" "+image+" "+d.at)
}

// unmount unmounts it, with whatever is mounted in it.
func (d *disk) unmount() {
	d.t.Helper()
	shell(d.t, "while read -r _ at _; do echo \"$at\"; done </proc/mounts | grep ^"+d.at+"/ | tac | xargs -r -n 1 umount -l; true")
	for range 50 {
		err := unix.Unmount(d.at, 0)
		if errors.Is(err, unix.EINVAL) {
			return
		}
		if errors.Is(err, unix.EBUSY) {
			shell(d.t, "sleep 0.05")
		}
	}
	d.t.Errorf("%s stays busy", d.at)
	_ = unix.Unmount(d.at, unix.MNT_DETACH)
}

// tell gives the disk a command and returns its answer.
func (d *disk) tell(command string) string {
	d.t.Helper()
	_, err := fmt.Fprintln(d.in, command)
	require.NoError(d.t, err)
	return d.answer()
}

func (d *disk) answer() string {
	d.t.Helper()
	line, err := d.out.ReadString('\n')
	require.NoError(d.t, err)
	require.True(d.t, strings.HasPrefix(line, "ok"), line)
	return strings.TrimSpace(strings.TrimPrefix(line, "ok"))
}

// record is one of the disk's log; data is nil for a flush.
type record struct {
	off  int64
	data []byte
}

// records reads the disk's log.
func (d *disk) records() []record {
	d.t.Helper()
	f, err := os.Open(d.log)
	require.NoError(d.t, err)
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	var out []record
	for {
		var head [3]uint64
		err := binary.Read(r, binary.LittleEndian, &head)
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(d.t, err)
		var x record
		if head[0] == 1 {
			x = record{int64(head[2]), make([]byte, head[1])}
			_, err = io.ReadFull(r, x.data)
			require.NoError(d.t, err)
		}
		out = append(out, x)
	}
}

// replay applies records to an image.
func replay(t *testing.T, image string, list []record) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	for _, x := range list {
		if x.data != nil {
			_, err := f.WriteAt(x.data, x.off)
			require.NoError(t, err)
		}
	}
}

// anyFile returns one of the files below a folder, at random; "" if there is none.
func anyFile(a *area, dir string) string {
	name := ""
	n := 0
	_ = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if n++; a.rand.IntN(n) == 0 {
				name = p
			}
		}
		return nil
	})
	return name
}
