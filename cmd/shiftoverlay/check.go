package main

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
	"github.com/spf13/cobra"

	"github.com/shiftoverlay/shiftoverlay/drivers/shiftoverlay"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

type checkFlags struct {
	repair, content, quiet bool
	format                 string
}

// finding is a line of the output of check. Its field names are stable.
type finding struct {
	shiftoverlay.Finding
	Repaired bool
	Error    string `json:",omitempty"` // why it could not be repaired
}

func newCheckCommand(a *app) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:                   "check [options]",
		DisableFlagsInUseLine: true,
		Short:                 "Check shifted lowers against their layers, and the records of containers",
		Long: "Compare every entry of the cache with the layers that it was made of, attribute by attribute, and the records\n" +
			"of containers with the containers; look for what crashes have left, and at owner, mode and label of the cache.\n" +
			"Nothing is changed without --repair. The exit code is 1 if something is not as it should be and was not\nrepaired.",
		Example:           "  shiftoverlay check\n  shiftoverlay check --content\n  shiftoverlay check --repair",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.check(cmd.Context(), &f) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.content, "content", false, "compare what the files hold, too, which reads all of them")
	flags.StringVar(&f.format, "format", "", "print as json or through a Go `template`")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing, the exit code tells")
	flags.BoolVar(&f.repair, "repair", false, "repair what can be repaired")
	return cmd
}

func (a *app) check(ctx context.Context, f *checkFlags) error {
	if err := a.open(); err != nil {
		return err
	}
	owners, err := a.owners()
	if err != nil {
		return err
	}
	n, err := a.names()
	if err != nil {
		return err
	}
	line := status{a.stderr}
	checked := 0
	list, err := a.m.Check(ctx, shiftoverlay.CheckOptions{
		Containers: owners, Content: f.content,
		Progress: func(done, total int, e shiftoverlay.Entry) {
			checked = total
			line.set("Checking %d of %d: %s %s", done+1, total, short(e.Key.String()), n.entry(e).Image())
		},
	})
	line.clear()
	out := make([]finding, len(list))
	bad := 0
	for i := range list {
		out[i].Finding = list[i]
		if f.repair && list[i].Fixable() {
			if err := list[i].Fix(ctx); err != nil {
				out[i].Error = err.Error()
			} else {
				out[i].Repaired = true
			}
		}
		if !out[i].Note && !out[i].Repaired {
			bad++
		}
	}
	if err := errors.Join(err, f.print(a, out, checked, bad)); err != nil {
		return err
	}
	if bad > 0 {
		return &exitError{exitFindings}
	}
	return nil
}

// owners are the containers by their layers.
func (a *app) owners() (map[string]shiftoverlay.Owner, error) {
	containers, err := a.store.Containers()
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	out := map[string]shiftoverlay.Owner{}
	for i := range containers {
		m, err := mappingOf(&containers[i])
		if err != nil {
			return nil, fmt.Errorf("mapping of container %s: %w", nameOf(containers[i]), err)
		}
		out[containers[i].LayerID] = shiftoverlay.Owner{Name: nameOf(containers[i]), Mapping: m}
	}
	return out, nil
}

// mappingOf is the mapping of a container, zero if it has none.
func mappingOf(c *storage.Container) (idshift.Mapping, error) {
	if len(c.UIDMap)+len(c.GIDMap) == 0 {
		return idshift.Mapping{}, nil
	}
	return idshift.NewMapping(extents(c.UIDMap), extents(c.GIDMap))
}

// extents translates the storage library's form; a side without any maps every
// ID to itself. What has more than 32 bits becomes something that is refused.
func extents(maps []idtools.IDMap) []idshift.Extent {
	if len(maps) == 0 {
		return []idshift.Extent{{Size: math.MaxUint32}}
	}
	out := make([]idshift.Extent, len(maps))
	for i, m := range maps {
		out[i] = idshift.Extent{ContainerID: uint32(m.ContainerID), HostID: uint32(m.HostID), Size: uint32(m.Size)} //nolint:gosec // the library checks them
	}
	return out
}

// print prints the findings.
func (f *checkFlags) print(a *app, list []finding, checked, bad int) error {
	switch {
	case f.quiet:
		return nil
	case f.format == formatJSON:
		return writeJSON(a.stdout, list)
	case f.format != "":
		return writeRows(a.stdout, f.format, nil, true, list)
	}
	repaired := 0
	for _, x := range list {
		note := ""
		if x.Note {
			note = "note: "
		}
		fmt.Fprintf(a.stdout, "%s%s %s: %s\n", note, x.Kind, x.Subject, x.Problem)
		for _, d := range x.Differences {
			fmt.Fprintf(a.stdout, "    %s\n", d)
		}
		switch {
		case x.Repaired:
			repaired++
			fmt.Fprintf(a.stdout, "  repaired: %s\n", x.Repair)
		case x.Error != "":
			fmt.Fprintf(a.stdout, "  not repaired: %s\n", x.Error)
		case x.Fixable():
			fmt.Fprintf(a.stdout, "  --repair would: %s\n", x.Repair)
		case x.Remedy != "":
			fmt.Fprintf(a.stdout, "  remedy: %s\n", x.Remedy)
		}
	}
	fmt.Fprintf(a.stdout, "%d entries checked, %d findings", checked, bad)
	if repaired > 0 {
		fmt.Fprintf(a.stdout, ", %d repaired", repaired)
	}
	fmt.Fprintln(a.stdout)
	return nil
}
