package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newUmountCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "umount ID",
		Aliases: []string{"unmount"},
		Short:   "Unmount a container; it stays in the store",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, args []string) error { return a.umount(args[0]) },
	}
}

func (a *app) umount(id string) error {
	store, err := a.open()
	if err != nil {
		return err
	}
	container, err := findContainer(store, id)
	if err != nil {
		return err
	}
	count, err := store.Mounted(container.ID)
	if err != nil {
		return fmt.Errorf("unmount container %s: %w", shortID(container.ID), err)
	}
	if count == 0 {
		return fmt.Errorf("unmount container %s: it is not mounted", shortID(container.ID))
	}
	if _, err := store.Unmount(container.ID, false); err != nil {
		return fmt.Errorf("unmount container %s: %w", shortID(container.ID), err)
	}
	return a.printID(container.ID)
}

// printID prints the ID of what a verb was done to.
func (a *app) printID(id string) error {
	return a.print(struct{ ID string }{id}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, id)
		return err
	})
}
