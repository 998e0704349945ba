package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/containers/image/v5/copy"
	"github.com/containers/image/v5/directory"
	"github.com/containers/image/v5/docker"
	dockerarchive "github.com/containers/image/v5/docker/archive"
	ociarchive "github.com/containers/image/v5/oci/archive"
	"github.com/containers/image/v5/oci/layout"
	"github.com/containers/image/v5/signature"
	istorage "github.com/containers/image/v5/storage"
	"github.com/containers/image/v5/types"
	"github.com/containers/storage"
	"github.com/spf13/cobra"
)

// tarTransport is the prefix of a source that is a root file system in a tar
// archive, not an image.
const tarTransport = "tar"

func newPullCommand(a *app) *cobra.Command {
	var policy string
	cmd := &cobra.Command{
		Use:   "pull [flags] SRC NAME",
		Short: "Copy an image into the store",
		Long: "Copy an image into the store under NAME. SRC is one of oci:DIR[:TAG], oci-archive:FILE, dir:DIR,\n" +
			"docker-archive:FILE[:REF], docker://REF, or tar:FILE for a root file system in a tar archive\n" +
			"(compressed or not; - is standard input).",
		Example: "  plugin-test pull tar:rootfs.tar debian\n  plugin-test pull oci:./layout:latest app",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd.Context(), args[0], args[1], policy)
		},
	}
	cmd.Flags().StringVar(&policy, "policy", "", "signature policy `file`, see containers-policy.json(5) (default: accept anything)")
	return cmd
}

func (a *app) pull(ctx context.Context, source, name, policy string) error {
	full, err := fullName(name)
	if err != nil {
		return err
	}
	prefix, rest, found := strings.Cut(source, ":")
	if !found {
		return fmt.Errorf("source %q names no transport: use one of %s", source, transportList())
	}
	if prefix == tarTransport {
		store, err := a.open()
		if err != nil {
			return err
		}
		id, err := a.pullTar(ctx, store, rest, full)
		if err != nil {
			return err
		}
		return a.printID(id)
	}
	transport, ok := transports()[prefix]
	if !ok {
		return fmt.Errorf("unknown transport %q of source %q: use one of %s", prefix, source, transportList())
	}
	src, err := transport.ParseReference(rest)
	if err != nil {
		return fmt.Errorf("parse source %q: %w", source, err)
	}
	store, err := a.open()
	if err != nil {
		return err
	}
	id, err := a.copyImage(ctx, store, src, full, policy)
	if err != nil {
		return fmt.Errorf("pull %s: %w", source, err)
	}
	return a.printID(id)
}

// transports are the kinds of sources by their prefix.
func transports() map[string]types.ImageTransport {
	return map[string]types.ImageTransport{
		"oci":            layout.Transport,
		"oci-archive":    ociarchive.Transport,
		"dir":            directory.Transport,
		"docker-archive": dockerarchive.Transport,
		"docker":         docker.Transport,
	}
}

func transportList() string {
	return "oci:, oci-archive:, dir:, docker-archive:, docker://, tar:"
}

// copyImage copies an image into the store and returns its ID. Progress goes
// to standard error: bars on a terminal, else a line for each item.
func (a *app) copyImage(ctx context.Context, store storage.Store, src types.ImageReference, name, policyFile string) (id string, err error) {
	policy := &signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}}
	if policyFile != "" {
		if policy, err = signature.NewPolicyFromFile(policyFile); err != nil {
			return "", fmt.Errorf("read policy: %w", err)
		}
	}
	policyContext, err := signature.NewPolicyContext(policy)
	if err != nil {
		return "", fmt.Errorf("use policy: %w", err)
	}
	defer func() {
		if e := policyContext.Destroy(); e != nil && err == nil {
			err = fmt.Errorf("release policy: %w", e)
		}
	}()
	dest, err := istorage.Transport.ParseStoreReference(store, name)
	if err != nil {
		return "", fmt.Errorf("parse image name %q: %w", name, err)
	}
	if _, err = copy.Image(ctx, policyContext, dest, src, &copy.Options{ReportWriter: a.stderr}); err != nil {
		return "", err
	}
	image, err := findImage(store, name)
	if err != nil {
		return "", err
	}
	return image.ID, nil
}
