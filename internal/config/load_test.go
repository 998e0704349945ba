package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// tree writes files below a new root; the content is a list of keys.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("[shiftoverlay]\n"+text), 0o644))
	}
	return root
}

func env(pairs ...string) func(string) string {
	return func(key string) string {
		for _, pair := range pairs {
			if value, ok := strings.CutPrefix(pair, key+"="); ok {
				return value
			}
		}
		return ""
	}
}

func TestLoad(t *testing.T) {
	// Each file sets workers to a number of its own; a few set another key.
	w := func(n int) string { return fmt.Sprintf("workers = %d\n", n) }
	all := map[string]string{
		"xdg/containers/shiftoverlay.conf":              w(1),
		"home/u/.config/containers/shiftoverlay.conf":   w(2),
		"etc/containers/shiftoverlay.conf":              w(3) + "engine = \"copyup\"\n",
		"usr/share/containers/shiftoverlay.conf":        w(4) + "unmapped = \"refuse\"\n",
		"conf":                                          w(5),
		"override":                                      w(6),
		"root/.config/containers/shiftoverlay.conf":     w(7),
		"etc/containers/shiftoverlay.conf.d/README":     "nonsense",
		"etc/containers/shiftoverlay.conf.d/a.conf/dir": "nonsense",
	}
	tests := []struct {
		name     string
		files    map[string]string
		env      []string
		rootless bool
		workers  int
		engine   string
		unmapped string
	}{
		{"none", nil, nil, false, 0, "auto", "overflow"},
		{"none, rootless", nil, []string{"HOME=/home/u"}, true, 0, "auto", "overflow"},
		{"etc hides usr/share", all, []string{"HOME=/root", "XDG_CONFIG_HOME=/xdg"}, false, 3, "copyup", "overflow"},
		{"usr/share", map[string]string{"usr/share/containers/shiftoverlay.conf": w(4)}, nil, false, 4, "auto", "overflow"},
		{"XDG_CONFIG_HOME", all, []string{"HOME=/home/u", "XDG_CONFIG_HOME=/xdg"}, true, 1, "auto", "overflow"},
		{"HOME", all, []string{"HOME=/home/u"}, true, 2, "auto", "overflow"},
		{"rootless without own file", all, []string{"HOME=/home/other"}, true, 3, "copyup", "overflow"},
		{"SHIFTOVERLAY_CONF", all, []string{"SHIFTOVERLAY_CONF=/conf", "SHIFTOVERLAY_CONF_OVERRIDE=/override"}, false, 5, "auto", "overflow"},
		{"override", all, []string{"SHIFTOVERLAY_CONF_OVERRIDE=/override"}, false, 6, "copyup", "overflow"},
		{"drop-in without file", map[string]string{"etc/containers/shiftoverlay.conf.d/a.conf": w(8)}, nil, false, 8, "auto", "overflow"},
		{"drop-ins by name", map[string]string{
			"etc/containers/shiftoverlay.conf":                   w(3) + "engine = \"copyup\"\n",
			"etc/containers/shiftoverlay.conf.d/10.conf":         w(10) + "unmapped = \"refuse\"\n",
			"usr/share/containers/shiftoverlay.conf.d/20.conf":   w(20),
			"etc/containers/shiftoverlay.rootful.conf.d/15.conf": w(15),
		}, nil, false, 20, "copyup", "refuse"},
		{"drop-in of the same name", map[string]string{
			"etc/containers/shiftoverlay.conf.d/10.conf":       w(10),
			"usr/share/containers/shiftoverlay.conf.d/10.conf": w(20) + "engine = \"idmap\"\n",
		}, nil, false, 10, "auto", "overflow"},
		{"rootful before common", map[string]string{
			"etc/containers/shiftoverlay.conf.d/10.conf":          w(10),
			"etc/containers/shiftoverlay.rootful.conf.d/10.conf":  w(11),
			"etc/containers/shiftoverlay.rootless.conf.d/10.conf": w(12),
			"etc/containers/shiftoverlay.rootless.conf.d/11.conf": w(13),
		}, nil, false, 11, "auto", "overflow"},
		{"rootless drop-ins", map[string]string{
			"xdg/containers/shiftoverlay.conf.d/10.conf":          w(10),
			"etc/containers/shiftoverlay.rootful.conf.d/99.conf":  w(11),
			"etc/containers/shiftoverlay.rootless.conf.d/10.conf": w(12),
		}, []string{"XDG_CONFIG_HOME=/xdg"}, true, 10, "auto", "overflow"},
		{"home is nothing to rootful", map[string]string{
			"xdg/containers/shiftoverlay.conf.d/10.conf": w(10),
		}, []string{"XDG_CONFIG_HOME=/xdg"}, false, 0, "auto", "overflow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := LoadFrom(tree(t, tt.files), env(tt.env...), tt.rootless, 1000)
			require.NoError(t, err)
			want := Default()
			want.Workers, want.Engine, want.Unmapped = tt.workers, tt.engine, tt.unmapped
			require.Equal(t, want, got)
		})
	}
	t.Run("home from the user database", func(t *testing.T) {
		got, err := LoadFrom(tree(t, map[string]string{"root/.config/containers/shiftoverlay.conf": w(7)}), env(), true, 0)
		require.NoError(t, err)
		require.Equal(t, 7, got.Workers)
	})
}

func TestLoadErrors(t *testing.T) {
	for _, tt := range []struct {
		name     string
		files    map[string]string
		env      []string
		rootless bool
		is       error
		says     []string
	}{
		{"bad value", map[string]string{"etc/containers/shiftoverlay.conf": "engine = \"zfs\""}, nil, false, ErrInvalid, []string{"/etc/containers/shiftoverlay.conf", `"zfs"`, "metacopy"}},
		{"bad drop-in", map[string]string{"etc/containers/shiftoverlay.conf.d/a.conf": "x = 1"}, nil, false, ErrInvalid, []string{"shiftoverlay.conf.d/a.conf", `"x"`}},
		{"bad override", map[string]string{"o": "x = 1"}, []string{"SHIFTOVERLAY_CONF_OVERRIDE=/o"}, false, ErrInvalid, []string{"/o", `"x"`}},
		{"missing", nil, []string{"SHIFTOVERLAY_CONF=/no/such"}, false, fs.ErrNotExist, []string{"/no/such"}},
		{"missing override", nil, []string{"SHIFTOVERLAY_CONF_OVERRIDE=/no/such"}, false, fs.ErrNotExist, []string{"/no/such"}},
		{"missing, relative", nil, []string{"SHIFTOVERLAY_CONF=no/such"}, false, fs.ErrNotExist, []string{"no/such"}},
		{"a folder", map[string]string{"etc/containers/shiftoverlay.conf/x": ""}, nil, false, syscall.EISDIR, []string{"/etc/containers/shiftoverlay.conf"}},
		{"no home", nil, nil, true, nil, []string{"XDG_CONFIG_HOME", "HOME", "SHIFTOVERLAY_CONF", "4294967293"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := LoadFrom(tree(t, tt.files), env(tt.env...), tt.rootless, 4294967293)
			require.Error(t, err)
			if tt.is != nil {
				require.ErrorIs(t, err, tt.is)
			}
			for _, says := range tt.says {
				require.ErrorContains(t, err, says)
			}
			require.Zero(t, got)
		})
	}
	t.Run("relative to the current folder", func(t *testing.T) {
		t.Chdir(tree(t, map[string]string{"my.conf": "workers = 9"}))
		got, err := Load(env("SHIFTOVERLAY_CONF=my.conf"), false, 0)
		require.NoError(t, err)
		require.Equal(t, 9, got.Workers)
	})
}
