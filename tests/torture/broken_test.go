//go:build torture

package torture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestBroken has the disk fail at each step of each operation, for good or for a
// moment, and starts the machine again with a disk that works: an error that says
// so, and nothing that is believed and is not on the disk.
func TestBroken(t *testing.T) {
	a := begin(t, "failing disks")
	useArchives(t)
	type setup struct {
		fstype string
		e      engine
	}
	var setups []setup
	for _, fstype := range []string{"ext4", "xfs"} {
		for _, e := range engines() {
			if e.name != "idmap" { // it keeps nothing
				setups = append(setups, setup{fstype, e})
			}
		}
	}
	a.rand.Shuffle(len(setups), func(i, j int) { setups[i], setups[j] = setups[j], setups[i] })
	for _, s := range setups {
		for _, forget := range []string{"", "sync"} {
			if !a.over() {
				t.Run(fmt.Sprintf("moment/%s/%s/%s", s.fstype, s.e.name, forget), func(t *testing.T) { newPatient(t, a, s.fstype, s.e).moment(forget) })
			}
		}
	}
	for _, s := range setups {
		if !a.over() {
			t.Run("good/"+s.fstype+"/"+s.e.name, func(t *testing.T) { newPatient(t, a, s.fstype, s.e).forGood() })
		}
	}
}

// patient is a machine whose disk fails.
type patient struct {
	*machine
	boots   int
	refused int
}

func newPatient(t *testing.T, a *area, fstype string, e engine) *patient {
	t.Helper()
	p := &patient{machine: newMachine(t, a, fstype, e, true)}
	require.NoError(t, p.do("operate", "pull", "sync"))
	var err error
	p.image, err = showLayers(p.root)
	require.NoError(t, err)
	return p
}

// moment has the disk fail while what was built is being written out, which the
// file system gets over as long as it is only data; afterwards the entry is made
// durable, as often as somebody wants. With forget, somebody else hears of the
// error before.
func (p *patient) moment(forget string) {
	// Stopping a container would have the file system written out.
	require.NoError(p.t, p.do("operate", "start:n1:A"))
	p.a.faults.Add(1)
	p.d.tell("fail write 5")
	// As the kernel does it when it thinks that it is time: nobody hears of errors.
	require.NoError(p.t, filepath.WalkDir(filepath.Join(p.root, "graph", driverName+"-shifted"), func(name string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !strings.Contains(name, "/data/") {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}))
	time.Sleep(100 * time.Millisecond)
	p.d.tell("fail write 0")
	if forget != "" {
		p.t.Logf("sync: %v", p.do("operate", "sync"))
	}
	for range 3 {
		err := p.do("operate", "durable")
		p.t.Logf("durable: %v", err)
		if err != nil && !clearOfDisk(err) {
			p.a.loss("%s: not a clear error: %v", p.t.Name(), err)
		}
	}
	p.again("writes failed for a moment before the entry was made durable")
}

// again starts the machine anew with the disk as it is.
func (p *patient) again(what string) {
	p.d.unmount()
	p.cut(1, p.d.image, nil, "start:n1:A", p.t.Name()+": "+what)
}

// forGood has the disk fail at steps of operations.
func (p *patient) forGood() {
	begin := filepath.Join(p.dir, "begin")
	command := `echo "fail write 5" >/proc/` + strconv.Itoa(p.d.program.Process.Pid) + `/fd/0; sleep 0.02`
	require.NoError(p.t, os.WriteFile(begin, []byte("#!/bin/bash\n"+command+"\n"), 0o700))
	done := []string{"pull", "reset"}
	p.start(0)
	for _, op := range scenario() {
		if p.a.over() {
			break
		}
		require.NoError(p.t, p.do("operate", done...))
		steps := p.steps(op)
		done = append(done, op)
		if len(steps) == 0 || p.a.short() && p.a.rand.IntN(4) > 0 {
			continue
		}
		n := p.a.rand.IntN(len(steps))
		require.NoError(p.t, p.do("operate", done[:len(done)-1]...))
		what := fmt.Sprintf("writes fail during %s at step %d, %s", op, n+1, steps[n])
		p.a.faults.Add(1)
		for _, env := range [][]string{{fmt.Sprint("SHIFT_FAILPOINT=", n+1), "SHIFT_FAILPOINT_RUN=" + begin}, nil} {
			if _, err := p.with(env, "operate", op); err != nil {
				p.refused++
				if !clearOfDisk(err) && !p.hidden(err) {
					p.a.loss("%s: %s: not a clear error: %v", p.t.Name(), what, err)
				}
			}
		}
		p.d.unmount()
		p.d.quiet()
		p.d.mount(filepath.Join(filepath.Dir(p.d.at), "disk", "disk"))
		p.d.unmount() // the journal is replayed
		synced := p.synced
		if strings.HasPrefix(op, "rmi:") {
			p.synced = false // somebody wants the image to go: half of it may be gone
		}
		p.cut(p.boots+1, p.d.image, nil, op, p.t.Name()+": "+what)
		p.synced = synced
		p.d.mount(filepath.Join(filepath.Dir(p.d.at), "disk", "disk"))
		p.boots += 2
		p.start(p.boots)
	}
	p.t.Logf("%s: %d operations refused", p.t.Name(), p.refused)
}

// quiet ends all failures, whoever has begun them.
func (d *disk) quiet() {
	d.t.Helper()
	for _, command := range []string{"fail write 0", "fail flush 0", "fail read 0", "writes"} {
		_, err := fmt.Fprintln(d.in, command)
		require.NoError(d.t, err)
	}
	for { // answers to others come first
		if _, err := strconv.Atoi(d.answer()); err == nil {
			return
		}
	}
}

// hidden says whether the storage library's os.MkdirAll hides in an error that the
// file system has been shut down: the folder is there and cannot be looked at.
func (p *patient) hidden(err error) bool {
	_, down := os.Stat(p.d.at)
	return errors.Is(down, unix.EIO) && strings.Contains(err.Error(), "open store: mkdir "+p.d.at+": file exists")
}

// clearOfDisk says whether an error says what the matter with the disk is.
func clearOfDisk(err error) bool {
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "input/output error") || strings.Contains(text, "read-only file system") || strings.Contains(text, "structure needs cleaning") ||
		strings.Contains(text, "the disk has failed since it was built")
}
