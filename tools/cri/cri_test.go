package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fake is a runtime that remembers what it was asked for.
type fake struct {
	cri.UnimplementedRuntimeServiceServer
	pod *cri.RunPodSandboxRequest
}

func (f *fake) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	f.pod = r
	return &cri.RunPodSandboxResponse{PodSandboxId: "pod"}, nil
}

func (f *fake) ExecSync(_ context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	return &cri.ExecSyncResponse{Stdout: []byte(strings.Join(r.Cmd, " ")), Stderr: []byte(r.ContainerId), ExitCode: 3}, nil
}

func (f *fake) ContainerStatus(context.Context, *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return &cri.ContainerStatusResponse{
		Status: &cri.ContainerStatus{Id: "c"},
		Info:   map[string]string{"info": `{"pid":7}`, "note": "plain text"},
	}, nil
}

func (f *fake) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
		{Type: cri.RuntimeReady, Status: true},
		{Type: cri.NetworkReady, Status: f.pod != nil, Message: "no network yet"},
	}}}, nil
}

func start(t *testing.T) (f *fake, address string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f = &fake{}
	s := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return f, "unix://" + socket
}

func TestVerbs(t *testing.T) {
	f, address := start(t)
	pod := filepath.Join(t.TempDir(), "pod.json")
	const text = `{"metadata": {"name": "p"}, "linux": {"security_context": {"namespace_options": {"userns_options": {"mode": 0,
		"uids": [{"host_id": 100000, "container_id": 0, "length": 65536}]}}}}}`
	if err := os.WriteFile(pod, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if err := run(t.Context(), []string{"-r", address, "ready"}, &out, &errOut); err == nil || !strings.Contains(err.Error(), "NetworkReady: no network yet") {
		t.Errorf("ready: error %v", err)
	}
	if err := run(t.Context(), []string{"-r", address, "runp", pod}, &out, &errOut); err != nil {
		t.Fatal(err)
	}
	if out.String() != "pod\n" {
		t.Errorf("runp prints %q", out.String())
	}
	if err := run(t.Context(), []string{"-r", address, "ready"}, &out, &errOut); err != nil {
		t.Errorf("ready: error %v", err)
	}
	uids := f.pod.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids
	if len(uids) != 1 || uids[0].HostId != 100000 || uids[0].Length != 65536 {
		t.Errorf("the runtime got the mapping %v", uids)
	}

	out.Reset()
	var status exitStatus
	err := run(t.Context(), []string{"-r", address, "exec", "c", "ls", "-l"}, &out, &errOut)
	if !errors.As(err, &status) || status != 3 || out.String() != "ls -l" || errOut.String() != "c" {
		t.Errorf("exec: error %v, output %q, errors %q", err, out.String(), errOut.String())
	}

	out.Reset()
	if err := run(t.Context(), []string{"-r", address, "inspect", "c"}, &out, &errOut); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"pid": 7`, `"note": "plain text"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("inspect lacks %s: %s", want, out.String())
		}
	}

	// The runtime's own refusal is not a mistake in the arguments.
	var usage usageError
	if err := run(t.Context(), []string{"-r", address, "rmp", "pod"}, &out, &errOut); err == nil || errors.As(err, &usage) {
		t.Errorf("an error of the runtime: %v", err)
	}
}

func TestUsage(t *testing.T) {
	wrong := filepath.Join(t.TempDir(), "wrong.json")
	if err := os.WriteFile(wrong, []byte(`{"hostUsers": false}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"fly"}, {"start"}, {"start", "a", "b"}, {"exec", "c"}, {"runp", "absent"}, {"runp", wrong}} {
		var out bytes.Buffer
		var usage usageError
		if err := run(t.Context(), args, &out, &out); !errors.As(err, &usage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
