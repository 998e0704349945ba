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

	"github.com/shiftoverlay/shiftoverlay/internal/testutil/fstree"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// deniedEnv makes TestWalkDenied the child that walks without privileges.
const deniedEnv = "IDSHIFT_TEST_WALK"

// TestWalkDenied walks as nobody what only root may read: each refusal is an
// error with the path, in the one message that the child prints.
func TestWalkDenied(t *testing.T) {
	if dir := os.Getenv(deniedEnv); dir != "" {
		err := idshift.Walk(t.Context(), []string{dir}, idshift.WalkOptions{}, newRecorder())
		fmt.Printf("walked: EACCES %t, %v\n", errors.Is(err, unix.EACCES), err)
		return
	}
	chain := writeLayers(t,
		nodes{fstree.Dir("a/secret", fstree.Mode(0o700)), fstree.File("b", "x")},
		nodes{fstree.Dir("a/list-only", fstree.Mode(0o444)), fstree.File("a/list-only/f", "x")},
		nodes{fstree.File("a/unreadable", "x", fstree.Mode(0o600))},
		nodes{fstree.File("fine", "x")},
	)
	// nobody must get there: the layers are in a folder of the test's own.
	for _, dir := range []string{filepath.Dir(chain[0]), filepath.Dir(filepath.Dir(chain[0]))} {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	for i, want := range []string{
		"EACCES true, read " + chain[0] + "/a/secret: ",
		"EACCES true, read " + chain[1] + "/a/list-only",
		"EACCES true, open a/unreadable: ", // the recorder's
		"EACCES false, <nil>",
	} {
		child := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestWalkDenied$")
		child.Dir = "/"
		child.Env = append(os.Environ(), deniedEnv+"="+chain[i])
		child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := child.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Contains(t, string(out), "walked: "+want)
	}
}
