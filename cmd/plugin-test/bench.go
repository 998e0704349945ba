package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// disableIdmapEnv makes the storage library's overlay driver work as on a
// kernel without idmapped mounts.
const disableIdmapEnv = "_CONTAINERS_OVERLAY_DISABLE_IDMAP"

// benchFlags are the flags of the verb bench.
type benchFlags struct {
	rounds   int
	size     uint32
	mountopt string
	upstream bool
}

// benchRow is one row of the result: medians. Its field names are stable.
type benchRow struct {
	Step        string
	Engine      string `json:",omitempty"`
	WallSeconds float64
	CPUSeconds  float64
	DiskKiB     int64 // that stay behind for the mapping, as df counts
	BlocksKiB   int64 // the same as du and quota count, in the first round
	Inodes      int64
	PeakRSSKiB  int64
	Samples     []benchSample
}

// benchSample is one measurement.
type benchSample struct {
	WallSeconds float64
	CPUSeconds  float64
	DiskKiB     int64
	BlocksKiB   int64 `json:",omitempty"`
	Inodes      int64
	PeakRSSKiB  int64
	engine      string
}

func newBenchCommand(a *app) *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench [flags] NAME",
		Short: "Measure what a mount with a fresh and with a cached mapping costs",
		Long: "Measure, in turn, what it takes to make a container of an image and to mount it: without a mapping, with\n" +
			"a mapping that was never used, with the same one again, and with a fresh mapping by the storage library's\n" +
			"own overlay driver without idmapped mounts, which changes the owners of all files through an overlay\n" +
			"mount; for that the image is copied into a second store beside this one (ROOT-upstream), which is removed\n" +
			"at the end. Each measurement is a process of its own. The table shows medians; disk and inodes are what\n" +
			"stays behind when the container is gone: the shifted lowers of the fresh mappings are in the driver's cache\n" +
			"until it trims them or the image is removed.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.bench(cmd.Context(), args[0], &f) },
	}
	cmd.Flags().IntVar(&f.rounds, "rounds", 5, "`number` of measurements of each step")
	cmd.Flags().Uint32Var(&f.size, "size", defaultAutoSize, "`number` of IDs of a mapping")
	cmd.Flags().BoolVar(&f.upstream, "upstream", true, "measure the overlay driver, too")
	cmd.Flags().StringVar(&f.mountopt, "upstream-mountopt", "nodev,metacopy=on", "mount `options` of the overlay driver")
	return cmd
}

// benchStep is one of the steps that are measured in turn.
type benchStep struct {
	name string
	args []string
	env  []string
	root string
}

func (a *app) bench(ctx context.Context, name string, f *benchFlags) (err error) {
	switch {
	case f.rounds < 1:
		return fmt.Errorf("%d rounds measure nothing: use --rounds 1 or more", f.rounds)
	case f.size < 1 || f.size > 1<<24:
		return fmt.Errorf("a mapping of %d IDs cannot be measured: use --size between 1 and %d", f.size, 1<<24)
	}
	store, image, err := a.openImage(name)
	if err != nil {
		return err
	}
	root, runroot := store.GraphRoot(), store.RunRoot()
	upstream := upstreamStore{root: root + "-upstream", runroot: runroot + "-upstream", mountopt: f.mountopt}
	if f.upstream {
		defer func() { err = errors.Join(err, upstream.remove()) }()
		if err := upstream.fill(ctx, store, image); err != nil {
			return err
		}
	}
	own := []string{"--root", root, "--runroot", runroot, "--driver", a.driver}
	for _, o := range a.storageOpts {
		own = append(own, "--storage-opt", o)
	}
	samples := map[string][]benchSample{}
	var order []string
	for round := range f.rounds {
		fresh := freshMapping(f.size)
		steps := []benchStep{
			{name: "no mapping", args: own, root: root},
			{name: "fresh mapping", args: slices.Concat(own, fresh), root: root},
			{name: "cached mapping", args: slices.Concat(own, fresh), root: root},
		}
		if f.upstream {
			steps = append(steps, benchStep{
				name: "upstream's chown", args: slices.Concat(upstream.args(), fresh),
				env: []string{disableIdmapEnv + "=yes"}, root: upstream.root,
			})
		}
		order = order[:0]
		for _, step := range steps {
			sample, err := a.measure(ctx, step, image.ID, round == 0)
			if err != nil {
				return fmt.Errorf("measure %s: %w", step.name, err)
			}
			samples[step.name] = append(samples[step.name], sample)
			order = append(order, step.name)
		}
	}
	rows := make([]benchRow, 0, len(order))
	for _, step := range order {
		rows = append(rows, medians(step, samples[step]))
	}
	return a.print(rows, func(w io.Writer) error { return writeBench(w, rows, f.rounds) })
}

// freshMapping is the flag of a mapping that was, almost surely, never used.
func freshMapping(size uint32) []string {
	const first, last = 1 << 20, fallbackEnd
	base := first + rand.Uint64N(last-first-uint64(size))
	return []string{"--uidmap", fmt.Sprintf("0:%d:%d", base, size)}
}

// measure runs one step in a child process, between two looks at the file
// system; blocks asks to add up the blocks of all files, too.
func (a *app) measure(ctx context.Context, step benchStep, image string, blocks bool) (benchSample, error) {
	before, err := usage(step.root, blocks)
	if err != nil {
		return benchSample{}, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", slices.Concat(step.args, []string{"--log-level", a.logLevel, benchStepVerb, image})...)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	cmd.Env = append(os.Environ(), step.env...)
	if err := cmd.Run(); err != nil {
		return benchSample{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(messages.String()))
	}
	var r stepResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return benchSample{}, fmt.Errorf("read result %q: %w", out.String(), err)
	}
	after, err := usage(step.root, blocks)
	if err != nil {
		return benchSample{}, err
	}
	return benchSample{
		WallSeconds: r.Wall.Seconds(), CPUSeconds: r.CPU.Seconds(), PeakRSSKiB: r.PeakRSS >> 10,
		DiskKiB: (after.bytes - before.bytes) >> 10, BlocksKiB: (after.blocks - before.blocks) >> 10, Inodes: after.inodes - before.inodes, engine: r.Engine,
	}, nil
}

// fsUsage is what is taken of a file system: bytes as statfs(2) counts them,
// blocks in bytes as the files' st_blocks do (du(1), quota), which count a
// block of extended attributes that inodes share for each of them.
type fsUsage struct{ bytes, blocks, inodes int64 }

func usage(dir string, blocks bool) (fsUsage, error) {
	d, err := os.Open(dir)
	if err != nil {
		return fsUsage{}, fmt.Errorf("look at file system: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fsUsage{}, &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return fsUsage{}, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	u := fsUsage{bytes: int64(st.Blocks-st.Bfree) * st.Bsize, inodes: int64(st.Files - st.Ffree)}
	if blocks {
		u.blocks, err = allocated(dir)
	}
	return u, err
}

// allocated adds up the blocks of all inodes below a folder.
func allocated(dir string) (int64, error) {
	var sum int64
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st.Nlink > 1 && !e.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		sum += st.Blocks * 512
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("add up blocks: %w", err)
	}
	return sum, nil
}

// median is the middle value, or the lower of the two in the middle.
func median[T cmp.Ordered](samples []benchSample, get func(benchSample) T) T {
	values := make([]T, 0, len(samples))
	for _, s := range samples {
		values = append(values, get(s))
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}

func medians(step string, samples []benchSample) benchRow {
	return benchRow{
		Step:        step,
		Engine:      samples[len(samples)-1].engine,
		WallSeconds: median(samples, func(s benchSample) float64 { return s.WallSeconds }),
		CPUSeconds:  median(samples, func(s benchSample) float64 { return s.CPUSeconds }),
		DiskKiB:     median(samples, func(s benchSample) int64 { return s.DiskKiB }),
		BlocksKiB:   samples[0].BlocksKiB,
		Inodes:      median(samples, func(s benchSample) int64 { return s.Inodes }),
		PeakRSSKiB:  median(samples, func(s benchSample) int64 { return s.PeakRSSKiB }),
		Samples:     samples,
	}
}

func writeBench(w io.Writer, rows []benchRow, rounds int) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "STEP\tENGINE\tWALL\tWALL MIN-MAX\tCPU\tDF KiB\tDU KiB\tINODES\tPEAK RSS MiB")
	for _, r := range rows {
		lo, hi := r.Samples[0].WallSeconds, r.Samples[0].WallSeconds
		for _, s := range r.Samples {
			lo, hi = min(lo, s.WallSeconds), max(hi, s.WallSeconds)
		}
		engine := r.Engine
		if engine == "" {
			engine = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s-%s\t%s\t%d\t%d\t%d\t%d\n", r.Step, engine, seconds(r.WallSeconds), seconds(lo), seconds(hi),
			seconds(r.CPUSeconds), r.DiskKiB, r.BlocksKiB, r.Inodes, r.PeakRSSKiB>>10)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "medians of %d rounds, in turn\n", rounds)
	return err
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Microsecond).String()
}
