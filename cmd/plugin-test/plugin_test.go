package main

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/containers/storage/pkg/reexec"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/referee"
	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
	"github.com/shiftoverlay/shiftoverlay/pkg/idshift"
)

// mainEnv makes the test binary behave as plugin-test itself.
const mainEnv = "PLUGIN_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		os.Exit(start())
	}
	reexec.Register(runChildName, runChild)
	if reexec.Init() {
		return
	}
	os.Exit(testutil.Main(m))
}

// TestBadCommandLines checks that a wrong command line ends with one clear
// line, before anything is made.
func TestBadCommandLines(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"verb", []string{"fly"}, `unknown command "fly"`},
		{"engine", []string{"--engine", "steam", "images"}, `unknown engine "steam": use one of auto, idmap, erofs, metacopy, copyup`},
		{"format", []string{"--format", "xml", "images"}, `unknown format "xml"`},
		{"log level", []string{"--log-level", "loud", "images"}, `unknown log level "loud"`},
		{"flag", []string{"mount", "--speed", "x"}, "unknown flag: --speed"},
		{"no mapping", []string{"verify", "x"}, "no --uidmap given"},
		{"malformed mapping", []string{"mount", "--uidmap", "0:a:1", "x"}, "parse --uidmap"},
		{"malformed group mapping", []string{"mount", "--uidmap", "0:1:1", "--gidmap", "0:1:0", "x"}, "parse --gidmap"},
		{"overlap", []string{"mount", "--uidmap", "0:100000:65536", "--uidmap", "10:500000:5", "x"}, "overlaps"},
		{"beyond 32 bits", []string{"mount", "--uidmap", "0:4294967000:65536", "x"}, "0:4294967000:65536"},
		{"no root", []string{"run", "--uidmap", "1:100000:10", "x", "--", "true"}, "does not map container ID 0"},
		{"two modes", []string{"run", "--userns", "auto", "--uidmap", "0:1:1", "x", "--", "true"}, "exclude each other"},
		{"mode", []string{"run", "--userns", "keep", "x", "--", "true"}, `unknown user namespace mode "keep"`},
		{"no command", []string{"run", "x"}, "requires at least 2 arg(s)"},
		{"no transport", []string{"pull", "image", "x"}, `source "image" names no transport`},
		{"transport", []string{"pull", "ftp:image", "x"}, `unknown transport "ftp"`},
		{"image name", []string{"pull", "tar:image", "A B"}, `parse image name "A B"`},
		{"rounds", []string{"bench", "--rounds", "0", "x"}, "0 rounds measure nothing"},
		{"size", []string{"bench", "--size", "0", "x"}, "a mapping of 0 IDs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := execute(t.Context(), tt.args, &out, &errs)
			assert.Equal(t, exitOwnError, code)
			assert.Contains(t, errs.String(), tt.want)
			assert.Equal(t, 1, bytes.Count(errs.Bytes(), []byte("\n")), "one line: %s", errs.String())
			assert.Empty(t, out.String())
		})
	}
}

func TestMappingFlags(t *testing.T) {
	tests := []struct {
		name       string
		uid, gid   []string
		uids, gids string
	}{
		{"group IDs as user IDs", []string{"0:100000:65536"}, nil, "0:100000:65536", "0:100000:65536"},
		{"both", []string{"0:1:2"}, []string{"0:3:4"}, "0:1:2", "0:3:4"},
		{"several", []string{"10:500:5", "0:100:10"}, nil, "0:100:10,10:500:5", "0:100:10,10:500:5"},
		{"one flag, several extents", []string{"10:500:5,0:100:10"}, nil, "0:100:10,10:500:5", "0:100:10,10:500:5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := mappingFlags{uidmap: tt.uid, gidmap: tt.gid}
			require.True(t, f.given())
			m, err := f.mapping()
			require.NoError(t, err)
			assert.Equal(t, tt.uids, m.UIDs.String())
			assert.Equal(t, tt.gids, m.GIDs.String())

			stored := storeMapping(m)
			assert.False(t, stored.HostUIDMapping)
			back, err := fromStoreMaps(stored.UIDMap)
			require.NoError(t, err)
			assert.Equal(t, m.UIDs, back)
			assert.Len(t, m.GIDs.SysProcIDMaps(), len(m.GIDs))
		})
	}
	host := storeMapping(idshift.Mapping{})
	assert.True(t, host.HostUIDMapping && host.HostGIDMapping)
}

func TestFullName(t *testing.T) {
	tests := map[string]string{
		"debian":                    "localhost/debian:latest",
		"debian:12":                 "localhost/debian:12",
		"team/app":                  "localhost/team/app:latest",
		"localhost/app":             "localhost/app:latest",
		"quay.io/team/app:v1":       "quay.io/team/app:v1",
		"registry:5000/app":         "registry:5000/app:latest",
		"docker.io/library/busybox": "docker.io/library/busybox:latest",
	}
	for name, want := range tests {
		got, err := fullName(name)
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
}

func TestVerifyOutput(t *testing.T) {
	r := verifyResult{
		Engine: "metacopy", Truth: truthArithmetic, TruthReason: "no idmapped mounts", Paths: 7,
		Differences: []referee.Difference{{Path: "etc/passwd", Attribute: "uid", A: "100000", B: "0"}},
	}
	var out bytes.Buffer
	require.NoError(t, r.write(&out))
	assert.Equal(t, "etc/passwd: uid: 100000 != 0\nengine: metacopy\n"+
		"truth: arithmetic (the kernel cannot: no idmapped mounts)\npaths: 7\ndifferences: 1\n", out.String())
}

func TestBenchTable(t *testing.T) {
	samples := []benchSample{
		{WallSeconds: 3, CPUSeconds: 0.5, DiskKiB: 30, BlocksKiB: 35, Inodes: 3, PeakRSSKiB: 20 << 10, engine: "metacopy"},
		{WallSeconds: 1, CPUSeconds: 0.7, DiskKiB: 10, Inodes: 1, PeakRSSKiB: 30 << 10, engine: "metacopy"},
		{WallSeconds: 2, CPUSeconds: 0.6, DiskKiB: 20, Inodes: 2, PeakRSSKiB: 10 << 10, engine: "metacopy"},
	}
	row := medians("fresh mapping", samples)
	assert.InDelta(t, 2, row.WallSeconds, 0)
	assert.InDelta(t, 0.6, row.CPUSeconds, 0)
	assert.Equal(t, []int64{20, 2, 20 << 10}, []int64{row.DiskKiB, row.Inodes, row.PeakRSSKiB})
	var out bytes.Buffer
	require.NoError(t, writeBench(&out, []benchRow{row}, 3))
	assert.Equal(t, "STEP           ENGINE    WALL  WALL MIN-MAX  CPU    DF KiB  DU KiB  INODES  PEAK RSS MiB\n"+
		"fresh mapping  metacopy  2s    1s-3s         600ms  20      35      2       20\n"+
		"medians of 3 rounds, in turn\n", out.String())
}

func TestAfterwards(t *testing.T) {
	exit, bad, worse := &exitError{3}, errors.New("bad"), errors.New("worse")
	assert.Equal(t, exit, afterwards(exit, nil))
	assert.Equal(t, worse, afterwards(exit, worse), "an exit code hides no failure")
	both := afterwards(bad, worse)
	require.ErrorIs(t, both, bad)
	require.ErrorIs(t, both, worse)
	assert.NoError(t, afterwards(nil, nil))
}

func TestPeakRSSAndCPUTime(t *testing.T) {
	peak, err := peakRSS()
	require.NoError(t, err)
	assert.Greater(t, peak, int64(1<<20))
	before, err := cpuTime()
	require.NoError(t, err)
	for deadline := time.Now().Add(50 * time.Millisecond); time.Now().Before(deadline); {
		continue
	}
	after, err := cpuTime()
	require.NoError(t, err)
	assert.Greater(t, after, before)
}
