//go:build torture

package torture

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fault is something that happens to the file system of a store.
type fault struct {
	name string
	// fstype is the file system that it can happen to.
	fstype string
	// begin and end are shell commands; $FS is the mount point.
	begin, end string
	// says are what an error then may say.
	says []string
}

// faults are the ways in which a file system refuses to go on.
func faults() []fault {
	// What is free goes to a file; then what is left, byte by byte.
	blocks := `n=$(($(stat -f -c %a "$FS") * $(stat -f -c %S "$FS"))); i=0
while [ $n -ge 4096 ]; do if fallocate -l $n "$FS/filler.$BASHPID.$i" 2>/dev/null; then i=$((i + 1)); else n=$((n / 2)); fi; done
dd if=/dev/zero of="$FS/filler" bs=4k 2>/dev/null; true`
	return []fault{
		{name: "no blocks", fstype: "ext4", begin: blocks, end: `rm -f "$FS"/filler*`, says: []string{"no space left"}},
		{
			name: "no inodes", fstype: "ext4", begin: `mkdir -p "$FS/fillers"; i=0; while : >"$FS/fillers/$i"; do i=$((i + 1)); done 2>/dev/null; true`,
			end: `rm -rf "$FS/fillers"`, says: []string{"no space left"},
		},
		{
			name: "read-only", fstype: "ext4", begin: `mount -o remount,ro "$FS"`, end: `mount -o remount,rw "$FS"`,
			says: []string{"read-only file system"},
		},
		{name: "no blocks on xfs", fstype: "xfs", begin: blocks, end: `rm -f "$FS"/filler*`, says: []string{"no space left"}},
		{
			name: "quota", fstype: "btrfs",
			begin: `btrfs quota enable "$FS" && btrfs quota rescan -w "$FS" >/dev/null && sync -f "$FS" &&
btrfs qgroup limit $(($(btrfs qgroup show --raw "$FS" | awk '$1 == "0/5" { print $2 }') + 40960)) 0/5 "$FS"`,
			end: `btrfs qgroup limit none 0/5 "$FS"; btrfs quota disable "$FS"`, says: []string{"quota exceeded"},
		},
	}
}

// TestFull has the file system refuse to go on at each step of each operation: an
// error that says so, nothing half made, other containers go on, and when there is
// room again all is as before.
func TestFull(t *testing.T) {
	a := begin(t, "full disks")
	useArchives(t)
	type job struct {
		e engine
		f fault
	}
	var jobs []job
	for _, f := range faults() {
		for _, e := range engines() {
			jobs = append(jobs, job{e, f})
		}
	}
	a.rand.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })
	for _, j := range jobs {
		if a.over() {
			break
		}
		t.Run(j.f.name+"/"+j.e.name, func(t *testing.T) {
			if !a.short() { // they wait for their disks most of the time
				t.Parallel()
			}
			newSickbed(t, a, j.e, j.f).run()
		})
	}
}

// sickbed is a world on a small file system of its own.
type sickbed struct {
	*host
	f       fault
	begin   string // the program that makes the fault happen
	empty   int64  // what of the file system was used in the beginning
	refused int
}

func newSickbed(t *testing.T, a *area, e engine, f fault) *sickbed {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, "fs")
	smallFS(t, f.fstype, filepath.Join(dir, "image"), at)
	s := &sickbed{host: newHost(t, a, e, filepath.Join(at, "world")), f: f, begin: filepath.Join(dir, "begin")}
	s.reboot(filepath.Join(dir, "run"))
	s.empty = s.used()
	require.NoError(t, os.WriteFile(s.begin, []byte("#!/bin/bash\nexec 8>\"$0.lock\"; flock 8\nFS="+at+"\n"+f.begin+"\n"), 0o700))
	return s
}

// smallFS makes a file system of few blocks and inodes and mounts it.
func smallFS(t *testing.T, fstype, image, at string) {
	t.Helper()
	size, mkfs := "48M", []string{"mkfs.ext4", "-q", "-m", "0", "-N", "3000", "-E", "nodiscard", image}
	switch fstype {
	case "xfs":
		size, mkfs = "300M", []string{"mkfs.xfs", "-q", image}
	case "btrfs":
		size, mkfs = "160M", []string{"mkfs.btrfs", "-q", image}
	}
	shell(t, "truncate -s "+size+" "+image)
	out, err := exec.Command(mkfs[0], mkfs[1:]...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.Mkdir(at, 0o755))
	shell(t, "mount -o loop "+image+" "+at)
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount %s: %v", at, err)
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
}

func shell(t *testing.T, command string) {
	t.Helper()
	out, err := exec.Command("bash", "-c", command).CombinedOutput()
	require.NoError(t, err, "%s: %s", command, out)
}

// run has the fault happen at steps of the scenario; all of them unless time is
// short.
func (s *sickbed) run() {
	done := []string{"pull", "reset", "start:n0:C"}
	until := time.Now().Add(s.a.part(0.25, 0))
	over := func() bool { return s.a.short() && time.Now().After(until) }
	for _, op := range scenario() {
		if op == "rmi:"+imageID || over() {
			continue // n0 holds the image
		}
		require.NoError(s.t, s.do("operate", done...))
		steps := s.steps(op)
		if len(steps) == 0 {
			steps = []string{"beginning"}
		}
		for i, step := range steps {
			if over() {
				break
			}
			if s.a.short() && s.a.rand.IntN(8) > 0 {
				continue
			}
			require.NoError(s.t, s.do("operate", done...))
			s.once(op, i+1, step)
		}
		done = append(done, op)
	}
	s.judge("at the end", true)
	// xfs frees the blocks of deleted files in the background.
	more := s.used() - s.empty
	for until := time.Now().Add(30 * time.Second); more > slack[s.f.fstype] && time.Now().Before(until); more = s.used() - s.empty {
		unix.Sync()
		time.Sleep(time.Second)
	}
	if more > slack[s.f.fstype] {
		s.a.loss("%s: %s: %d bytes more than before are used in an empty store", s.e.name, s.f.name, more)
	}
	if !s.a.short() && s.refused == 0 {
		s.t.Errorf("nothing was ever refused: the fault does not happen")
	}
	s.t.Logf("%s: %d operations refused", s.t.Name(), s.refused)
}

// slack is what the folders of an empty store may have grown by, in bytes, and on
// btrfs the file system's own trees, which do not shrink at once. What is left of
// files is looked for by name.
var slack = map[string]int64{"ext4": 1 << 20, "xfs": 1 << 20, "btrfs": 8 << 20}

// used is how much of the file system is in use.
func (s *sickbed) used() int64 {
	var fs unix.Statfs_t
	require.NoError(s.t, unix.Statfs(filepath.Dir(s.root), &fs))
	return int64(fs.Blocks-fs.Bfree) * fs.Bsize
}

// once has the fault happen at one step.
func (s *sickbed) once(op string, n int, step string) {
	what := fmt.Sprintf("%s during %s at step %d, %s", s.f.name, op, n, step)
	s.a.faults.Add(1)
	s.others("before " + what)
	env := []string{fmt.Sprint("SHIFT_FAILPOINT=", n), "SHIFT_FAILPOINT_RUN=" + s.begin}
	if step == "beginning" {
		shell(s.t, s.begin)
		env = nil
	}
	s.refuse(what, env, op)
	shell(s.t, "flock "+s.begin+".lock true") // the operation may have ended before
	s.others(what)
	// Once more, with the fault from the beginning.
	shell(s.t, s.begin)
	s.refuse(what+", again", nil, op)
	shell(s.t, "FS="+filepath.Dir(s.root)+"\n"+s.f.end)
	s.judge(what, false)
	if err := s.do("operate", "pull", op); err != nil {
		s.a.loss("%s: %s: afterwards: %v", s.e.name, what, err)
	}
}

// refuse carries out an operation, which may be refused with a clear error.
func (s *sickbed) refuse(what string, env []string, op string) {
	_, err := s.with(env, "operate", op)
	if err == nil {
		return
	}
	s.refused++
	if !s.clear(err) {
		s.a.loss("%s: %s: not a clear error: %v", s.e.name, what, err)
	}
}

// clear says whether an error says what the matter is.
func (s *sickbed) clear(err error) bool {
	for _, says := range s.f.says {
		if strings.Contains(strings.ToLower(err.Error()), says) {
			return true
		}
	}
	return false
}

// state tells what is mounted in the world, and what the library thinks of it.
func (s *sickbed) state() string {
	out, err := exec.Command("bash", "-c", `grep -F "$0" /proc/self/mountinfo; find "$1" -name mountpoints.json -exec cat {} +; ls -la "$0"/graph/*/ "$0"/graph/*/*/; cat "$0"/graph/*-containers/containers.json`, s.root, s.host.run).CombinedOutput()
	return fmt.Sprintf("%s%v", out, err)
}

// others looks whether a container that runs goes on.
func (s *sickbed) others(what string) {
	all, err := filepath.Glob(filepath.Join(s.root, "graph", driverName, "*", "merged", "second", "file"))
	require.NoError(s.t, err)
	found := false
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil || string(text) != "of the second layer" {
			s.a.loss("%s: %s: a container that runs reads %q: %v", s.e.name, what, text, err)
		}
		found = true
	}
	if !found {
		s.a.loss("%s: %s: the container that ran is gone\n%s", s.e.name, what, s.state())
	}
}
