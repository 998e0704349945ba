package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// report writes tables and plots.
func report(in, out, format string) error {
	r, err := load(in)
	if err != nil {
		return err
	}
	if len(r.Cells) == 0 {
		return fmt.Errorf("%s: no results", in)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, fsType := range r.fileSystems() {
		if err := r.plotStarts(fsType, filepath.Join(out, "start-"+fsType+"."+format)); err != nil {
			return err
		}
		for _, image := range r.images() {
			if err := r.plotDisk(fsType, image, filepath.Join(out, "disk-"+fsType+"-"+image+"."+format)); err != nil {
				return err
			}
		}
	}
	for name, text := range map[string]string{"README.md": r.page(), "summary.md": r.summary()} {
		if err := os.WriteFile(filepath.Join(out, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	failures := 0
	for _, c := range r.Cells {
		if c.Failed != "" && !strings.HasPrefix(c.Failed, unavailable) {
			failures++
		}
	}
	if failures > 0 {
		return fmt.Errorf("%d of %d configurations failed:\n%s", failures, len(r.Cells), r.failed())
	}
	return nil
}

const method = `## How it is measured

- Every image on every file system has a new file system with one new store for each driver. Rounds are interleaved: all
  configurations are measured once before any is measured again. Tables show medians; a number in brackets says of how many
  samples, where that is not %d: of an image with more than %s entries, what took more than %.0f s in all is measured three times only, and
  there are fewer containers at the same time where one takes long to start or much disk. [results.json](results.json) has every sample.
- Starts: wall time of a whole ` + "`podman run -d --network none`" + `, which returns when the container's process has started.
  *First start*: nothing of the image was made for any mapping before. *Fresh mapping*: ` + "`--uidmap 0:N:65536`" + ` with an N never used
  before (as ` + "`--userns=auto`" + ` does it, but chosen, so that it is known to be fresh). *Cached mapping*: the container was removed, and one with
  the same mapping is started. Without a user namespace, all three are the same.
- *Removal*: wall time of ` + "`podman rm -f -t 0`" + ` of a running container; *after use*: one in which all that the second table shows was done.
- *KB* and *inodes*: growth of the file system (statfs, synchronised) with a fresh mapping, the container's own few files included.
- *Slab KB*, *charged KB*, *memory KB*: what one more running container with a mapping of its own takes in memory, with ` + "`find /`" + ` run in it; medians of
  up to %d containers after the first. Slab: growth of Slab in /proc/meminfo, mostly inodes and dentries, reclaimable or not, those of a tree that is
  made for the mapping included. Charged: kernel memory charged to the container's control group, which is what only its own work brought in.
  Memory: growth of all of the machine's memory that is not page cache (MemTotal - MemFree - Buffers - Cached), so conmon and a FUSE
  daemon are in it, but also whatever else the machine does meanwhile.
- *Page cache*: growth of Cached in /proc/meminfo (without Shmem) when containers with different mappings read the same 100 MB file, in
  units of the file; two containers, or as many as the bars say.
- *Read*: open and read %d files in random order. *tar*: /usr/local/go (minbase: /usr), into a pipe, warm. *Compile*: a small Go program and
  the runtime, with the image's Go and an empty build cache. *Cold*: page cache, dentries and inodes dropped before (/proc/sys/vm/drop_caches); the file
  system is %s.
- *As on Linux 5.10*: ` + "`erofs_without = \"data-only, file, idmap\"`" + `: an image for each mapping, above ordinary lowers, through a loop device.
`

// page returns the whole report.
func (r *Result) page() string {
	var s strings.Builder
	s.WriteString("# Benchmarks\n\nMade by `make bench`; do not edit. " + r.where() + "\n\n")
	if failed := r.failed(); failed != "" {
		s.WriteString("Not measured:\n\n" + failed + "\n")
	}
	if r.Machine.NoCold != "" {
		s.WriteString("Without cold caches: " + r.Machine.NoCold + "\n\n")
	}
	for _, fsType := range r.fileSystems() {
		fmt.Fprintf(&s, "![start time against image size, %s](start-%s.svg)\n\n", fsType, fsType)
	}
	if bars := r.bars(); len(bars) > 0 {
		kept := 0
		for _, b := range bars {
			if b.kept {
				kept++
			}
		}
		fmt.Fprintf(&s, "## Bars\n\n%d of %d pass.\n\n%s\n", kept, len(bars), barTable(bars))
	}
	for _, fsType := range r.fileSystems() {
		for _, image := range r.images() {
			i := r.Images[image]
			fmt.Fprintf(&s, "## %s, image of %s entries (%s, %d layers, %s MB)\n\n", fsType, thousands(int64(i.Entries)), image, i.Layers, thousands(i.Bytes>>20))
			s.WriteString("Seconds; KB and inodes of one more mapping.\n\n")
			s.WriteString(r.table(fsType, image, startColumns) + "\nIn the container, seconds.\n\n")
			s.WriteString(r.table(fsType, image, insideColumns) + "\n")
			fmt.Fprintf(&s, "![disk against number of mappings, %s, %s](disk-%s-%s.svg)\n\n", fsType, image, fsType, image)
		}
	}
	fmt.Fprintf(&s, method, r.Machine.Rounds, thousands(hugeImage), r.Machine.Budget, growing-1, sampled, r.Machine.Disk)
	return s.String()
}

// where describes the machine in a sentence.
func (r *Result) where() string {
	m := r.Machine
	var versions []string
	for _, name := range slices.Sorted(maps.Keys(m.Versions)) {
		versions = append(versions, name+" "+m.Versions[name])
	}
	return fmt.Sprintf("%s, kernel %s, %s, %d cores, %s MB; %s; file systems %s. Medians of %d.",
		m.Date, m.Kernel, m.CPU, m.Cores, thousands(m.MemoryMB), strings.Join(versions, ", "), m.Disk, m.Rounds)
}

// failed lists what could not be measured.
func (r *Result) failed() string {
	var s strings.Builder
	for _, c := range r.Cells {
		if c.Failed != "" {
			fmt.Fprintf(&s, "- %s, %s, %s: %s\n", c.FS, c.Image, c.Label, c.Failed)
		}
	}
	return s.String()
}

// summary returns a short table and a plot for the project's README: the first
// file system, and of the images one of middle size.
func (r *Result) summary() string {
	fsType, images := r.fileSystems()[0], r.images()
	image := images[len(images)/2]
	var columns []column
	for _, c := range startColumns {
		if slices.Contains([]string{firstS, freshS, cachedS, removeS, freshKB, freshInodes}, c.metric) {
			columns = append(columns, c)
		}
	}
	return fmt.Sprintf("`podman run` and `podman rm`, seconds; disk and inodes per mapping; an image of %s entries (%s MB) on %s.\n%s\n\n%s\n"+
		"![start time against image size](start-%s.svg)\n",
		thousands(int64(r.Images[image].Entries)), thousands(r.Images[image].Bytes>>20), fsType, r.where(), r.table(fsType, image, columns), fsType)
}
