package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newInspectCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:                   "inspect [options] ENTRY [ENTRY...]",
		DisableFlagsInUseLine: true,
		Short:                 "Show all that is known of shifted lowers",
		Long:                  "Show all that is known of entries of the cache. ENTRY is an ID as `shiftoverlay ls` prints it, or a\nbeginning of one that no other has.",
		Example:               "  shiftoverlay inspect c406\n  shiftoverlay inspect --format '{{.Engine}} {{.Size}}' c406",
		Args:                  cobra.MinimumNArgs(1),
		ValidArgsFunction:     a.completeEntries,
		RunE:                  func(cmd *cobra.Command, args []string) error { return a.inspect(cmd.Context(), format, args) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", formatJSON, "print as json or through a Go `template`")
	return cmd
}

func (a *app) inspect(ctx context.Context, format string, args []string) error {
	if err := a.open(); err != nil {
		return err
	}
	all, err := a.entries(ctx)
	errs := []error{err}
	found := []*entry{}
	for _, arg := range args {
		e, err := pick(all, arg)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, e)
	}
	if format == formatJSON {
		err = writeJSON(a.stdout, found)
	} else {
		err = writeRows(a.stdout, format, headings(), true, found)
	}
	return errors.Join(append(errs, err)...)
}

// pick finds the entry whose ID begins so.
func pick(all []*entry, begin string) (*entry, error) {
	var found *entry
	for _, e := range all {
		if begin == "" || !strings.HasPrefix(e.ID, begin) && e.Layer+"/"+e.ID != begin {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("several entries begin with %q: give more of the ID", begin)
		}
		found = e
	}
	if found == nil {
		return nil, fmt.Errorf("no entry %q: `shiftoverlay ls` lists them", begin)
	}
	return found, nil
}
