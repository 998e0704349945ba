package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/image/v5/copy"
	"github.com/containers/image/v5/signature"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// TestPullTransports pulls one image in every form that needs no registry;
// all must give the same layers.
func TestPullTransports(t *testing.T) {
	testutil.RequireRoot(t)
	h := newHost(t)
	layout := "oci:" + writeOCI(t, nastyLayers()...)
	dir := t.TempDir()
	sources := map[string]string{
		"dir":            filepath.Join(dir, "dir"),
		"oci-archive":    filepath.Join(dir, "oci.tar"),
		"docker-archive": filepath.Join(dir, "docker.tar") + ":example.org/nasty:v1",
	}
	for transport, reference := range sources {
		convert(t, layout, transport, reference)
	}
	h.ok("pull", layout, "nasty:oci")
	for transport, reference := range sources {
		h.ok("pull", transport+":"+reference, "nasty:"+transport)
		out := h.ok(append([]string{"verify", "nasty:" + transport}, flag(oneExtent)...)...)
		assert.Contains(t, out, "\ndifferences: 0\n", transport)
	}
	var images []imageRow
	h.json(&images, "images")
	names := map[string]bool{}
	for _, image := range images {
		assert.Equal(t, 3, image.Layers, "%v", image.Names)
		for _, name := range image.Names {
			names[name] = true
		}
	}
	for _, tag := range []string{"oci", "dir", "oci-archive", "docker-archive"} {
		assert.True(t, names["localhost/nasty:"+tag], "%s in %v", tag, names)
	}

	policy := filepath.Join(dir, "policy.json")
	require.NoError(t, os.WriteFile(policy, []byte(`{"default":[{"type":"reject"}]}`), 0o600))
	rejected := h.try("pull", "--policy", policy, layout, "rejected")
	assert.Equal(t, exitOwnError, rejected.code)
	assert.Contains(t, rejected.errors, "rejected by policy")
}

// convert copies an image from an OCI layout to another form.
func convert(t *testing.T, layout, transport, reference string) {
	t.Helper()
	src, err := transports()["oci"].ParseReference(layout[len("oci:"):])
	require.NoError(t, err)
	dest, err := transports()[transport].ParseReference(reference)
	require.NoError(t, err)
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}})
	require.NoError(t, err)
	_, err = copy.Image(t.Context(), policy, dest, src, nil)
	require.NoError(t, err, transport)
	require.NoError(t, policy.Destroy())
}
