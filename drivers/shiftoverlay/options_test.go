package shiftoverlay

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/config"
)

func TestParseDriverOptions(t *testing.T) {
	for name, c := range map[string]struct {
		in      []string
		overlay []string // what the embedded driver gets
		stores  []string
		private [][2]string
		program string
	}{
		"none":                {},
		"own prefix":          {in: []string{"shiftoverlay.mountopt=nodev"}, overlay: []string{"overlay.mountopt=nodev"}},
		"overlay's prefix":    {in: []string{"overlay.mountopt=nodev"}, overlay: []string{"overlay.mountopt=nodev"}},
		"old prefix":          {in: []string{"overlay2.mountopt=nodev"}, overlay: []string{"overlay.mountopt=nodev"}},
		"dot":                 {in: []string{".mountopt=nodev"}, overlay: []string{"overlay.mountopt=nodev"}},
		"bare":                {in: []string{"mountopt=nodev"}, overlay: []string{"overlay.mountopt=nodev"}},
		"upper case":          {in: []string{"ShiftOverlay.MountOpt=nodev"}, overlay: []string{"overlay.mountopt=nodev"}},
		"own wins":            {in: []string{"shiftoverlay.mountopt=own", "mountopt=bare", "overlay.mountopt=theirs"}, overlay: []string{"overlay.mountopt=own"}},
		"bare wins":           {in: []string{".mountopt=bare", "overlay.mountopt=theirs"}, overlay: []string{"overlay.mountopt=bare"}},
		"last of equals wins": {in: []string{"overlay.mountopt=first", "overlay2.mountopt=second"}, overlay: []string{"overlay.mountopt=second"}},
		"others, best last": {
			in:      []string{"shiftoverlay.size=1g", "overlay.size=2g", "size=3g", "ignore_chown_errors=true"},
			overlay: []string{"overlay.size=2g", "overlay.size=3g", "overlay.ignore_chown_errors=true", "overlay.size=1g"},
		},
		"value with equal signs": {in: []string{"mountopt=nodev,context=\"a=b\""}, overlay: []string{"overlay.mountopt=nodev,context=\"a=b\""}},
		"private options": {
			in:      []string{"mountopt=nodev,x-shiftoverlay.engine=copyup,metacopy=off, x-shiftoverlay.workers=2"},
			overlay: []string{"overlay.mountopt=nodev,metacopy=off"}, private: [][2]string{{"engine", "copyup"}, {"workers", "2"}},
		},
		"only private options":  {in: []string{"mountopt=x-shiftoverlay.engine=copyup"}, private: [][2]string{{"engine", "copyup"}}},
		"stores":                {in: []string{"imagestore=/a,/b", "overlay.additionalimagestore=/c,/a,", "shiftoverlay.imagestore=/d"}, stores: []string{"/c", "/a", "/b", "/d"}},
		"mount program":         {in: []string{"overlay.mount_program=/bin/true"}, overlay: []string{"overlay.mount_program=/bin/true"}, program: "/bin/true"},
		"own mount program":     {in: []string{"shiftoverlay.mount_program=/x", "overlay.mount_program=/y"}, overlay: []string{"overlay.mount_program=/y", "overlay.mount_program=/x"}, program: "/x"},
		"unknown are overlay's": {in: []string{"shiftoverlay.no_such=1"}, overlay: []string{"overlay.no_such=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := parseDriverOptions(c.in)
			require.NoError(t, err)
			assert.Equal(t, c.overlay, d.forOverlay(nil))
			assert.Equal(t, c.stores, d.stores)
			assert.Equal(t, c.private, d.private)
			assert.Equal(t, c.program, d.mountProgram)
		})
	}
	_, err := parseDriverOptions([]string{"mountopt"})
	assert.ErrorContains(t, err, "mountopt")
	d, err := parseDriverOptions([]string{"imagestore=/a"})
	require.NoError(t, err)
	assert.Equal(t, []string{"overlay.imagestore=/run/x"}, d.forOverlay([]string{"/run/x"}), "the caller says where stores are")
}

func TestConfigure(t *testing.T) {
	d, err := parseDriverOptions([]string{"mountopt=x-shiftoverlay.engine=copyup,x-shiftoverlay.unmapped=refuse"})
	require.NoError(t, err)
	c, err := d.configure(config.Default())
	require.NoError(t, err)
	assert.Equal(t, "copyup", c.Engine)
	assert.Equal(t, "refuse", c.Unmapped)
	for _, bad := range []string{"no_such=1", "engine=best", "cache_max_size=1g", "engine"} {
		d, err := parseDriverOptions([]string{"mountopt=x-shiftoverlay." + bad})
		require.NoError(t, err)
		_, err = d.configure(config.Default())
		require.ErrorIs(t, err, config.ErrInvalid, bad)
		assert.ErrorContains(t, err, "x-shiftoverlay.", bad)
	}
}

func TestMetacopyConflict(t *testing.T) {
	for opts, conflict := range map[string]string{
		"":                               "",
		"nodev,metacopy=on":              "",
		"redirect_dir=on":                "",
		"metacopy=off":                   "metacopy=off",
		"metacopy=off,metacopy=on":       "",
		"redirect_dir=off":               "redirect_dir=off",
		"redirect_dir=follow":            "redirect_dir=follow",
		"redirect_dir=nofollow":          "redirect_dir=nofollow",
		"nfs_export=on":                  "nfs_export=on",
		"nfs_export=off":                 "",
		"userxattr":                      "userxattr",
		"x-shiftoverlay.engine=copyup":   "",
		"xmetacopy=off,userxattrs=maybe": "",
	} {
		d, err := parseDriverOptions([]string{"mountopt=" + opts})
		require.NoError(t, err)
		if conflict == "" {
			assert.Empty(t, d.metacopyConflict(), opts)
		} else {
			assert.Contains(t, d.metacopyConflict(), conflict, opts)
		}
	}
}

func TestUsesMountProgram(t *testing.T) {
	home := t.TempDir()
	flag := filepath.Join(home, ".has-mount-program")
	assert.False(t, driverOptions{}.usesMountProgram(home))
	assert.True(t, driverOptions{mountProgram: "/x"}.usesMountProgram(home))
	require.NoError(t, os.WriteFile(flag, []byte("true\n"), 0o600))
	assert.True(t, driverOptions{}.usesMountProgram(home))
	require.NoError(t, os.WriteFile(flag, []byte("false"), 0o600))
	assert.False(t, driverOptions{}.usesMountProgram(home))
}
