package adopt

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Use is why a store cannot move now.
type Use struct {
	// Path is what is mounted, or open.
	Path string
	// Process has the path open; "" for a mount.
	Process string
}

func (u Use) String() string {
	if u.Process == "" {
		return u.Path + " is mounted"
	}
	return fmt.Sprintf("%s has %s open", u.Process, u.Path)
}

// folders are all of both drivers, in graph root and run root.
func (s Store) folders(m Move) []string {
	var out []string
	for _, root := range []string{s.Graph, s.Run} {
		for _, driver := range []string{m.From, m.To} {
			for _, suffix := range append(slices.Clone(graphSuffixes), shifted) {
				out = append(out, filepath.Join(root, driver+suffix))
			}
		}
	}
	return out
}

// below tells whether a path is one of the folders or below one.
func below(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}

// Busy lists the mounts below the folders that would move, as this mount
// namespace has them, and the processes that have a file there or one of the
// given files open. The calling process does not count, and neither do the
// containers' shm folders: podman leaves some mounted after a container has ended, and
// they move with the folder that they are in.
func (s Store) Busy(m Move, files ...string) ([]Use, error) {
	folders := s.folders(m)
	homes := []string{filepath.Join(s.Graph, m.From), filepath.Join(s.Graph, m.To)}
	table, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !below(i.Mountpoint, folders) || slices.Contains(homes, i.Mountpoint) || strings.HasSuffix(i.Mountpoint, "/userdata/shm"), false
	})
	if err != nil {
		return nil, fmt.Errorf("look for mounts: %w", err)
	}
	var out []Use
	for _, i := range table {
		out = append(out, Use{Path: i.Mountpoint})
	}
	open, err := processes(append(folders, files...))
	return append(out, open...), err
}

// processes lists those that have a path open.
func processes(paths []string) ([]Use, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var out []Use
	for _, p := range list {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		fds, _ := os.ReadDir(filepath.Join(dir, "fd")) // it may have ended
		links := []string{filepath.Join(dir, "cwd")}
		for _, fd := range fds {
			links = append(links, filepath.Join(dir, "fd", fd.Name()))
		}
		for _, link := range links {
			target, err := os.Readlink(link)
			if err == nil && below(target, paths) {
				name, _ := os.ReadFile(filepath.Join(dir, "comm"))
				out = append(out, Use{Path: target, Process: fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))})
				break
			}
		}
	}
	return out, nil
}
