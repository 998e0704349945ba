package idshift_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// kernelFile is a file whose metadata the kernel shifts in the tests below.
type kernelFile struct {
	name     string
	uid, gid int
	acl      []byte
	caps     []byte
}

func kernelFiles() []kernelFile {
	return []kernelFile{
		{name: "root"},
		{name: "www", uid: 33, gid: 42},
		{name: "user", uid: 1000, gid: 1000},
		{name: "unmapped", uid: 70000, gid: 70001},
		{name: "acl", acl: namedACL(33, 42), uid: 5},
		{name: "acl-user", acl: namedACL(1000, 1000)},
		{name: "acl-unmapped", acl: namedACL(70000, 70001)},
		{name: "caps", caps: capV2()},
		{name: "caps-nested", caps: capV3(1000), uid: 1000},
		{name: "caps-unmapped", caps: capV3(70000)},
		{name: "all", uid: 1, gid: 2, acl: namedACL(0, 65533), caps: capV2()},
	}
}

func (f kernelFile) create(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, f.name)
	require.NoError(t, os.WriteFile(path, []byte(f.name), 0o755))
	require.NoError(t, os.Lchown(path, f.uid, f.gid))
	for name, value := range map[string][]byte{idshift.ACLAccess: f.acl, idshift.Capability: f.caps} {
		if value == nil {
			continue
		}
		err := unix.Lsetxattr(path, name, value, 0)
		if errors.Is(err, unix.ENOTSUP) {
			testutil.Skip(t, fmt.Sprintf("the file system of %s has no %s", dir, name))
		}
		require.NoError(t, err, "%s of %s", name, f.name)
	}
}

// idmapped returns the path of an idmapped view of dir: a detached mount, which
// lasts as long as the test.
func idmapped(t *testing.T, dir string, m idshift.Mapping) string {
	t.Helper()
	ns := userNamespace(t, m)
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		testutil.Skip(t, "the kernel has no open_tree")
	}
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, unix.Close(tree)) })
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		testutil.Skip(t, fmt.Sprintf("the kernel does not map the IDs of a mount of %s: %v", dir, err))
	}
	require.NoError(t, err)
	return fmt.Sprintf("/proc/self/fd/%d", tree)
}

// userNamespace makes a user namespace with a mapping.
func userNamespace(t *testing.T, m idshift.Mapping) *os.File {
	t.Helper()
	holder := exec.CommandContext(t.Context(), "cat") // waits for the end of its input
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: m.UIDs.SysProcIDMaps(),
		GidMappings: m.GIDs.SysProcIDMaps(),
	}
	input, err := holder.StdinPipe()
	require.NoError(t, err)
	if err := holder.Start(); err != nil {
		testutil.Skip(t, fmt.Sprintf("no user namespace: %v", err))
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	require.NoError(t, input.Close())
	require.NoError(t, holder.Wait())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, ns.Close()) })
	return ns
}

func getxattr(path, name string) ([]byte, error) {
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// TestKernelIdmappedMountAgrees lets the kernel shift the same files: through an
// idmapped mount they must look as Shift says, and what Shift makes must be
// what the kernel stores.
func TestKernelIdmappedMountAgrees(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireKernel(t, 6, 2) // Debian's 6.1 shows the users of ACLs unmapped
	dir, copies := t.TempDir(), t.TempDir()
	for _, f := range kernelFiles() {
		f.create(t, dir)
	}
	for _, text := range []string{auto, "0:100000:1000,1000:5:1,1001:101001:64535", "0:1:1000,1000:0:1,1001:101001:64535", "0:0:65533"} {
		t.Run(text, func(t *testing.T) {
			m := mapping(t, text)
			s := shift(t, text, idshift.Overflow)
			view := idmapped(t, dir, m)
			for _, f := range kernelFiles() {
				checkOwner(t, s, filepath.Join(view, f.name), f)
				for name, value := range map[string][]byte{idshift.ACLAccess: f.acl, idshift.Capability: f.caps} {
					if value != nil {
						checkXattr(t, s, filepath.Join(view, f.name), name, value)
						checkStored(t, s, filepath.Join(copies, f.name), name, value)
					}
				}
			}
		})
	}
}

func checkOwner(t *testing.T, s *idshift.Shift, path string, f kernelFile) {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	uid, gid, err := s.Owner(uint32(f.uid), uint32(f.gid))
	require.NoError(t, err)
	assert.Equal(t, [2]uint32{st.Uid, st.Gid}, [2]uint32{uid, gid}, "owner of %s", f.name)
}

// checkXattr knows the two differences that the package comment names.
func checkXattr(t *testing.T, s *idshift.Shift, path, name string, value []byte) {
	t.Helper()
	kernel, err := getxattr(path, name)
	ours, keep, errOurs := s.Xattr(name, value)
	require.NoError(t, errOurs)
	if errors.Is(err, unix.EOVERFLOW) {
		assert.Equal(t, idshift.Capability, name)
		assert.False(t, keep, "%s of %s: the kernel does not show it", name, path)
		return
	}
	require.NoError(t, err)
	assert.True(t, keep)
	if name == idshift.ACLAccess {
		stored := func(id uint32) (uint32, error) {
			if id == noID {
				return idshift.OverflowID, nil
			}
			return id, nil
		}
		kernel, err = idshift.ShiftACL(kernel, stored, stored)
		require.NoError(t, err)
	}
	assert.Equal(t, kernel, ours, "%s of %s", name, path)
}

// checkStored sets the shifted value on a plain file and reads it back.
func checkStored(t *testing.T, s *idshift.Shift, path, name string, value []byte) {
	t.Helper()
	out, keep, err := s.Xattr(name, value)
	require.NoError(t, err)
	if !keep {
		return
	}
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, unix.Lsetxattr(path, name, out, 0))
	got, err := getxattr(path, name)
	require.NoError(t, err)
	assert.Equal(t, out, got, "%s of %s", name, path)
}

// TestKernelRefusesWhatWeRefuse keeps this package from being stricter than the
// kernel: no value that it calls malformed can be set on a file.
func TestKernelRefusesWhatWeRefuse(t *testing.T) {
	testutil.RequireRoot(t)
	file := kernelFile{name: "f", acl: namedACL(1, 2), caps: capV2()}
	dir := t.TempDir()
	file.create(t, dir)
	path := filepath.Join(dir, file.name)
	for message, value := range badACLs() {
		if len(value) == 0 {
			continue // for setxattr(2) that is no ACL; getxattr(2) never gives it
		}
		require.Error(t, unix.Lsetxattr(path, idshift.ACLAccess, value, 0), message)
	}
	for message, value := range badCapabilities() {
		if len(value) == 0 {
			require.NoError(t, unix.Lsetxattr(path, idshift.Capability, value, 0))
			_, err := getxattr(path, idshift.Capability)
			require.ErrorIs(t, err, unix.EINVAL, "it can be stored but not read")
			continue
		}
		require.Error(t, unix.Lsetxattr(path, idshift.Capability, value, 0), message)
	}
	require.ErrorIs(t, unix.Lsetxattr(path, idshift.Capability, capV1(), 0), unix.EINVAL,
		"version 1 cannot be copied, hence ShiftCapability converts it")
}
