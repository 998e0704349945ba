package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newRmiCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rmi NAME",
		Short: "Delete an image, all its names, and the layers that no other image needs",
		Args:  cobra.ExactArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return a.rmi(args[0]) },
	}
}

func (a *app) rmi(name string) error {
	store, image, err := a.openImage(name)
	if err != nil {
		return err
	}
	if _, err := store.DeleteImage(image.ID, true); err != nil {
		return fmt.Errorf("delete image %q: %w", name, err)
	}
	return a.printID(image.ID)
}
