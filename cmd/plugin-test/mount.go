package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// mountResult is the output of mount. Its field names are stable.
type mountResult struct {
	ID         string
	MountPoint string
	Mapping    *idshift.Mapping `json:",omitempty"`
}

func newMountCommand(a *app) *cobra.Command {
	var (
		maps     mappingFlags
		label    string
		readOnly bool
	)
	cmd := &cobra.Command{
		Use:   "mount [flags] NAME",
		Short: "Make a container of an image, mount it, print its mount point and ID",
		Example: "  plugin-test mount --uidmap 0:100000:65536 debian\n" +
			"  plugin-test mount --uidmap 0:100000:1000 --uidmap 1000:500000:1 debian",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.mount(args[0], &maps, label, readOnly) },
	}
	maps.register(cmd.Flags())
	cmd.Flags().StringVar(&label, "label", "", "SELinux mount `label`")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "mount read-only")
	return cmd
}

func (a *app) mount(name string, maps *mappingFlags, label string, readOnly bool) error {
	if strings.HasSuffix(os.Args[0], "-in-a-user-namespace") { // of unshare.MaybeReexecUsingUserNamespace
		return errors.New("what an ordinary user mounts is gone with the mount namespace when this ends: use the verb run, or start a shell with `podman unshare` and plugin-test in it")
	}
	request := containerRequest{readOnly: readOnly}
	if maps.given() {
		var err error
		if request.mapping, err = maps.mapping(); err != nil {
			return err
		}
	}
	store, image, err := a.openImage(name)
	if err != nil {
		return err
	}
	m, err := mountImage(store, image, label, request)
	if err != nil {
		return err
	}
	result := mountResult{ID: m.container.ID, MountPoint: m.path}
	if maps.given() {
		result.Mapping = &request.mapping
	}
	return a.print(result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s %s\n", result.MountPoint, result.ID)
		return err
	})
}
