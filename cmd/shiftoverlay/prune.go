package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
)

type pruneFlags struct {
	all, dryRun, force, quiet bool
	maxSize, olderThan        string
	format                    string
}

// pruned is an entry that prune removes. Its field names are stable.
type pruned struct {
	*entry
	Why string
}

func newPruneCommand(a *app) *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:                   "prune [options]",
		DisableFlagsInUseLine: true,
		Short:                 "Remove shifted lowers that no container needs",
		Long: "Remove entries of the cache: those beyond the limits of shiftoverlay.conf, or of the options given here, and\n" +
			"those that are good for nothing any more. What a container needs, running or stopped, stays in any case.\n" +
			"All that is removed would be made again when it is needed.",
		Example:           "  shiftoverlay prune\n  shiftoverlay prune --all --force\n  shiftoverlay prune --max-size 2g --older-than 48h --dry-run",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.prune(cmd.Context(), &f) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.all, "all", "a", false, "remove all that no container needs")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print what would be removed, and remove nothing")
	flags.BoolVarP(&f.force, "force", "f", false, "do not ask")
	flags.StringVar(&f.format, "format", "", "print what is removed as json or through a Go `template`")
	flags.StringVar(&f.maxSize, "max-size", "", "remove the least recently used until all take no more than this `size`: 512m, 10g")
	flags.StringVar(&f.olderThan, "older-than", "", "remove what was not used for this `duration`: 90m, 48h")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print IDs only")
	return cmd
}

// limits are what the flags and shiftoverlay.conf say.
func (f *pruneFlags) limits(size int64, age time.Duration) (int64, time.Duration, error) {
	if f.all {
		if f.maxSize != "" || f.olderThan != "" {
			return 0, 0, errors.New("--all removes all that no container needs: it excludes --max-size and --older-than")
		}
		return 0, time.Nanosecond, nil
	}
	if f.maxSize != "" {
		n, err := units.RAMInBytes(f.maxSize)
		if err != nil || n < 1 {
			return 0, 0, fmt.Errorf("--max-size %q: write a size such as 512m or 10g, or use --all", f.maxSize)
		}
		size = n
	}
	if f.olderThan != "" {
		d, err := time.ParseDuration(f.olderThan)
		if err != nil || d <= 0 {
			return 0, 0, fmt.Errorf("--older-than %q: write a duration such as 90m or 48h, or use --all", f.olderThan)
		}
		age = d
	}
	return size, age, nil
}

func (a *app) prune(ctx context.Context, f *pruneFlags) error {
	if err := a.open(); err != nil {
		return err
	}
	size, age, err := f.limits(a.m.Limits())
	if err != nil {
		return err
	}
	n, err := a.names()
	if err != nil {
		return err
	}
	doomed, err := a.m.Foresee(ctx, size, age)
	if err != nil {
		return err
	}
	if f.dryRun {
		return f.print(a, n, doomed, "would be reclaimed")
	}
	if !f.force {
		sure, err := a.confirm(f.warning(doomed))
		if err != nil || !sure {
			return err
		}
	}
	removed, err := a.m.Prune(ctx, size, age)
	why := map[string]string{}
	for _, d := range doomed {
		why[d.Ref.String()] = d.Why
	}
	gone := make([]shiftoverlay.Doomed, len(removed))
	for i, e := range removed {
		gone[i] = shiftoverlay.Doomed{Entry: e, Why: why[e.Ref.String()]}
	}
	return errors.Join(err, f.print(a, n, gone, "reclaimed"))
}

// warning says what is about to happen.
func (f *pruneFlags) warning(doomed []shiftoverlay.Doomed) string {
	var size int64
	for _, d := range doomed {
		size += d.Bytes
	}
	return fmt.Sprintf("WARNING! This will remove %d shifted lowers that no container needs (%s).", len(doomed), units.BytesSize(float64(size)))
}

// confirm asks, as podman does. The end of the input is a no.
func (a *app) confirm(warning string) (bool, error) {
	fmt.Fprintf(a.stdout, "%s\nAre you sure you want to continue? [y/N] ", warning)
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if errors.Is(err, io.EOF) {
		fmt.Fprintln(a.stdout)
		if answer == "" {
			return false, errors.New("nobody answered: use --force to go on without asking")
		}
	} else if err != nil {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

// print lists what is gone.
func (f *pruneFlags) print(a *app, n *names, list []shiftoverlay.Doomed, verb string) error {
	out := make([]pruned, len(list))
	var size int64
	for i, d := range list {
		out[i] = pruned{n.entry(d.Entry), d.Why}
		size += d.Bytes
	}
	switch {
	case f.format == formatJSON:
		return writeJSON(a.stdout, out)
	case f.format != "":
		return writeRows(a.stdout, f.format, nil, true, out)
	}
	for _, p := range out {
		if f.quiet {
			fmt.Fprintln(a.stdout, short(p.ID))
			continue
		}
		fmt.Fprintf(a.stdout, "%s %s %s: %s\n", short(p.ID), p.Image(), p.MappingText(), p.Why)
	}
	if !f.quiet {
		fmt.Fprintf(a.stdout, "Total %s space: %s\n", verb, units.BytesSize(float64(size)))
	}
	return nil
}
