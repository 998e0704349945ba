package main

import (
	"fmt"
	"io"
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// bars show progress on a terminal, one bar for each item.
type bars struct {
	progress *mpb.Progress // nil: no terminal
	bars     []*mpb.Bar
}

// isTerminal says whether a writer is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// barWidth is that of podman's bars.
const barWidth = 40

// newBars makes a bar of n steps for each name.
func newBars(w io.Writer, names []string, n int) *bars {
	if !isTerminal(w) {
		return &bars{}
	}
	b := &bars{progress: mpb.New(mpb.WithOutput(w), mpb.WithWidth(barWidth))}
	for _, name := range names {
		b.bars = append(b.bars, b.progress.AddBar(int64(n),
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name("Shifting "+name, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersNoUnit("%d / %d"), decor.Name(" "), decor.Elapsed(decor.ET_STYLE_MMSS)),
		))
	}
	return b
}

// done counts a step of a name.
func (b *bars) done(i int) {
	if b.progress != nil {
		b.bars[i].Increment()
	}
}

// end takes the bars away. It may be called twice.
func (b *bars) end() {
	if b.progress == nil {
		return
	}
	for _, bar := range b.bars {
		bar.Abort(true) // of no effect on a bar that is complete
	}
	b.progress.Wait()
	b.progress = nil
}

// status is a line on a terminal that is written over.
type status struct{ w io.Writer }

// set shows a text.
func (s status) set(format string, args ...any) {
	if isTerminal(s.w) {
		fmt.Fprintf(s.w, "\r\x1b[K"+format, args...)
	}
}

// clear takes it away.
func (s status) clear() { s.set("") }
