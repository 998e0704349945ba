package main

import (
	"bytes"
	"cmp"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Size of a plot, and of its right side, where the legend is.
const (
	plotWidth   = 24 * vg.Centimeter
	plotHeight  = 12.5 * vg.Centimeter
	legendWidth = 7.2 * vg.Centimeter
)

// look is how a configuration is drawn: ours in colours and thick, others thin
// and dashed.
type look struct {
	color  color.RGBA
	width  vg.Length
	dashes []vg.Length
	glyph  draw.GlyphDrawer
}

var (
	dashed = []vg.Length{vg.Points(6), vg.Points(3)}
	dotted = []vg.Length{vg.Points(1.5), vg.Points(2.5)}
)

var looks = map[string]look{
	plainID:          {rgb(0x000000), vg.Points(1.2), dotted, draw.PlusGlyph{}},
	idmapID:          {rgb(0x707070), vg.Points(1.2), dashed, draw.CrossGlyph{}},
	chownID:          {rgb(0xb22222), vg.Points(1.2), dashed, draw.BoxGlyph{}},
	chownMID:         {rgb(0xe07050), vg.Points(1.2), dashed, draw.PyramidGlyph{}},
	"fuse-overlayfs": {rgb(0x8c6d31), vg.Points(1.2), dashed, draw.RingGlyph{}},
	"vfs":            {rgb(0xd62fa0), vg.Points(1.2), dashed, draw.TriangleGlyph{}},
	"shift-idmap":    {rgb(0x2ca02c), vg.Points(2.2), nil, draw.CircleGlyph{}},
	erofsID:          {rgb(0x1f4fd8), vg.Points(2.6), nil, draw.CircleGlyph{}},
	erofs510ID:       {rgb(0x17a2d4), vg.Points(2.2), nil, draw.SquareGlyph{}},
	metacopyID:       {rgb(0x7b3fb5), vg.Points(2.2), nil, draw.PyramidGlyph{}},
	"shift-copyup":   {rgb(0xff9d1c), vg.Points(2.2), nil, draw.BoxGlyph{}},
}

func rgb(v uint32) color.RGBA {
	return color.RGBA{R: uint8(v >> 16), G: uint8(v >> 8), B: uint8(v), A: 255}
}

// line is a configuration in a plot.
type line struct {
	id, label string
	points    plotter.XYs
}

// startLines returns the time of a start with a fresh mapping for images of
// growing size.
func (r *Result) startLines(fsType string) []line {
	var lines []line
	for _, c := range configs {
		l := line{id: c.ID, label: c.Label}
		for _, image := range r.images() {
			if v, n := r.cell(fsType, image, c.ID).median(freshS); n > 0 {
				l.points = append(l.points, plotter.XY{X: float64(r.Images[image].Entries), Y: v})
			}
		}
		lines = append(lines, l)
	}
	return withPoints(lines)
}

// leastMB stands for everything below: a file system may even shrink by a few
// KiB while a container starts, and the scale is logarithmic.
const leastMB = 0.01

// diskLines returns how much an image's mappings take together, in MB: the
// growth of the first start, then that of every fresh mapping.
func (r *Result) diskLines(fsType, image string) []line {
	var lines []line
	for _, c := range configs {
		cell := r.cell(fsType, image, c.ID)
		if cell == nil || len(cell.Samples[freshKB]) == 0 {
			continue
		}
		l, sum := line{id: c.ID, label: c.Label}, 0.0
		growth := cell.Samples[freshKB]
		if first := cell.Samples[firstKB]; len(first) > 0 {
			growth = append([]float64{median(first)}, growth...)
		}
		for i, kb := range growth[:min(len(growth), max(r.Machine.Rounds, 1))] {
			sum += kb / 1024
			l.points = append(l.points, plotter.XY{X: float64(i + 1), Y: max(sum, leastMB)})
		}
		lines = append(lines, l)
	}
	return withPoints(lines)
}

// withPoints leaves out lines that a logarithmic scale cannot show, and sorts the
// rest by how they end, the highest first.
func withPoints(lines []line) []line {
	lines = slices.DeleteFunc(lines, func(l line) bool {
		return len(l.points) == 0 || slices.ContainsFunc(l.points, func(p plotter.XY) bool { return p.X <= 0 || p.Y <= 0 })
	})
	slices.SortStableFunc(lines, func(a, b line) int {
		return cmp.Compare(b.points[len(b.points)-1].Y, a.points[len(a.points)-1].Y)
	})
	return lines
}

// plotStarts draws start time against image size.
func (r *Result) plotStarts(fsType, file string) error {
	p := newPlot(fmt.Sprintf("podman run with a mapping never used before, %s, kernel %s", fsType, r.Machine.Kernel),
		"files and folders in the image", "seconds, medians")
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.ConstantTicks(r.imageTicks())
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, decades{}
	return drawLines(p, r.startLines(fsType), file)
}

// plotDisk draws disk against the number of mappings.
func (r *Result) plotDisk(fsType, image, file string) error {
	p := newPlot(fmt.Sprintf("Disk taken by mappings of an image of %s entries, %s", thousands(int64(r.Images[image].Entries)), fsType),
		"mappings", "MB, template included")
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, decades{}
	lines := r.diskLines(fsType, image)
	last := 1.0
	for _, l := range lines {
		last = max(last, l.points[len(l.points)-1].X)
	}
	var ticks plot.ConstantTicks
	for i := 1.0; i <= last; i++ {
		ticks = append(ticks, plot.Tick{Value: i, Label: fmt.Sprint(i)})
	}
	p.X.Tick.Marker = ticks
	return drawLines(p, lines, file)
}

func newPlot(title, x, y string) *plot.Plot {
	sans := font.Font{Typeface: "Liberation", Variant: "Sans"}
	plot.DefaultFont, plotter.DefaultFont = sans, sans
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font.Size = vg.Points(13)
	p.Title.Padding = vg.Points(10)
	p.X.Label.Padding, p.Y.Label.Padding = vg.Points(4), vg.Points(4)
	return p
}

// imageTicks labels the sizes of the images that were measured.
func (r *Result) imageTicks() []plot.Tick {
	var ticks []plot.Tick
	for _, image := range r.images() {
		n := r.Images[image].Entries
		ticks = append(ticks, plot.Tick{Value: float64(n), Label: thousands(int64(n))})
	}
	return ticks
}

// decades marks 1, 2 and 5 of every power of ten.
type decades struct{}

// Ticks implements plot.Ticker.
func (decades) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for exp := math.Floor(math.Log10(low)); exp <= math.Ceil(math.Log10(high)); exp++ {
		for digit := 1.0; digit < 10; digit++ {
			v := digit * math.Pow(10, exp)
			if v < low*0.999 || v > high*1.001 {
				continue
			}
			t := plot.Tick{Value: v}
			if digit == 1 || digit == 2 || digit == 5 {
				t.Label = fmt.Sprintf("%.4g", v)
			}
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// drawLines adds lines and writes the plot, with its legend beside it, as SVG, or
// as PNG to look at it.
func drawLines(p *plot.Plot, lines []line, file string) error {
	if len(lines) == 0 {
		return nil
	}
	legend := plot.NewLegend()
	legend.Top, legend.Left, legend.Padding = true, true, vg.Points(4.5)
	legend.ThumbnailWidth = vg.Points(26)
	legend.TextStyle.Font.Size = vg.Points(10)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = rgb(0xdddddd), rgb(0xdddddd)
	p.Add(grid)
	xs, ys := span{math.Inf(1), 0}, span{math.Inf(1), 0}
	var thin []plot.Plotter
	for _, l := range lines {
		curve, marks, err := plotter.NewLinePoints(l.points)
		if err != nil {
			return err
		}
		k := looks[l.id]
		curve.LineStyle = draw.LineStyle{Color: k.color, Width: k.width, Dashes: k.dashes}
		marks.GlyphStyle = draw.GlyphStyle{Color: k.color, Radius: vg.Points(3.2), Shape: k.glyph}
		legend.Add(plainText(l.label), curve, marks)
		if k.dashes == nil {
			p.Add(curve, marks)
		} else { // thin ones cover thick ones, so that both are seen
			thin = append(thin, curve, marks)
		}
		for _, pt := range l.points {
			xs, ys = xs.with(pt.X), ys.with(pt.Y)
		}
	}
	p.Add(thin...)
	p.Y.Min, p.Y.Max = ys.low/1.4, ys.high*1.4
	if _, log := p.X.Scale.(plot.LogScale); log {
		p.X.Min, p.X.Max = xs.low/1.15, xs.high*1.15
	} else {
		p.X.Min, p.X.Max = xs.low-0.15, xs.high+0.15
	}
	var to interface {
		vg.CanvasSizer
		vg.CanvasWriterTo
	} = vgsvg.New(plotWidth, plotHeight)
	if filepath.Ext(file) == ".png" {
		to = vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(plotWidth, plotHeight), vgimg.UseDPI(110))}
	}
	c := draw.New(to)
	c.SetColor(color.White)
	c.Fill(c.Path())
	p.Draw(draw.Crop(c, vg.Points(8), -legendWidth, vg.Points(8), -vg.Points(8)))
	legend.Draw(draw.Crop(c, plotWidth-legendWidth+vg.Points(8), 0, 0, -vg.Points(36)))
	return writePlot(to, file)
}

// span is what an axis has to show.
type span struct{ low, high float64 }

func (s span) with(v float64) span { return span{min(s.low, v), max(s.high, v)} }

// plainText is Markdown without its marks.
func plainText(s string) string { return strings.NewReplacer("*", "", "`", "").Replace(s) }

// writePlot writes a plot. The fonts of an SVG file are those of whoever looks at
// it, so it names more than one.
func writePlot(c vg.CanvasWriterTo, file string) error {
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return err
	}
	text := bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:'Liberation Sans',Arial,Helvetica,sans-serif;"))
	return os.WriteFile(file, text, 0o644)
}
