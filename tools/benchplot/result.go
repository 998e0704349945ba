package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Result is everything that one run of `make bench` measured.
type Result struct {
	Machine Machine          `json:"machine"`
	Images  map[string]Image `json:"images"`
	Cells   []*Cell          `json:"cells"`
}

// Machine is where it was measured.
type Machine struct {
	Date     string            `json:"date"`
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	MemoryMB int64             `json:"memory_mb"`
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
	Disk     string            `json:"disk"`
	Rounds   int               `json:"rounds"`
	Budget   float64           `json:"budget_s"`
	// NoCold says why nothing was measured with cold caches, if so.
	NoCold string `json:"no_cold,omitempty"`
}

// Image is what was started.
type Image struct {
	Layers  int   `json:"layers"`
	Entries int   `json:"entries"`
	Bytes   int64 `json:"bytes"`
}

// Cell is what was measured of one configuration with one image on one file
// system: all samples in the order in which they were taken.
type Cell struct {
	FS      string               `json:"fs"`
	Image   string               `json:"image"`
	Config  string               `json:"config"`
	Label   string               `json:"label"`
	Engine  string               `json:"engine,omitempty"`
	Failed  string               `json:"failed,omitempty"`
	Samples map[string][]float64 `json:"samples"`
}

// What is measured; the names are those of the JSON file. "_s" are seconds,
// "_kb" KiB.
const (
	firstS      = "first_s"       // podman run, nothing of this image made before
	freshS      = "fresh_s"       // podman run with a mapping never used before
	cachedS     = "cached_s"      // podman run with the mapping of the last container
	removeS     = "remove_s"      // podman rm -f of a container that did nothing
	removeUsedS = "remove_used_s" // podman rm -f of a container in which all files were looked at
	firstCPU    = "first_cpu_s"   // CPU of the podman process and its children
	freshCPU    = "fresh_cpu_s"
	firstKB     = "first_kb" // growth of the file system with the first start
	firstInodes = "first_inodes"
	freshKB     = "fresh_kb" // growth of the file system with one more mapping
	freshInodes = "fresh_inodes"
	kernelKB    = "kernel_kb"     // kernel memory charged to one more container in which find / ran
	slabStartKB = "slab_start_kb" // growth of Slab in /proc/meminfo with the start of one more container
	slabFindKB  = "slab_find_kb"  // the same, and with a find / in it
	memoryKB    = "memory_kb"     // growth of all memory that is not page cache, find / included
	shared      = "shared"        // growth of Cached, in units of the file that several containers read
	sharers     = "sharers"       // how many containers read it
	findCold    = "find_cold_s"
	findWarm    = "find_warm_s"
	readCold    = "read_cold_s"
	readWarm    = "read_warm_s"
	tarS        = "tar_s"
	compileS    = "compile_s"
	execsS      = "execs_s"
)

// add keeps a sample.
func (c *Cell) add(metric string, v float64) {
	if c.Samples == nil {
		c.Samples = map[string][]float64{}
	}
	c.Samples[metric] = append(c.Samples[metric], v)
}

// median returns the median of a measurement, and how many samples it is of.
func (c *Cell) median(metric string) (v float64, n int) {
	if c == nil {
		return 0, 0
	}
	return median(c.Samples[metric]), len(c.Samples[metric])
}

// wants tells whether a measurement has to be made once more: as often as
// rounds says, but with a budget (0: none) not more than three times if it took
// longer than that.
func (c *Cell) wants(metric string, rounds int, budget float64) bool {
	s := c.Samples[metric]
	if budget == 0 || len(s) < min(3, rounds) {
		return len(s) < rounds
	}
	var sum float64
	for _, v := range s {
		sum += v
	}
	return len(s) < rounds && sum < budget
}

// median returns the middle value, or the mean of the two in the middle; 0 if
// there are none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if m := len(s) / 2; len(s)%2 == 0 {
		return (s[m-1] + s[m]) / 2
	}
	return s[len(s)/2]
}

// cell returns the cell, or nil if that was not measured.
func (r *Result) cell(fsType, image, config string) *Cell {
	for _, c := range r.Cells {
		if c.FS == fsType && c.Image == image && c.Config == config {
			return c
		}
	}
	return nil
}

// distinct returns what f says of the cells, each once, in order of appearance.
func (r *Result) distinct(f func(*Cell) string) []string {
	var all []string
	for _, c := range r.Cells {
		if v := f(c); !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

func (r *Result) fileSystems() []string { return r.distinct(func(c *Cell) string { return c.FS }) }

// images returns the names of the images, the smallest first.
func (r *Result) images() []string {
	names := r.distinct(func(c *Cell) string { return c.Image })
	slices.SortFunc(names, func(a, b string) int { return r.Images[a].Entries - r.Images[b].Entries })
	return names
}

// load reads results; a file that is not there holds none.
func load(file string) (*Result, error) {
	r := &Result{Images: map[string]Image{}}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// save writes results.
func (r *Result) save(file string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
