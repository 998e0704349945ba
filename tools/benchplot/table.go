package main

import (
	"fmt"
	"slices"
	"strings"
)

// column is a measurement in a table.
type column struct {
	title, metric string
	format        func(v float64) string
}

func seconds(v float64) string { return fmt.Sprintf("%.3f", v) }
func ratio(v float64) string   { return fmt.Sprintf("%.2f", v) }
func whole(v float64) string   { return thousands(int64(v + 0.5)) }

// thousands formats 1234567 as 1,234,567.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

var startColumns = []column{
	{"first start", firstS, seconds},
	{"fresh mapping", freshS, seconds},
	{"cached mapping", cachedS, seconds},
	{"removal", removeS, seconds},
	{"removal after use", removeUsedS, seconds},
	{"KB", freshKB, whole},
	{"inodes", freshInodes, whole},
	{"slab KB", slabFindKB, whole},
	{"charged KB", kernelKB, whole},
	{"memory KB", memoryKB, whole},
	{"page cache", shared, ratio},
}

var insideColumns = []column{
	{"find / cold", findCold, seconds},
	{"find / warm", findWarm, seconds},
	{"read cold", readCold, seconds},
	{"read warm", readWarm, seconds},
	{"tar", tarS, seconds},
	{"compile", compileS, seconds},
	{"300 execs", execsS, seconds},
}

// table returns the medians of all configurations with one image on one file
// system, a row each. Where there are fewer samples than rounds, their number
// follows.
func (r *Result) table(fsType, image string, columns []column) string {
	var s strings.Builder
	s.WriteString("| |")
	for _, c := range columns {
		s.WriteString(" " + c.title + " |")
	}
	s.WriteString("\n|---|" + strings.Repeat("---:|", len(columns)) + "\n")
	for _, cell := range r.Cells {
		if cell.FS != fsType || cell.Image != image {
			continue
		}
		s.WriteString("| " + cell.Label + " |")
		for _, c := range columns {
			s.WriteString(" " + r.value(cell, c) + " |")
		}
		s.WriteString("\n")
	}
	return s.String()
}

// value returns a median as it is shown.
func (r *Result) value(cell *Cell, c column) string {
	v, n := cell.median(c.metric)
	if n == 0 && c.metric == firstS { // nothing is made but for the mapping
		v, n = cell.median(freshS)
	}
	switch {
	case n == 0:
		return "–"
	case n < r.Machine.Rounds && n != growing-1 || n == 1 && r.Machine.Rounds > 1:
		return fmt.Sprintf("%s (%d)", c.format(v), n)
	}
	return c.format(v)
}

// barTable returns the bars as Markdown: a row for each, a column for each image
// on each file system. Where a limit depends on the image, all are shown.
func barTable(bars []bar) string {
	var rows, columns []string
	limits := map[string][]string{}
	cells := map[[2]string]string{}
	for _, b := range bars {
		if !slices.Contains(rows, b.what) {
			rows = append(rows, b.what)
		}
		if !slices.Contains(columns, b.where) {
			columns = append(columns, b.where)
		}
		if !slices.Contains(limits[b.what], b.limit) {
			limits[b.what] = append(limits[b.what], b.limit)
		}
		cell := b.measured
		if !b.kept {
			cell = "**" + cell + " miss**"
		}
		cells[[2]string{b.what, b.where}] = cell
	}
	var s strings.Builder
	s.WriteString("| | bar | " + strings.Join(columns, " | ") + " |\n|---|---|" + strings.Repeat("---:|", len(columns)) + "\n")
	for _, row := range rows {
		s.WriteString("| " + row + " | " + strings.Join(limits[row], ", ") + " |")
		for _, column := range columns {
			s.WriteString(" " + cells[[2]string{row, column}] + " |")
		}
		s.WriteString("\n")
	}
	return s.String()
}
