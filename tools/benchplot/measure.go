package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// options are what measure is told.
type options struct {
	JSON, FS, Dir, Disk, Image, Layout string
	Configs                            []Config
	Rounds                             int
	Budget                             float64
	Log                                io.Writer
}

// sampled is how many files are opened and read.
const sampled = 20000

// hugeImage is the number of entries from which on slow measurements are made
// less often.
const hugeImage = 200_000

// bench is one image on one file system.
type bench struct {
	options
	result  *Result
	runners []*runner
	next    int // first host ID of the next fresh mapping
	begun   time.Time
}

// measure measures one image on one file system with all configurations, and
// adds the result to a file. Rounds are interleaved: every configuration is
// measured once before any is measured again, so that whatever disturbs the
// machine hits all of them alike.
func measure(o options) error {
	b := &bench{options: o, next: 1_000_000, begun: time.Now()}
	var err error
	if b.result, err = load(o.JSON); err != nil {
		return err
	}
	m := machine()
	m.Disk, m.Rounds, m.Budget = o.Disk, o.Rounds, o.Budget
	if err := dropCaches(o.Dir); err != nil {
		m.NoCold = fmt.Sprintf("caches cannot be dropped here: %v", err)
	}
	b.result.Machine = m
	if err := b.prepare(); err != nil {
		return err
	}
	phases := []struct {
		name   string
		rounds int
		each   func(r *runner, round int) error
	}{
		{"starts", o.Rounds, b.starts},
		{"inside", o.Rounds, b.inside},
		{"memory", 1, b.memory},
	}
	for _, p := range phases {
		for round := range p.rounds {
			for _, r := range b.runners {
				if r.cell.Failed != "" {
					continue
				}
				if err := p.each(r, round); err != nil {
					b.fail(r, fmt.Errorf("%s: %w", p.name, err))
				}
			}
			b.say("%s, round %d of %d", p.name, round+1, p.rounds)
		}
		if err := b.result.save(o.JSON); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.Log, "[%4.0fs] %s %s: %s\n", time.Since(b.begun).Seconds(), b.FS, b.Image, fmt.Sprintf(format, args...))
}

// fail takes a configuration out; the others go on.
func (b *bench) fail(r *runner, err error) {
	r.cell.Failed = strings.ReplaceAll(err.Error(), b.Dir, "…")
	b.say("%s: FAILED: %v", r.ID, err)
	if _, _, _, err := r.podman("rm", "-f", "-t", "0", "-a"); err != nil {
		b.say("%s: %v", r.ID, err)
	}
}

// prepare makes the stores, pulls the image into each, and warms caches up.
func (b *bench) prepare() error {
	c, err := readContents(b.Layout)
	if err != nil {
		return err
	}
	b.result.Images[b.Image] = c.Image
	if c.Entries < hugeImage {
		b.Budget = 0
	}
	tools, err := b.toolFolder(c)
	if err != nil {
		return err
	}
	for _, config := range b.Configs {
		if config.Small && b.Image != smallImage {
			continue
		}
		r := &runner{Config: config, dir: b.Dir, tools: tools}
		r.cell = &Cell{FS: b.FS, Image: b.Image, Config: config.ID, Label: config.Label, Samples: map[string][]float64{}}
		b.result.Cells = append(b.result.Cells, r.cell)
		b.runners = append(b.runners, r)
		if r.env, err = config.configure(b.Dir); err == nil {
			err = r.pull(b.Layout)
		}
		if err == nil {
			err = r.available()
		}
		if err == nil { // the first start of all is not like others
			err = b.once(r)
		}
		if err != nil {
			b.fail(r, err)
		}
	}
	b.say("%d entries in %d layers are in every store", c.Entries, c.Layers)
	return nil
}

// toolFolder makes the folder that containers see: this program and the list of
// files to be read.
func (b *bench) toolFolder(c contents) (string, error) {
	dir := filepath.Join(b.Dir, "tools")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, toolName), program, 0o755); err != nil {
		return "", err
	}
	list := strings.Join(c.sample(sampled), "\n") + "\n"
	return dir, os.WriteFile(filepath.Join(dir, listName), []byte(list), 0o644)
}

// once starts a container without a mapping, and walks through all files.
func (b *bench) once(r *runner) error {
	plain := *r
	plain.Plain = true
	if _, _, err := plain.start("once", 0); err != nil {
		return err
	}
	s, err := r.session("once")
	if err != nil {
		return err
	}
	_, err = s.do(taskFind)
	if err := errors.Join(err, s.close()); err != nil {
		return err
	}
	_, err = r.remove("once")
	return err
}

// fresh returns a mapping that was never used.
func (b *bench) fresh(r *runner) int {
	m := b.next
	b.next += idsPerContainer
	r.used = append(r.used, m)
	return m
}

// starts measures what a start and a removal cost, in time and on the disk.
func (b *bench) starts(r *runner, round int) error {
	c := r.cell
	if !c.wants(freshS, b.Rounds, b.Budget) || r.shifts() && !c.wants(firstS, b.Rounds, b.Budget) {
		return nil
	}
	if err := r.forget(); err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%d", r.ID, round)
	if r.shifts() {
		if err := b.grow(r, name, b.fresh(r), firstS, firstCPU, firstKB, firstInodes); err != nil {
			return err
		}
		if _, err := r.remove(name); err != nil {
			return err
		}
	}
	m := b.fresh(r)
	if err := b.grow(r, name, m, freshS, freshCPU, freshKB, freshInodes); err != nil {
		return err
	}
	if _, err := r.remove(name); err != nil {
		return err
	}
	if err := syncfs(b.Dir); err != nil {
		return err
	}
	wall, _, err := r.start(name, m)
	if err != nil {
		return err
	}
	c.add(cachedS, wall)
	if wall, err = r.remove(name); err == nil {
		c.add(removeS, wall)
	}
	return err
}

// grow starts a container and measures by how much the file system grew.
func (b *bench) grow(r *runner, name string, mapping int, wallName, cpuName, kbName, inodesName string) error {
	before, err := used(b.Dir)
	if err != nil {
		return err
	}
	wall, cpu, err := r.start(name, mapping)
	if err != nil {
		return err
	}
	after, err := used(b.Dir)
	if err != nil {
		return err
	}
	r.cell.add(wallName, wall)
	r.cell.add(cpuName, cpu)
	r.cell.add(kbName, after.kb-before.kb)
	r.cell.add(inodesName, after.inodes-before.inodes)
	return nil
}

// inside measures what work in a container costs, and its removal afterwards.
func (b *bench) inside(r *runner, round int) error {
	c := r.cell
	wants := func(metrics ...string) bool {
		for _, m := range metrics {
			if !c.wants(m, b.Rounds, b.Budget) {
				return false
			}
		}
		return true
	}
	name := fmt.Sprintf("%s-inside-%d", r.ID, round)
	if _, _, err := r.start(name, r.used[len(r.used)-1]); err != nil {
		return err
	}
	s, err := r.session(name)
	if err != nil {
		return err
	}
	// Twice the same: cold and warm. The first tar only warms up.
	tasks := []struct{ task, cold, warm string }{
		{taskFind, findCold, findWarm},
		{taskRead, readCold, readWarm},
		{taskTar, "", tarS},
		{taskCompile, "-", compileS},
		{taskExecs, "-", execsS},
	}
	for _, t := range tasks {
		if !wants(t.warm) || err != nil {
			continue
		}
		cold := strings.HasSuffix(t.cold, "_s") && b.result.Machine.NoCold == ""
		if cold {
			if err = dropCaches(b.Dir); err != nil {
				break
			}
		}
		var took float64
		if t.cold != "-" {
			if took, err = s.do(t.task); err == nil && cold {
				c.add(t.cold, took)
			}
		}
		if err == nil {
			if took, err = s.do(t.task); err == nil {
				c.add(t.warm, took)
			}
		}
		if errors.Is(err, errNotHere) {
			err = nil
		}
	}
	if err := errors.Join(err, s.close()); err != nil {
		return err
	}
	wall, err := r.remove(name)
	if err == nil {
		c.add(removeUsedS, wall)
	}
	return err
}
