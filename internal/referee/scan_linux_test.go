package referee_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

var fixedTime = time.Unix(1600000000, 987654321)

// makeTree fills root with one of everything that a user may create.
func makeTree(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	require.NoError(t, os.MkdirAll(at("d/sub"), 0o755))
	require.NoError(t, os.WriteFile(at("d/file"), []byte("content"), 0o644))
	require.NoError(t, os.WriteFile(at("d/empty"), nil, 0o600))
	require.NoError(t, os.Link(at("d/file"), at("d/sub/hard")))
	require.NoError(t, os.Symlink("../nowhere", at("d/soft")))
	require.NoError(t, unix.Mkfifo(at("d/fifo"), 0o620))
	require.NoError(t, os.WriteFile(at("d/odd\xff\nname"), []byte("x"), 0o644))
	sparse, err := os.OpenFile(at("sparse"), os.O_CREATE|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	require.NoError(t, sparse.Truncate(1<<40))
	_, err = sparse.WriteAt([]byte("far away"), 1<<39+5)
	require.NoError(t, err)
	require.NoError(t, sparse.Close())
	settle(t, root)
}

// settle gives every path of the tree the same time.
func settle(t *testing.T, root string) {
	t.Helper()
	ts := unix.NsecToTimespec(fixedTime.UnixNano())
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

func scan(t *testing.T, root string, o referee.Options) *referee.Tree {
	t.Helper()
	tree, err := referee.Scan(t.Context(), root, o)
	require.NoError(t, err)
	return tree
}

// compare makes two trees, changes the second one, and lists the differences.
func compare(t *testing.T, o referee.Options, prepare, change func(t *testing.T, root string)) []string {
	t.Helper()
	a, b := t.TempDir(), t.TempDir()
	for _, root := range []string{a, b} {
		makeTree(t, root)
		if prepare != nil {
			prepare(t, root)
			settle(t, root)
		}
	}
	if change != nil {
		change(t, b)
	}
	var got []string
	for _, d := range referee.Compare(scan(t, a, o), scan(t, b, o), o) {
		got = append(got, d.Path+": "+d.Attribute)
	}
	return got
}

func TestScanFindsChanges(t *testing.T) {
	at := filepath.Join
	keep := func(t *testing.T, root string) { t.Helper(); settle(t, root) }
	tests := []struct {
		name   string
		change func(t *testing.T, root string)
		want   []string
	}{
		{"nothing", nil, nil},
		{"mode", func(t *testing.T, r string) {
			require.NoError(t, os.Chmod(at(r, "d/file"), 0o644|os.ModeSetgid))
		}, []string{"d/file: mode", "d/sub/hard: mode"}},
		{"sticky directory", func(t *testing.T, r string) {
			require.NoError(t, os.Chmod(at(r, "d/sub"), 0o755|os.ModeSticky))
		}, []string{"d/sub: mode"}},
		{"size", func(t *testing.T, r string) {
			require.NoError(t, os.Truncate(at(r, "d/empty"), 1))
			keep(t, r)
		}, []string{"d/empty: size"}},
		{"mtime", func(t *testing.T, r string) {
			require.NoError(t, os.Chtimes(at(r, "d/empty"), fixedTime, fixedTime.Add(1)))
		}, []string{"d/empty: mtime"}},
		{"content", func(t *testing.T, r string) {
			require.NoError(t, os.WriteFile(at(r, "d/file"), []byte("Content"), 0o644))
			keep(t, r)
		}, []string{"d/file: content", "d/sub/hard: content"}},
		{"content behind a hole", func(t *testing.T, r string) {
			f, err := os.OpenFile(at(r, "sparse"), os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("!"), 1<<39+5+8)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			keep(t, r)
		}, []string{"sparse: content"}},
		{"hole or zeros", func(t *testing.T, r string) {
			f, err := os.OpenFile(at(r, "sparse"), os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(make([]byte, 3*4096), 12345)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			keep(t, r)
		}, nil},
		{"target", func(t *testing.T, r string) {
			require.NoError(t, os.Remove(at(r, "d/soft")))
			require.NoError(t, os.Symlink("../Nowhere", at(r, "d/soft")))
			keep(t, r)
		}, []string{"d/soft: target"}},
		{"type", func(t *testing.T, r string) {
			require.NoError(t, os.Remove(at(r, "d/fifo")))
			require.NoError(t, os.WriteFile(at(r, "d/fifo"), nil, 0o620))
			require.NoError(t, os.Chmod(at(r, "d/fifo"), 0o600))
			keep(t, r)
		}, []string{"d/fifo: type", "d/fifo: mode"}},
		{"hard link broken", func(t *testing.T, r string) {
			require.NoError(t, os.Remove(at(r, "d/sub/hard")))
			require.NoError(t, os.WriteFile(at(r, "d/sub/hard"), []byte("content"), 0o644))
			keep(t, r)
		}, []string{"d/file: nlink", "d/file: links", "d/sub/hard: nlink", "d/sub/hard: links"}},
		{"names", func(t *testing.T, r string) {
			require.NoError(t, os.Rename(at(r, "d/odd\xff\nname"), at(r, "d/odd\xfe\nname")))
			keep(t, r)
		}, []string{`"d/odd\xfe\nname": presence`, `"d/odd\xff\nname": presence`}},
		{"whole folder", func(t *testing.T, r string) {
			require.NoError(t, os.Mkdir(at(r, "d/more"), 0o755))
			require.NoError(t, os.WriteFile(at(r, "d/more/f"), nil, 0o644))
			keep(t, r)
		}, []string{"d/more: presence", "d/more/f: presence"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prepare := func(t *testing.T, r string) {
				t.Helper()
				require.NoError(t, os.Chmod(at(r, "d/fifo"), 0o620)) // whatever the umask
			}
			assert.Equal(t, tt.want, compare(t, referee.Options{Content: true}, prepare, tt.change))
		})
	}
}

func TestScanNeedsRoot(t *testing.T) {
	testutil.RequireRoot(t)
	at := filepath.Join
	set := func(t *testing.T, path, name string, value []byte) {
		t.Helper()
		require.NoError(t, unix.Lsetxattr(path, name, value, 0), "%s %s", path, name)
	}
	prepare := func(t *testing.T, r string) {
		t.Helper()
		require.NoError(t, unix.Mknod(at(r, "dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 70000))))
		require.NoError(t, os.Link(at(r, "dev"), at(r, "dev2")))
		require.NoError(t, os.Chown(at(r, "d/empty"), 12, 34))
		require.NoError(t, os.Chown(r, 1, 2))
		set(t, at(r, "d/empty"), "system.posix_acl_access", acl(77, 88))
		set(t, at(r, "d/sub"), "system.posix_acl_default", acl(77, 88))
		set(t, at(r, "d/empty"), "security.capability", capability(0))
		set(t, at(r, "d/soft"), "trusted.note", []byte("on the link itself"))
		set(t, at(r, "dev"), "trusted.note", []byte("on the device"))
		set(t, at(r, "d"), "trusted.overlay.opaque", []byte("y"))
		set(t, r, "trusted.root", make([]byte, 3000))
	}
	tests := []struct {
		name    string
		change  func(t *testing.T, r string)
		options referee.Options
		want    []string
	}{
		{name: "nothing"},
		{name: "owner", change: func(t *testing.T, r string) {
			require.NoError(t, os.Lchown(at(r, "d/soft"), 1, 0))
		}, want: []string{"d/soft: uid"}},
		{name: "owner of the root", change: func(t *testing.T, r string) {
			require.NoError(t, os.Chown(r, 1, 3))
		}, want: []string{".: gid"}},
		{name: "device", change: func(t *testing.T, r string) {
			require.NoError(t, os.Remove(at(r, "dev")))
			require.NoError(t, os.Remove(at(r, "dev2")))
			require.NoError(t, unix.Mknod(at(r, "dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
			require.NoError(t, os.Link(at(r, "dev"), at(r, "dev2")))
			set(t, at(r, "dev"), "trusted.note", []byte("on the device"))
			settle(t, r)
		}, want: []string{"dev: rdev", "dev2: rdev"}},
		{name: "access ACL", change: func(t *testing.T, r string) {
			set(t, at(r, "d/empty"), "system.posix_acl_access", acl(77, 89))
		}, want: []string{"d/empty: xattr system.posix_acl_access"}},
		{name: "default ACL", change: func(t *testing.T, r string) {
			require.NoError(t, unix.Lremovexattr(at(r, "d/sub"), "system.posix_acl_default"))
		}, want: []string{"d/sub: xattr system.posix_acl_default"}},
		{name: "capability", change: func(t *testing.T, r string) {
			set(t, at(r, "d/empty"), "security.capability", capability(100000))
		}, want: []string{"d/empty: xattr security.capability"}},
		{name: "of a link", change: func(t *testing.T, r string) {
			set(t, at(r, "d/soft"), "trusted.note", nil)
		}, want: []string{"d/soft: xattr trusted.note"}},
		{name: "of the root", change: func(t *testing.T, r string) {
			value := make([]byte, 3000)
			value[2999] = 1
			set(t, r, "trusted.root", value)
		}, want: []string{".: xattr trusted.root"}},
		{name: "of overlay", change: func(t *testing.T, r string) {
			set(t, at(r, "d"), "trusted.overlay.opaque", []byte("n"))
		}},
		{name: "of overlay on demand", change: func(t *testing.T, r string) {
			set(t, at(r, "d"), "trusted.overlay.opaque", []byte("n"))
		}, options: referee.Options{OverlayXattrs: true}, want: []string{"d: xattr trusted.overlay.opaque"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, compare(t, tt.options, prepare, tt.change))
		})
	}
}

// TestScanDeep reads a path of more than PATH_MAX bytes and a wide directory,
// with one worker and with many.
func TestScanDeep(t *testing.T) {
	root := t.TempDir()
	const depth, wide = 30, 5000
	name := strings.Repeat("n", 200)
	fd, err := unix.Open(root, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for range depth {
		require.NoError(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
		fd = next
	}
	leaf, err := unix.Openat(fd, "leaf", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	require.NoError(t, err)
	require.NoError(t, unix.Close(leaf))
	require.NoError(t, unix.Close(fd))
	for i := range wide {
		require.NoError(t, os.Symlink("x", filepath.Join(root, fmt.Sprint(i))))
	}

	one := scan(t, root, referee.Options{Workers: 1})
	many := scan(t, root, referee.Options{Workers: 8, Content: true})
	assert.Equal(t, 1+depth+1+wide, one.Len())
	assert.Empty(t, referee.Compare(one, many, referee.Options{}))
	_, ok := one.Lookup(strings.Repeat(name+"/", depth) + "leaf")
	assert.True(t, ok, "the leaf below %d bytes of path", depth*201)
}

func TestScanErrors(t *testing.T) {
	t.Run("missing", func(t *testing.T) {
		missing := filepath.Join(t.TempDir(), "missing")
		_, err := referee.Scan(t.Context(), missing, referee.Options{})
		require.ErrorIs(t, err, unix.ENOENT)
		assert.ErrorContains(t, err, missing)
	})
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		_, err := referee.Scan(t.Context(), file, referee.Options{})
		require.ErrorIs(t, err, unix.ENOTDIR)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		_, err := referee.Scan(ctx, t.TempDir(), referee.Options{})
		require.ErrorIs(t, err, context.Canceled)
	})
}

// TestScanUnreadable scans a folder without permission to read it. Root may
// read anything, so that it runs the test again as nobody.
func TestScanUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestScanUnreadable$", "-test.v")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "PASS: TestScanUnreadable")
		return
	}
	root := t.TempDir()
	denied := filepath.Join(root, "ok/denied")
	require.NoError(t, os.MkdirAll(denied, 0o755))
	require.NoError(t, os.Chmod(denied, 0))
	t.Cleanup(func() { assert.NoError(t, os.Chmod(denied, 0o755)) })
	_, err := referee.Scan(t.Context(), root, referee.Options{Workers: 1})
	require.ErrorIs(t, err, unix.EACCES)
	assert.ErrorContains(t, err, "ok/denied")
}
