package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// lsFormat is the table of ls.
const lsFormat = `table {{.ID}}\t{{.Image}}\t{{.Mapping}}\t{{.Engine}}\t{{.Size}}\t{{.Inodes}}\t{{.LastUsed}}\t{{.Containers}}\t{{.Durable}}`

type lsFlags struct {
	format, sort              string
	quiet, noTrunc, noHeading bool
}

func newLsCommand(a *app) *cobra.Command {
	var f lsFlags
	cmd := &cobra.Command{
		Use:                   "ls [options]",
		DisableFlagsInUseLine: true,
		Aliases:               []string{"list"},
		Short:                 "List shifted lowers",
		Long: "List the entries of the cache: which image they were made of, for which mapping, by which engine, what\n" +
			"they take on the disk, when they were used last, and which containers need them.",
		Example:           "  shiftoverlay ls\n  shiftoverlay ls --sort size --format '{{.ID}} {{.Size}}'",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.ls(cmd.Context(), &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", lsFormat, "print as json or through a Go `template`")
	flags.BoolVarP(&f.noHeading, "noheading", "n", false, "print no heading")
	flags.BoolVar(&f.noTrunc, "no-trunc", false, "print whole IDs and all names of images")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print IDs only")
	flags.StringVar(&f.sort, "sort", "image", "order by this `key`: "+strings.Join(sortKeys(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(sortKeys(), cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return cmd
}

func (a *app) ls(ctx context.Context, f *lsFlags) error {
	if err := a.open(); err != nil {
		return err
	}
	list, unread := a.entries(ctx)
	if err := sortEntries(list, f.sort); err != nil {
		return err
	}
	var err error
	switch {
	case f.format == formatJSON:
		if list == nil {
			list = []*entry{}
		}
		err = writeJSON(a.stdout, list)
	case f.quiet:
		for _, e := range list {
			fmt.Fprintln(a.stdout, e.row(f.noTrunc).ID)
		}
	default:
		rows := make([]row, len(list))
		for i, e := range list {
			rows[i] = e.row(f.noTrunc)
		}
		err = writeRows(a.stdout, f.format, headings(), f.noHeading, rows)
	}
	return errors.Join(err, unread)
}
