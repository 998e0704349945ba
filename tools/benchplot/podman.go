package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// runner is a configuration in a store that holds the image.
type runner struct {
	Config
	dir   string // on the file system that is measured
	tools string // folder that containers see as toolDir
	env   []string
	image string // ID
	cell  *Cell
	used  []int // mappings of this image, by their first host ID
}

// idsPerContainer is the length of all mappings.
const idsPerContainer = 65536

// podman runs podman and returns what it printed, the time it took and its
// CPU time, both in seconds.
func (r *runner) podman(args ...string) (out string, wall, cpu float64, err error) {
	c := exec.Command("podman", args...)
	c.Env = r.env
	var messages strings.Builder
	c.Stderr = &messages
	start := time.Now()
	b, err := c.Output()
	wall = time.Since(start).Seconds()
	if err != nil {
		return "", 0, 0, fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(messages.String()))
	}
	cpu = (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()
	return strings.TrimSpace(string(b)), wall, cpu, nil
}

// pull gets the image into the store, unless it is there.
func (r *runner) pull(layout string) error {
	var err error
	r.image, _, _, err = r.podman("pull", "-q", "oci:"+layout+":"+imageTag)
	return err
}

// unavailable begins the reason why an engine was not measured that this
// machine does not have.
const unavailable = "not available here"

// available checks that our driver uses the engine that is to be measured.
func (r *runner) available() error {
	if !r.shifts() {
		return nil
	}
	status := func(key string) (string, error) {
		s, _, _, err := r.podman("info", "--format", fmt.Sprintf("{{index .Store.GraphStatus %q}}", key))
		return s, err
	}
	engine, err := status("Shift engine")
	if err != nil {
		return err
	}
	reason, err := status("Shift engine reason")
	if err != nil {
		return err
	}
	if engine != r.Engine {
		return fmt.Errorf("%s: %s", unavailable, reason)
	}
	r.cell.Engine = reason
	return nil
}

// start runs a container in the background: its wall time is that of the whole
// command, which returns when the container's process has been started.
func (r *runner) start(name string, mapping int) (wall, cpu float64, err error) {
	args := []string{"run", "-d", "--name", name, "--network", "none", "-v", r.tools + ":" + toolDir + ":ro"}
	if r.Plain {
		args = append(args, "--userns", "host")
	} else {
		ids := fmt.Sprintf("0:%d:%d", mapping, idsPerContainer)
		args = append(args, "--uidmap", ids, "--gidmap", ids)
	}
	_, wall, cpu, err = r.podman(append(args, r.image, filepath.Join(toolDir, toolName), "inside")...)
	return wall, cpu, err
}

// kernelMemory returns the kernel memory that a container is charged for.
func (r *runner) kernelMemory(name string) (float64, error) {
	out, _, _, err := r.podman("inspect", "--format", "{{.State.Pid}}", name)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(out)
	if err != nil {
		return 0, err
	}
	return kernelMemory(pid)
}

// remove stops and removes a container.
func (r *runner) remove(name string) (wall float64, err error) {
	_, wall, _, err = r.podman("rm", "-f", "-t", "0", name)
	return wall, err
}

// forget empties the cache of shifted entries, as if the image had never been
// started. No container may be there. The freed blocks are given back to what
// the file system is on.
func (r *runner) forget() error {
	if !r.shifts() {
		return nil
	}
	layers, err := filepath.Glob(filepath.Join(r.dir, r.Store, "graph", "shiftoverlay-shifted", "*"))
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := os.RemoveAll(l); err != nil {
			return err
		}
	}
	if err := settle(r.dir); err != nil {
		return err
	}
	return quiet(exec.Command("fstrim", r.dir))
}

// session is a program in a container that does tasks.
type session struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      *bufio.Scanner
	messages strings.Builder
}

func (r *runner) session(name string) (*session, error) {
	s := &session{cmd: exec.Command("podman", "exec", "-i", name, filepath.Join(toolDir, toolName), "inside")}
	s.cmd.Env = r.env
	s.cmd.Stderr = &s.messages
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := s.do(taskNothing); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// do has a task done and returns its time in seconds.
func (s *session) do(task string) (float64, error) {
	if _, err := io.WriteString(s.in, task+"\n"); err != nil {
		return 0, fmt.Errorf("%s in the container: %w", task, err)
	}
	if !s.out.Scan() {
		return 0, fmt.Errorf("%s in the container: no answer: %s", task, strings.TrimSpace(s.messages.String()))
	}
	answer := s.out.Text()
	if reason, failed := strings.CutPrefix(answer, "error "); failed {
		if reason == errNotHere.Error() {
			return 0, errNotHere
		}
		return 0, fmt.Errorf("%s in the container: %s", task, reason)
	}
	return strconv.ParseFloat(answer, 64)
}

// close ends the program. Its exit status says nothing that do did not.
func (s *session) close() error {
	err := s.in.Close()
	if waitErr := s.cmd.Wait(); waitErr != nil {
		return errors.Join(err, fmt.Errorf("podman exec: %w: %s", waitErr, strings.TrimSpace(s.messages.String())))
	}
	return err
}
