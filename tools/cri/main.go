// Command cri asks a container runtime over the Kubernetes container runtime
// interface (CRI), as the kubelet does: a small part of crictl(1), which the Go
// module proxy does not have, with the same files for pods and containers. It
// serves the tests with CRI-O.
//
//	cri [-r ADDRESS] VERB [ARGS...]
//
//	version                               the runtime's name and version
//	pull IMAGE                            prints its ID
//	images                                ID, size in bytes and names of each
//	rmi IMAGE
//	runp POD.json                         starts a pod sandbox, prints its ID
//	create POD CONTAINER.json POD.json    makes a container, prints its ID
//	start | stop | rm CONTAINER
//	stopp | rmp POD
//	inspect CONTAINER                     status and what else the runtime tells, as JSON
//	exec CONTAINER COMMAND...             runs it, and ends with its exit status
//
// The address is that in CONTAINER_RUNTIME_ENDPOINT, or else CRI-O's.
// The exit status is 1 for an error that the runtime reports, 2 for others.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// patience bounds each call; a pull or a start takes seconds.
const patience = time.Minute

// exitStatus is that of a command in a container.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("the command's exit status is %d", int(e)) }

// usageError is about the arguments, or about the files that they name.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		os.Exit(int(status))
	}
	fmt.Fprintln(os.Stderr, "cri:", err)
	if _, ok := errors.AsType[usageError](err); ok {
		os.Exit(2)
	}
	os.Exit(1)
}

// client is a connection, and where results go.
type client struct {
	runtime  cri.RuntimeServiceClient
	images   cri.ImageServiceClient
	out, err io.Writer
}

// verb is what cri can be asked for: how many arguments it takes, at least, and
// whether more are welcome.
type verb struct {
	args int
	more bool
	do   func(c *client, ctx context.Context, args []string) error
}

var verbs = map[string]verb{
	"version": {0, false, (*client).version},
	"ready":   {0, false, (*client).ready},
	"pull":    {1, false, (*client).pull},
	"images":  {0, false, (*client).list},
	"rmi":     {1, false, (*client).removeImage},
	"runp":    {1, false, (*client).runPod},
	"create":  {3, false, (*client).create},
	"inspect": {1, false, (*client).inspect},
	"exec":    {2, true, (*client).exec},
	"start": {1, false, func(c *client, ctx context.Context, args []string) error {
		_, err := c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: args[0]})
		return err
	}},
	"stop": {1, false, func(c *client, ctx context.Context, args []string) error {
		_, err := c.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: args[0]})
		return err
	}},
	"rm": {1, false, func(c *client, ctx context.Context, args []string) error {
		_, err := c.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: args[0]})
		return err
	}},
	"stopp": {1, false, func(c *client, ctx context.Context, args []string) error {
		_, err := c.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: args[0]})
		return err
	}},
	"rmp": {1, false, func(c *client, ctx context.Context, args []string) error {
		_, err := c.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: args[0]})
		return err
	}},
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	flags := flag.NewFlagSet("cri", flag.ContinueOnError)
	flags.SetOutput(errOut)
	address := flags.String("r", cmp.Or(os.Getenv("CONTAINER_RUNTIME_ENDPOINT"), "unix:///run/crio/crio.sock"), "the runtime's socket")
	if err := flags.Parse(args); err != nil {
		return usageError{err}
	}
	args = flags.Args()
	known := strings.Join(slices.Sorted(maps.Keys(verbs)), ", ")
	if len(args) == 0 {
		return usageError{fmt.Errorf("which of %s?", known)}
	}
	v, ok := verbs[args[0]]
	if !ok {
		return usageError{fmt.Errorf("unknown verb %q: one of %s", args[0], known)}
	}
	if n := len(args) - 1; n < v.args || n > v.args && !v.more {
		return usageError{fmt.Errorf("%s takes %d arguments, got %d", args[0], v.args, n)}
	}
	conn, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return usageError{err}
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c := &client{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), out, errOut}
	if err := v.do(c, ctx, args[1:]); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}

// read fills a request from a JSON file.
func read(name string, into any) error {
	f, err := os.Open(name)
	if err != nil {
		return usageError{err}
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return usageError{fmt.Errorf("%s: %w", name, err)}
	}
	return nil
}

func (c *client) version(ctx context.Context, _ []string) error {
	r, err := c.runtime.Version(ctx, &cri.VersionRequest{})
	if err == nil {
		fmt.Fprintln(c.out, r.RuntimeName, r.RuntimeVersion)
	}
	return err
}

// ready is an error unless the runtime can start pods.
func (c *client) ready(ctx context.Context, _ []string) error {
	r, err := c.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, condition := range r.GetStatus().GetConditions() {
		if !condition.Status {
			errs = append(errs, fmt.Errorf("not %s: %s", condition.Type, condition.Message))
		}
	}
	return errors.Join(errs...)
}

func (c *client) pull(ctx context.Context, args []string) error {
	r, err := c.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: args[0]}})
	if err == nil {
		fmt.Fprintln(c.out, r.ImageRef)
	}
	return err
}

func (c *client) list(ctx context.Context, _ []string) error {
	r, err := c.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return err
	}
	for _, i := range r.Images {
		fmt.Fprintln(c.out, i.Id, i.Size(), strings.Join(i.RepoTags, " "))
	}
	return nil
}

func (c *client) removeImage(ctx context.Context, args []string) error {
	_, err := c.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: args[0]}})
	return err
}

func (c *client) runPod(ctx context.Context, args []string) error {
	var pod cri.PodSandboxConfig
	if err := read(args[0], &pod); err != nil {
		return err
	}
	r, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &pod})
	if err == nil {
		fmt.Fprintln(c.out, r.PodSandboxId)
	}
	return err
}

func (c *client) create(ctx context.Context, args []string) error {
	req := cri.CreateContainerRequest{PodSandboxId: args[0], Config: &cri.ContainerConfig{}, SandboxConfig: &cri.PodSandboxConfig{}}
	if err := read(args[1], req.Config); err != nil {
		return err
	}
	if err := read(args[2], req.SandboxConfig); err != nil {
		return err
	}
	r, err := c.runtime.CreateContainer(ctx, &req)
	if err == nil {
		fmt.Fprintln(c.out, r.ContainerId)
	}
	return err
}

func (c *client) inspect(ctx context.Context, args []string) error {
	r, err := c.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: args[0], Verbose: true})
	if err != nil {
		return err
	}
	info := map[string]json.RawMessage{}
	for k, v := range r.Info { // texts, some of which are JSON
		if !json.Valid([]byte(v)) {
			quoted, err := json.Marshal(v)
			if err != nil {
				return err
			}
			v = string(quoted)
		}
		info[k] = json.RawMessage(v)
	}
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{"status": r.Status, "info": info})
}

func (c *client) exec(ctx context.Context, args []string) error {
	r, err := c.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: args[0], Cmd: args[1:], Timeout: int64(patience.Seconds())})
	if err != nil {
		return err
	}
	if _, err := c.out.Write(r.Stdout); err != nil {
		return err
	}
	if _, err := c.err.Write(r.Stderr); err != nil {
		return err
	}
	if r.ExitCode != 0 {
		return exitStatus(r.ExitCode)
	}
	return nil
}
