package main

import "github.com/spf13/cobra"

func newRmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID",
		Short: "Unmount and delete a container",
		Args:  cobra.ExactArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return a.rm(args[0]) },
	}
}

func (a *app) rm(id string) error {
	store, err := a.open()
	if err != nil {
		return err
	}
	container, err := findContainer(store, id)
	if err != nil {
		return err
	}
	if err := deleteContainer(store, container.ID); err != nil {
		return err
	}
	return a.printID(container.ID)
}
