package linux_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/linux"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// open returns a descriptor of a folder for the length of the test.
func open(t *testing.T, dir string) int {
	t.Helper()
	fd, err := linux.OpenDir(unix.AT_FDCWD, dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, linux.Close(fd)) })
	return fd
}

// list reads a folder through DirBuffer.
func list(t *testing.T, b *linux.DirBuffer, dir string) map[string]uint8 {
	t.Helper()
	out := map[string]uint8{}
	require.NoError(t, b.Read(open(t, dir), dir, func(name string, typ uint8) error {
		out[name] = typ
		return nil
	}))
	return out
}

// TestDirBuffer reads folders from empty to larger than the buffer, with one
// buffer.
func TestDirBuffer(t *testing.T) {
	var b linux.DirBuffer
	for _, n := range []int{0, 1, 3000} {
		dir := t.TempDir()
		want := map[string]uint8{}
		for i := range n {
			name := fmt.Sprintf("%0*d", 1+i%255, i)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
			want[name] = unix.DT_REG
		}
		assert.Equal(t, want, list(t, &b, dir), "%d names", n)
	}
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	require.NoError(t, os.Symlink("x", filepath.Join(dir, "l")))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "new\nline\xff"), 0o600))
	assert.Equal(t, map[string]uint8{"d": unix.DT_DIR, "l": unix.DT_LNK, "new\nline\xff": unix.DT_FIFO}, list(t, &b, dir))

	stop := errors.New("stop")
	calls := 0
	err := b.Read(open(t, dir), dir, func(string, uint8) error { calls++; return stop })
	require.ErrorIs(t, err, stop)
	assert.Equal(t, 1, calls)
	err = b.Read(-1, "some/folder", func(string, uint8) error { return nil })
	require.ErrorIs(t, err, unix.EBADF)
	assert.ErrorContains(t, err, "some/folder")
}

// TestReadlinkat reads targets of every length, told a right, a wrong and no
// size.
func TestReadlinkat(t *testing.T) {
	dir := t.TempDir()
	fd := open(t, dir)
	for _, n := range []int{1, 59, 60, 255, 256, 1023} {
		target, name := strings.Repeat("t", n), fmt.Sprint(n)
		require.NoError(t, linux.Symlinkat(target, fd, name))
		for _, size := range []int64{int64(n), 0, -1, 1, int64(n) - 1, int64(n) + 1, 1 << 40} {
			got, err := linux.Readlinkat(fd, name, size)
			require.NoError(t, err)
			assert.Equal(t, target, got, "size %d", size)
		}
	}
	_, err := linux.Readlinkat(fd, "gone", 0)
	require.ErrorIs(t, err, unix.ENOENT)
	var pe *os.PathError
	require.ErrorAs(t, err, &pe)
	assert.Equal(t, "gone", pe.Path)
}

// TestXattrBuffer reads attributes that do not fit the first buffer.
func TestXattrBuffer(t *testing.T) {
	testutil.RequireRoot(t)
	dir := testutil.LoopFS(t, "xfs", 320<<20) // holds values of 64 KiB
	file := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	fd, err := linux.Openat(unix.AT_FDCWD, file, unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer linux.Close(fd)
	want := map[string]string{"user.empty": "", "user.small": "x", "user.page": strings.Repeat("p", 4096), "user.max": strings.Repeat("m", 65536)}
	for i := range 300 {
		want[fmt.Sprintf("user.%s%d", strings.Repeat("n", 200), i)] = "y"
	}
	for name, value := range want {
		require.NoError(t, linux.Lset(file, name, []byte(value)))
	}
	var b linux.XattrBuffer
	read := func(list func(func(string) error) error, get func(string) ([]byte, error)) map[string]string {
		out := map[string]string{}
		var names []string
		require.NoError(t, list(func(n string) error { names = append(names, n); return nil }))
		for _, n := range names {
			v, err := get(n)
			require.NoError(t, err)
			out[n] = string(v)
		}
		return out
	}
	assert.Equal(t, want, read(
		func(y func(string) error) error { return b.Llist(file, y) },
		func(n string) ([]byte, error) { return b.Lget(file, n) }))
	assert.Equal(t, want, read(
		func(y func(string) error) error { return b.Flist(fd, file, y) },
		func(n string) ([]byte, error) { return b.Fget(fd, file, n) }))
	a, err := b.Lget(file, "user.small")
	require.NoError(t, err)
	_, err = b.Lget(file, "user.max")
	require.NoError(t, err)
	assert.Equal(t, "x", string(a), "a value is a copy")

	_, err = b.Fget(fd, "named", "user.gone")
	require.ErrorIs(t, err, unix.ENODATA)
	assert.ErrorContains(t, err, "user.gone")
	assert.ErrorContains(t, err, "named")
	require.ErrorIs(t, b.Llist(filepath.Join(dir, "gone"), nil), unix.ENOENT)
	stop := errors.New("stop")
	require.ErrorIs(t, b.Llist(file, func(string) error { return stop }), stop)
	require.NoError(t, b.Llist("/proc/self/status", func(n string) error { return errors.New(n) }), "no attributes, no error")
}

// TestXattrOfLink checks that the L functions do not follow links.
func TestXattrOfLink(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	require.NoError(t, os.Symlink("f", link))
	require.NoError(t, linux.Lset(link, "trusted.link", []byte("l")))
	var b linux.XattrBuffer
	var names []string
	require.NoError(t, b.Llist(filepath.Join(dir, "f"), func(n string) error { names = append(names, n); return nil }))
	assert.False(t, slices.Contains(names, "trusted.link"))
	v, err := b.Lget(link, "trusted.link")
	require.NoError(t, err)
	assert.Equal(t, "l", string(v))
}

// TestMake makes one of each and changes it.
func TestMake(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	fd := open(t, dir)
	stat := func(name string) unix.Stat_t {
		t.Helper()
		var st unix.Stat_t
		require.NoError(t, linux.Lstatat(fd, name, &st))
		return st
	}
	require.NoError(t, linux.Mkdirat(fd, "d", 0o700))
	assert.Equal(t, uint32(unix.S_IFDIR|0o700), stat("d").Mode)
	dev := unix.Mkdev(4095, 1048575)
	require.NoError(t, linux.Mknodat(fd, "dev", unix.S_IFBLK|0o600, dev))
	assert.Equal(t, dev, stat("dev").Rdev, "all bits of a device number")
	require.NoError(t, linux.Linkat(fd, "dev", fd, "d/dev"))
	assert.EqualValues(t, 2, stat("dev").Nlink)
	require.NoError(t, linux.Symlinkat("dev", fd, "link"))
	require.NoError(t, linux.Linkat(fd, "link", fd, "link2"), "of the link itself")
	assert.Equal(t, uint32(unix.S_IFLNK), stat("link2").Mode&unix.S_IFMT)
	require.NoError(t, linux.Lchownat(fd, "link", 4294967294, 2147483648))
	st := stat("link")
	assert.Equal(t, [2]uint32{4294967294, 2147483648}, [2]uint32{st.Uid, st.Gid})
	assert.Zero(t, stat("dev").Uid, "not followed")
	require.NoError(t, linux.Fchmodat(fd, "dev", 0o4711))
	assert.Equal(t, uint32(0o4711), stat("dev").Mode&0o7777)
	at, mt := unix.Timespec{Sec: -5, Nsec: 6}, unix.Timespec{Sec: 7, Nsec: 999999999}
	require.NoError(t, linux.Lutimesat(fd, "link", at, mt))
	st = stat("link")
	assert.Equal(t, [2]unix.Timespec{at, mt}, [2]unix.Timespec{st.Atim, st.Mtim})

	f, err := linux.Openat(fd, "file", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	require.NoError(t, err)
	flags, err := unix.FcntlInt(uintptr(f), unix.F_GETFD, 0)
	require.NoError(t, err)
	assert.NotZero(t, flags&unix.FD_CLOEXEC)
	require.NoError(t, linux.Ftruncate(f, "file", 12345))
	require.NoError(t, linux.Fchown(f, "file", 1, 2))
	require.NoError(t, linux.Fchmod(f, "file", 0o2750))
	require.NoError(t, linux.Futimes(f, "file", at, mt))
	require.NoError(t, linux.Fset(f, "file", "user.a", []byte("b")))
	require.NoError(t, linux.Syncfs(f, "file"))
	require.NoError(t, linux.Fstat(f, "file", &st))
	assert.Equal(t, []any{int64(12345), uint32(1), uint32(2), uint32(0o2750), at, mt}, []any{st.Size, st.Uid, st.Gid, st.Mode & 0o7777, st.Atim, st.Mtim})
	require.NoError(t, linux.Close(f))
	require.ErrorIs(t, linux.Close(f), unix.EBADF)
}

// TestErrors checks that every error names its path and holds the errno.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	fd := open(t, dir)
	var st unix.Stat_t
	var ts unix.Timespec
	_, openErr := linux.Openat(fd, "gone/x", unix.O_RDONLY, 0)
	_, dirErr := linux.OpenDir(fd, "gone/x")
	for name, err := range map[string]error{
		"openat": openErr, "opendir": dirErr,
		"lstatat":  linux.Lstatat(fd, "gone/x", &st),
		"mkdirat":  linux.Mkdirat(fd, "gone/x", 0),
		"mknodat":  linux.Mknodat(fd, "gone/x", unix.S_IFIFO, 0),
		"symlink":  linux.Symlinkat("t", fd, "gone/x"),
		"linkat":   linux.Linkat(fd, "gone/x", fd, "gone/x"),
		"chown":    linux.Lchownat(fd, "gone/x", 0, 0),
		"chmod":    linux.Fchmodat(fd, "gone/x", 0),
		"utimens":  linux.Lutimesat(fd, "gone/x", ts, ts),
		"setxattr": linux.Lset(dir+"/gone/x", "user.a", nil),
	} {
		require.ErrorIs(t, err, unix.ENOENT, name)
		assert.ErrorContains(t, err, "gone/x", name)
	}
	for name, err := range map[string]error{
		"fstat": linux.Fstat(-1, "named", &st), "fchown": linux.Fchown(-1, "named", 0, 0), "fchmod": linux.Fchmod(-1, "named", 0),
		"ftruncate": linux.Ftruncate(-1, "named", 0), "futimens": linux.Futimes(-1, "named", ts, ts), "fsetxattr": linux.Fset(-1, "named", "user.a", nil),
		"syncfs": linux.Syncfs(-1, "named"), "fchdir": linux.Fchdir(-1, "named"), "clone": linux.CloneFile(-1, -1, "named"),
	} {
		require.ErrorIs(t, err, unix.EBADF, name)
		assert.ErrorContains(t, err, "named", name)
	}
}

// TestOpenDir checks that links are not followed and other files refused.
func TestOpenDir(t *testing.T) {
	dir := t.TempDir()
	fd := open(t, dir)
	require.NoError(t, linux.Mkdirat(fd, "d", 0o755))
	require.NoError(t, linux.Symlinkat("d", fd, "link"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	for _, name := range []string{"link", "f"} {
		_, err := linux.OpenDir(fd, name)
		require.ErrorIs(t, err, unix.ENOTDIR, name)
	}
	old := unix.Timespec{Sec: 1}
	require.NoError(t, linux.Lutimesat(unix.AT_FDCWD, dir, old, old))
	d, err := linux.OpenDir(unix.AT_FDCWD, dir)
	require.NoError(t, err)
	var b linux.DirBuffer
	require.NoError(t, b.Read(d, dir, func(string, uint8) error { return nil }))
	require.NoError(t, linux.Close(d))
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(dir, &st))
	assert.Equal(t, old, st.Atim, "access time of one's own folder")
}
