package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/internal/cache"
	"github.com/shiftoverlay/shiftoverlay/internal/pace"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// warmRest is how much longer than it works warm rests while others are at work:
// nobody waits for it.
const warmRest = 3

type warmFlags struct {
	uidmap, gidmap []string
	userns, format string
	count          int
	quiet          bool
}

// warmResult is one line of the output of warm. Its field names are stable.
type warmResult struct {
	Image   string
	Mapping *mappingText
	Engine  string
	ID      string  // of the entry; empty if the engine needs none
	Built   bool    // it was not there before
	Seconds float64 // it took
}

func newWarmCommand(a *app) *cobra.Command {
	var f warmFlags
	cmd := &cobra.Command{
		Use:                   "warm [options] IMAGE [IMAGE...]",
		DisableFlagsInUseLine: true,
		Short:                 "Build shifted lowers before the first start needs them",
		Long: "Build what containers of images will need under the given mappings, so that their first start finds it.\n" +
			"Other podman commands are not kept waiting meanwhile. With --userns auto:size=N, the mappings are those that\n" +
			"the next containers with --userns=auto:size=N will get, as long as none is made or removed in between.",
		Example: "  shiftoverlay warm --userns auto:size=65536 --count 3 docker.io/library/busybox\n" +
			"  shiftoverlay warm --uidmap 0:100000:65536 busybox",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.warm(cmd.Context(), args, &f) },
	}
	flags := cmd.Flags()
	flags.IntVar(&f.count, "count", 1, "`number` of mappings for --userns auto")
	flags.StringVar(&f.format, "format", "", "print as json or through a Go `template`")
	flags.StringArrayVar(&f.gidmap, "gidmap", nil, "`mapping` of group IDs, CONTAINER:HOST:SIZE, may be repeated (as --uidmap if it is not given)")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the IDs of the entries only")
	flags.StringArrayVar(&f.uidmap, "uidmap", nil, "`mapping` of user IDs, CONTAINER:HOST:SIZE, may be repeated")
	flags.StringVar(&f.userns, "userns", "", "`mode` of the user namespaces: auto:size=N")
	return cmd
}

// mappings are those that the flags ask for.
func (f *warmFlags) mappings(a *app) ([]idshift.Mapping, error) {
	given := len(f.uidmap)+len(f.gidmap) > 0
	switch {
	case given && f.userns != "":
		return nil, errors.New("--userns and --uidmap exclude each other")
	case f.userns != "":
		size, err := parseAuto(f.userns)
		if err != nil {
			return nil, err
		}
		if f.count < 1 {
			return nil, fmt.Errorf("--count %d: at least 1", f.count)
		}
		p, err := a.pool()
		if err != nil {
			return nil, err
		}
		out := make([]idshift.Mapping, f.count)
		for i := range out {
			if out[i], err = p.next(size); err != nil {
				return nil, err
			}
		}
		return out, nil
	case !given:
		return nil, errors.New("for which mapping? Give --userns auto:size=65536, or --uidmap 0:100000:65536, as you will give it to `podman run`")
	case f.count != 1:
		return nil, errors.New("--count is for --userns auto")
	}
	uids, gids := f.uidmap, f.gidmap
	if len(uids) == 0 {
		uids = gids
	}
	if len(gids) == 0 {
		gids = uids
	}
	m, err := idshift.ParseMapping(strings.Join(uids, ","), strings.Join(gids, ","))
	return []idshift.Mapping{m}, err
}

func (a *app) warm(ctx context.Context, args []string, f *warmFlags) (err error) {
	if err := a.open(); err != nil {
		return err
	}
	mappings, err := f.mappings(a)
	if err != nil {
		return err
	}
	layers := make([]string, len(args))
	for i, name := range args {
		image, err := a.findImage(name)
		if err != nil {
			return err
		}
		if layers[i] = image.TopLayer; layers[i] == "" {
			return fmt.Errorf("image %s has no layers: there is nothing to shift", name)
		}
	}
	if len(mappings) == 0 {
		return nil
	}
	if err := yieldCPU(); err != nil {
		logrus.Debugf("Building with ordinary priority: %v", err)
	}
	user := shiftoverlay.WarmUser()
	held := map[cache.Ref]bool{}
	defer func() {
		for ref := range held {
			err = errors.Join(err, a.m.Release(ref, user))
		}
	}()
	rest := pace.New(warmRest).Rest
	a.m.Pace = rest
	bars := newBars(a.stderr, args, len(mappings))
	defer bars.end()
	var results []warmResult
	var errs []error
	for i, name := range args {
		for _, mapping := range mappings {
			start := time.Now()
			w, err := a.m.Warm(ctx, layers[i], mapping, user)
			if err != nil {
				errs = append(errs, fmt.Errorf("image %s: %w", name, err))
				break
			}
			r := warmResult{Image: name, Mapping: textOf(mapping), Engine: w.Engine, Built: w.Built, Seconds: time.Since(start).Seconds()}
			if w.Ref != (cache.Ref{}) {
				r.ID, held[w.Ref] = w.Ref.Key.String(), true
			}
			results = append(results, r)
			bars.done(i)
			rest() // where nothing was walked for it
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	// So that a reboot loses nothing.
	for ref := range held {
		errs = append(errs, a.m.Settle(ctx, ref))
	}
	bars.end()
	return errors.Join(append(errs, f.print(a, results))...)
}

// lowest is the lowest priority (setpriority(2)).
const lowest = 19

// yieldCPU lets all others have the processors first: nobody waits for what is
// built here. On Linux each thread has a priority, which those that it starts
// inherit.
func yieldCPU() error {
	threads, err := os.ReadDir("/proc/self/task")
	errs := []error{err}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, tid, lowest)
		}
		if !errors.Is(err, unix.ESRCH) { // it has ended
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// warmFormat is the table of warm.
const warmFormat = `table {{.ID}}\t{{.Image}}\t{{.Mapping}}\t{{.Engine}}\t{{.State}}\t{{.Seconds}}`

// print prints the results.
func (f *warmFlags) print(a *app, results []warmResult) error {
	if f.format == formatJSON {
		if results == nil {
			results = []warmResult{}
		}
		return writeJSON(a.stdout, results)
	}
	if f.quiet {
		for _, r := range results {
			if r.ID != "" {
				fmt.Fprintln(a.stdout, short(r.ID))
			}
		}
		return nil
	}
	if f.format != "" {
		return writeRows(a.stdout, f.format, nil, true, results)
	}
	type line struct{ ID, Image, Mapping, Engine, State, Seconds string }
	lines := make([]line, len(results))
	for i, r := range results {
		lines[i] = line{short(r.ID), r.Image, r.Mapping.String(), r.Engine, "was there", fmt.Sprintf("%.3f", r.Seconds)}
		switch {
		case r.Engine == "":
			lines[i].ID, lines[i].Engine, lines[i].State = "-", "-", "plain mount, nothing to build"
		case r.ID == "":
			lines[i].ID, lines[i].State = "-", "nothing to build"
		case r.Built:
			lines[i].State = "built"
		}
	}
	heading := map[string]string{"ID": "ID", "Image": "IMAGE", "Mapping": "MAPPING", "Engine": "ENGINE", "State": "STATE", "Seconds": "SECONDS"}
	return writeRows(a.stdout, warmFormat, heading, false, lines)
}
