package main

import (
	"fmt"
	"math"
)

// bar is something that was promised, and whether it was kept.
type bar struct {
	what     string
	limit    string
	where    string // file system and image
	measured string
	kept     bool
}

// atMost and atLeast say how a value compares with a limit.
func atMost(what, where string, v, limit float64, unit string) bar {
	return bar{what, "≤ " + number(limit) + unit, where, number(v), v <= limit}
}

func atLeast(what, where string, v, limit float64, unit string) bar {
	return bar{what, "≥ " + number(limit) + unit, where, number(v), v >= limit}
}

// number formats a value with at least two significant digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// limits that depend on the image.
var startLimits = map[string]struct{ delayMS, faster float64 }{
	"big":  {delayMS: 40, faster: 20},
	"huge": {delayMS: 80, faster: 50},
}

// bars judges what was promised of the engine erofs, in both of its forms, and
// of metacopy, as far as the results say it. What was not measured is left out.
func (r *Result) bars() []bar {
	var all []bar
	for _, fsType := range r.fileSystems() {
		for _, image := range r.images() {
			for _, id := range []string{erofsID, erofs510ID} {
				if c := r.cell(fsType, image, id); c != nil && c.Failed == "" {
					all = append(all, r.startBars(c)...)
					all = append(all, r.diskBars(c)...)
					all = append(all, r.insideBars(c)...)
				}
			}
			all = append(all, r.metacopyBars(fsType, image)...)
		}
	}
	return all
}

// pair returns the medians of one measurement in two cells, and whether both
// were measured.
func pair(a, b *Cell, metric string) (va, vb float64, ok bool) {
	va, na := a.median(metric)
	vb, nb := b.median(metric)
	return va, vb, na > 0 && nb > 0
}

func (c *Cell) where() string { return c.FS + " " + c.Image }

// startBars: how fast containers start.
func (r *Result) startBars(c *Cell) []bar {
	var all []bar
	plain := r.cell(c.FS, c.Image, plainID)
	limits, limited := startLimits[c.Image]
	if fresh, none, ok := pair(c, plain, freshS); ok && limited {
		all = append(all, atMost(c.Label+": start with a fresh mapping, minus start without user namespace", c.where(), (fresh-none)*1000, limits.delayMS, " ms"))
	}
	for _, id := range []string{chownID, chownMID} {
		chown := r.cell(c.FS, c.Image, id)
		if fresh, slow, ok := pair(c, chown, freshS); ok && limited {
			all = append(all, atLeast(c.Label+": start with a fresh mapping, times faster than "+chown.Label, c.where(), slow/fresh, limits.faster, ""))
		}
	}
	first, n := c.median(firstS)
	none, m := plain.median(freshS)
	if n > 0 && m > 0 && limited {
		all = append(all, atMost(c.Label+": first start, per entry of the image", c.where(), (first-none)*1e6/float64(r.Images[c.Image].Entries), 5, " µs"))
	}
	return all
}

// diskBars: what a mapping takes on the disk.
func (r *Result) diskBars(c *Cell) []bar {
	if _, limited := startLimits[c.Image]; !limited {
		return nil
	}
	var all []bar
	for _, id := range []string{chownID, chownMID} {
		chown := r.cell(c.FS, c.Image, id)
		if kb, much, ok := pair(c, chown, freshKB); ok && much > 0 {
			all = append(all, atMost(c.Label+": disk of a mapping, share of that of "+chown.Label, c.where(), kb/much, 0.1, ""))
		}
	}
	if files, n := c.median(freshInodes); n > 0 {
		all = append(all, atMost(c.Label+": files of a mapping, the container's own included", c.where(), files, 40, ""))
	}
	return all
}

// insideBars: what work in a container costs.
func (r *Result) insideBars(c *Cell) []bar {
	var all []bar
	idmap := r.cell(c.FS, c.Image, idmapID)
	for _, m := range []struct{ name, metric string }{
		{"find / cold", findCold},
		{"find / warm", findWarm},
		{"open and read, cold", readCold},
		{"open and read, warm", readWarm},
	} {
		if v, of, ok := pair(c, idmap, m.metric); ok && of > 0 {
			all = append(all, atMost(c.Label+": "+m.name+", ratio to overlay with idmapped mounts", c.where(), v/of, 1.25, ""))
		}
	}
	if v, measured := c.median(shared); measured > 0 {
		n, _ := c.median(sharers)
		all = append(all, atMost(fmt.Sprintf("%s: page cache of a file that %.0f containers read, in files", c.Label, n), c.where(), v, 1.05, ""))
	}
	return all
}

// metacopyBars: CPU time of a fresh tree. (A recycled one is not measured here.)
func (r *Result) metacopyBars(fsType, image string) []bar {
	c, plain := r.cell(fsType, image, metacopyID), r.cell(fsType, image, plainID)
	cpu, none, ok := pair(c, plain, freshCPU)
	if _, limited := startLimits[image]; !ok || !limited || fsType != "ext4" {
		return nil
	}
	return []bar{atMost(c.Label+": CPU of a fresh mapping, per entry", c.where(), (cpu-none)*1e6/float64(r.Images[image].Entries), 27, " µs")}
}
