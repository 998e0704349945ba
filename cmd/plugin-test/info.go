package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/shiftoverlay/shiftoverlay/internal/probe"
)

// infoResult is the output of info. Its field names are stable.
type infoResult struct {
	GraphRoot   string
	RunRoot     string
	GraphDriver string
	GraphStatus map[string]string
	Probe       map[string]string
}

// statusRow is one line of a status; rows keep the order in which they came.
type statusRow = [2]string

func newInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info",
		Short: "Show the store, the driver's status and what works on this machine",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.info() },
	}
}

func (a *app) info() error {
	store, err := a.open()
	if err != nil {
		return err
	}
	status, err := store.Status()
	if err != nil {
		return fmt.Errorf("read status of driver %s: %w", store.GraphDriverName(), err)
	}
	result := infoResult{
		GraphRoot: store.GraphRoot(), RunRoot: store.RunRoot(), GraphDriver: store.GraphDriverName(),
		GraphStatus: map[string]string{}, Probe: map[string]string{},
	}
	probes, err := probeRows(store.GraphRoot())
	if err != nil {
		return err
	}
	for _, row := range status {
		result.GraphStatus[row[0]] = row[1]
	}
	for _, row := range probes {
		result.Probe[row[0]] = row[1]
	}
	return a.print(result, func(w io.Writer) error {
		rows := []statusRow{{"Graph root", result.GraphRoot}, {"Run root", result.RunRoot}, {"Graph driver", result.GraphDriver}}
		for _, row := range slices.Concat(rows, status, probes) {
			if _, err := fmt.Fprintf(w, "%s: %s\n", row[0], row[1]); err != nil {
				return err
			}
		}
		return nil
	})
}

// probeRows tries what works on the file system of a folder.
func probeRows(dir string) ([]statusRow, error) {
	report, err := probe.Run(probe.Options{Dir: dir, UserNS: probe.UserNS})
	if err != nil {
		return nil, fmt.Errorf("try what works in %s: %w", dir, err)
	}
	answer := func(r probe.Result) string {
		if r.OK() {
			return "true"
		}
		return "false: " + string(r)
	}
	return []statusRow{
		{"Probe kernel", report.Kernel},
		{"Probe file system", report.FileSystem},
		{"Probe trusted xattrs", answer(report.TrustedXattr)},
		{"Probe metacopy", answer(report.Metacopy)},
		{"Probe idmapped mounts", answer(report.IdmapMount)},
		{"Probe reflink", answer(report.Reflink)},
	}, nil
}
