package main

import (
	"archive/tar"
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{3, 1}, 2},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.v); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.v, got, c.want)
		}
	}
	v := []float64{2, 1, 3}
	if median(v); v[0] != 2 {
		t.Error("median sorted the samples")
	}
}

func TestWants(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		rounds  int
		budget  float64
		want    bool
	}{
		{nil, 5, 25, true},
		{[]float64{1, 1, 1}, 5, 25, true},
		{[]float64{1, 1, 1, 1, 1}, 5, 25, false},
		{[]float64{20, 20}, 5, 25, true},
		{[]float64{20, 20, 20}, 5, 25, false},
		{[]float64{20, 20, 20}, 5, 0, true},
		{[]float64{20}, 1, 25, false},
		{[]float64{20}, 1, 0, false},
	} {
		cell := &Cell{Samples: map[string][]float64{freshS: c.samples}}
		if got := cell.wants(freshS, c.rounds, c.budget); got != c.want {
			t.Errorf("%v of %d: wants %t", c.samples, c.rounds, got)
		}
	}
}

// results returns made-up results: everything takes as long as its name says.
func results(fresh map[string]float64) *Result {
	r := &Result{Machine: Machine{Rounds: 2}, Images: map[string]Image{"big": {Entries: 100_000}}}
	for _, c := range configs {
		v, ok := fresh[c.ID]
		if !ok {
			continue
		}
		cell := &Cell{FS: "ext4", Image: "big", Config: c.ID, Label: c.Label}
		for _, metric := range []string{freshS, freshKB, findCold, findWarm, readCold, readWarm} {
			cell.add(metric, v)
			cell.add(metric, v)
		}
		if c.shifts() {
			cell.add(firstS, v+0.3)
			cell.add(firstKB, 10)
		}
		cell.add(freshInodes, 33)
		cell.add(shared, 1.01)
		cell.add(sharers, 50)
		r.Cells = append(r.Cells, cell)
	}
	return r
}

func TestBars(t *testing.T) {
	r := results(map[string]float64{plainID: 0.1, idmapID: 0.1, chownID: 12, chownMID: 2, erofsID: 0.12})
	verdicts := map[string]bool{}
	for _, b := range r.bars() {
		verdicts[b.what] = b.kept
	}
	const e = "**shiftoverlay** `erofs`: "
	for what, kept := range map[string]bool{
		e + "start with a fresh mapping, minus start without user namespace":              true,
		e + "start with a fresh mapping, times faster than overlay, chown":                true,
		e + "start with a fresh mapping, times faster than overlay, chown, `metacopy=on`": false,
		e + "first start, per entry of the image":                                         true,
		e + "disk of a mapping, share of that of overlay, chown":                          true,
		e + "files of a mapping, the container's own included":                            true,
		e + "find / cold, ratio to overlay with idmapped mounts":                          true,
		e + "page cache of a file that 50 containers read, in files":                      true,
		"**shiftoverlay** `erofs` as on Linux 5.10: first start, per entry of the image":  false,
	} {
		if got := verdicts[what]; got != kept {
			t.Errorf("%s: kept %t, want %t", what, got, kept)
		}
	}
	if _, judged := verdicts["**shiftoverlay** `erofs` as on Linux 5.10: first start, per entry of the image"]; judged {
		t.Error("judged what was not measured")
	}
	text := barTable(r.bars())
	for _, want := range []string{"| ext4 big |", "| ≤ 40 ms | 20.0 |", "**16.7 miss**"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 40: "40", 0.1: "0.10", 1.25: "1.25", 12.34: "12.3", 1234.5: "1234", 0.00039: "0.00039", -3.21: "-3.21"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	r := results(map[string]float64{plainID: 0.1, erofsID: 0.125})
	r.cell("ext4", "big", erofsID).add(cachedS, 0.5)
	text := r.table("ext4", "big", startColumns)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines:\n%s", len(lines), text)
	}
	for i, want := range map[int]string{
		0: "| | first start | fresh mapping |",
		2: "| overlay, no user namespace | 0.100 | 0.100 | – |",
		3: "| **shiftoverlay** `erofs` | 0.425 (1) | 0.125 | 0.500 (1) |",
	} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d is %s, want %s…", i, lines[i], want)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestDiskLines(t *testing.T) {
	r := results(map[string]float64{plainID: 1024, erofsID: 2048})
	for _, l := range r.diskLines("ext4", "big") {
		if l.id == erofsID && (len(l.points) != 2 || l.points[0].Y != leastMB || math.Abs(l.points[1].Y-(2+10./1024)) > 1e-9) {
			t.Errorf("erofs: %v", l.points)
		}
		if l.id == plainID && (len(l.points) != 2 || l.points[1].Y != 2) {
			t.Errorf("plain: %v", l.points)
		}
	}
}

func TestDecades(t *testing.T) {
	var labels []string
	for _, tick := range (decades{}).Ticks(0.09, 3) {
		if tick.Label != "" {
			labels = append(labels, tick.Label)
		}
	}
	if got := strings.Join(labels, " "); got != "0.1 0.2 0.5 1 2" {
		t.Errorf("labels %s", got)
	}
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "results.json")
	if err := results(map[string]float64{plainID: 0.1, idmapID: 0.1, chownID: 12, erofsID: 0.12}).save(file); err != nil {
		t.Fatal(err)
	}
	if err := report(file, dir, "svg"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "summary.md", "start-ext4.svg", "disk-ext4-big.svg"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(b) == 0 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(page), "%!") || strings.Contains(string(page), dir) {
		t.Errorf("not fit to be shown:\n%s", page)
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct{ output, program, want string }{
		{"podman version 5.6.2\n", "podman", "5.6.2"},
		{"fusermount3 version: 3.14.0\nfuse-overlayfs: version 1.10\nFUSE library version 3.14.0\n", "fuse-overlayfs", "1.10"},
		{"nothing\n", "x", "?"},
	} {
		if got := versionIn(c.output, c.program); got != c.want {
			t.Errorf("%s: %s, want %s", c.program, got, c.want)
		}
	}
	if got := kernelVersion("6.18.44-something+"); got != "6.18.44" {
		t.Errorf("kernel %s", got)
	}
	if got := cpuModel([]byte("processor\t: 0\nmodel name\t: AMD EPYC\n")); got != "AMD EPYC" {
		t.Errorf("CPU %s", got)
	}
	if got := parseMeminfo([]byte("MemTotal:       100 kB\nCached:  7 kB\n"))["Cached"]; got != 7 {
		t.Errorf("Cached %v", got)
	}
}

func TestImage(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for name, headers := range map[string][]tar.Header{
		"1.tar": {{Name: "./a/", Typeflag: tar.TypeDir}, {Name: "./a/x", Size: 3}, {Name: "a/y", Size: 2}, {Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "x"}},
		"2.tar": {{Name: "a/.wh.x"}, {Name: "a/y", Size: 5}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, h.Size)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files = []string{filepath.Join(dir, "1.tar"), filepath.Join(dir, "2.tar")}
	small, all := filepath.Join(dir, "small"), filepath.Join(dir, "all")
	if err := writeImage(small, false, files[:1]); err != nil {
		t.Fatal(err)
	}
	if err := writeImage(all, false, []string{small, files[1]}); err != nil {
		t.Fatal(err)
	}
	c, err := readContents(all)
	if err != nil {
		t.Fatal(err)
	}
	if c.Layers != 2 || c.Entries != 3 || c.Bytes != 5 || len(c.files) != 1 || c.files[0] != "/a/y" {
		t.Errorf("contents %+v", c)
	}
}

func TestLayersAreTheSameEveryTime(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 700 MB")
	}
	var first map[string]int64
	for range 2 {
		dir := t.TempDir()
		if err := writeLayers(dir); err != nil {
			t.Fatal(err)
		}
		sizes := map[string]int64{}
		for _, name := range []string{"1-node.tar", "2-python.tar", "3-app.tar"} {
			if err := readLayer(filepath.Join(dir, name), sizes); err != nil {
				t.Fatal(err)
			}
		}
		if len(sizes) < 180_000 {
			t.Errorf("%d entries", len(sizes))
		}
		if first != nil && len(first) != len(sizes) {
			t.Errorf("%d entries, then %d", len(first), len(sizes))
		}
		first = sizes
	}
}

func TestInside(t *testing.T) {
	var out strings.Builder
	if err := inside(strings.NewReader("nothing\nhum\n"), &out); err != nil {
		t.Fatal(err)
	}
	if out.String() != "0.000000\nerror unknown task \"hum\"\n" {
		t.Errorf("answers %q", out.String())
	}
}
