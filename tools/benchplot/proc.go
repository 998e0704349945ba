package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// meminfo returns /proc/meminfo in KiB.
func meminfo() (map[string]float64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	return parseMeminfo(b), nil
}

func parseMeminfo(b []byte) map[string]float64 {
	m := map[string]float64{}
	for line := range bytes.Lines(b) {
		name, value, _ := strings.Cut(string(line), ":")
		if fields := strings.Fields(value); len(fields) > 0 {
			if v, err := strconv.ParseFloat(fields[0], 64); err == nil {
				m[name] = v
			}
		}
	}
	return m
}

// usage is what a file system holds.
type usage struct{ kb, inodes float64 }

// used synchronises a file system and asks how full it is.
func used(dir string) (usage, error) {
	if err := syncfs(dir); err != nil {
		return usage{}, err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return usage{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return usage{kb: float64(s.Blocks-s.Bfree) * float64(s.Bsize) / 1024, inodes: float64(s.Files - s.Ffree)}, nil
}

// settle waits until a file system no longer gives back the space of what was
// deleted: xfs does that in the background.
func settle(dir string) error {
	before, err := used(dir)
	for range 100 {
		if err != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond)
		now, nowErr := used(dir)
		if nowErr != nil || now == before {
			return nowErr
		}
		before = now
	}
	return nil
}

// syncfs writes out what a file system has in memory, so that no writing from
// before falls into what is measured next.
func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// dropCaches makes the kernel forget what it can: the page cache, dentries and
// inodes. What was not written out stays, so dir's file system is synchronised.
func dropCaches(dir string) error {
	if err := syncfs(dir); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}

// kernelMemory returns the kernel's memory in KiB that a process's control group
// is charged for: inodes, dentries, page tables. 0 if the kernel does not say.
func kernelMemory(pid int) (float64, error) {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && parts[1] == "memory" {
			b, err := os.ReadFile("/sys/fs/cgroup/memory" + parts[2] + "/memory.kmem.usage_in_bytes")
			if err != nil {
				return 0, err
			}
			v, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
			return v / 1024, err
		}
	}
	for line := range strings.Lines(string(groups)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		b, err := os.ReadFile("/sys/fs/cgroup" + group + "/memory.stat")
		if err != nil {
			return 0, nil // the memory controller is off
		}
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, "kernel "); ok {
				v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				return v / 1024, err
			}
		}
	}
	return 0, nil
}

// machine describes this machine, without names and paths of it.
func machine() Machine {
	m := Machine{Date: time.Now().UTC().Format(time.DateOnly), Cores: runtime.NumCPU(), Versions: map[string]string{}}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = cpuModel(b)
	}
	if info, err := meminfo(); err == nil {
		m.MemoryMB = int64(info["MemTotal"] / 1024)
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = kernelVersion(unix.ByteSliceToString(u.Release[:]))
	}
	for _, p := range []string{"podman", "runc", "conmon", "fuse-overlayfs"} {
		if out, err := exec.Command(p, "--version").Output(); err == nil {
			m.Versions[p] = versionIn(string(out), p)
		}
	}
	return m
}

// cpuModel returns the model's name in /proc/cpuinfo.
func cpuModel(cpuinfo []byte) string {
	s := bufio.NewScanner(bytes.NewReader(cpuinfo))
	for s.Scan() {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// kernelVersion returns the numbers of a kernel's release, without what whoever
// built it added.
func kernelVersion(release string) string {
	if end := strings.IndexFunc(release, func(r rune) bool { return (r < '0' || r > '9') && r != '.' }); end >= 0 {
		release = release[:end]
	}
	return strings.TrimRight(release, ".")
}

// versionIn returns the first word that looks like a version, in the line that
// names the program if there is one.
func versionIn(output, program string) string {
	if _, line, ok := strings.Cut(output, program); ok {
		output = line
	}
	for word := range strings.FieldsSeq(output) {
		if word[0] >= '0' && word[0] <= '9' && strings.Contains(word, ".") {
			return word
		}
	}
	return "?"
}
