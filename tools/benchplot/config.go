package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// smallImage is the only image that vfs is measured with: it copies all files
// for every container.
const smallImage = "minbase"

// Config is one way to run a container.
type Config struct {
	ID    string
	Label string // Markdown
	// Store is the folder of the store; configurations of one driver share one.
	Store string
	// Driver, Mountopt and Program are storage.conf's.
	Driver, Mountopt, Program string
	// Env is added to podman's environment.
	Env []string
	// Engine and Without are shiftoverlay.conf's.
	Engine, Without string
	// Plain runs containers without a user namespace.
	Plain bool
	// Small restricts it to smallImage.
	Small bool
	// Sharers is how many containers read the same file; 0: two.
	Sharers int
}

const noIdmap = "_CONTAINERS_OVERLAY_DISABLE_IDMAP=yes"

// IDs of the configurations that bars compare.
const (
	plainID    = "plain"
	idmapID    = "overlay-idmap"
	chownID    = "overlay-chown"
	chownMID   = "overlay-chown-metacopy"
	erofsID    = "shift-erofs"
	erofs510ID = "shift-erofs-5.10"
	metacopyID = "shift-metacopy"
)

var configs = []Config{
	{ID: plainID, Label: "overlay, no user namespace", Store: "overlay", Driver: "overlay", Plain: true},
	{ID: idmapID, Label: "overlay, idmapped mounts", Store: "overlay", Driver: "overlay"},
	{ID: chownID, Label: "overlay, chown", Store: "overlay", Driver: "overlay", Env: []string{noIdmap}},
	{ID: chownMID, Label: "overlay, chown, `metacopy=on`", Store: "overlay", Driver: "overlay", Mountopt: "nodev,metacopy=on", Env: []string{noIdmap}},
	{ID: "fuse-overlayfs", Label: "fuse-overlayfs", Store: "fuse", Driver: "overlay", Program: "fuse-overlayfs"},
	{ID: "vfs", Label: "vfs", Store: "vfs", Driver: "vfs", Small: true},
	{ID: "shift-idmap", Label: "**shiftoverlay** `idmap`", Store: "shift", Driver: "shiftoverlay", Engine: "idmap"},
	{ID: erofsID, Label: "**shiftoverlay** `erofs`", Store: "shift", Driver: "shiftoverlay", Engine: "erofs", Sharers: 50},
	{ID: erofs510ID, Label: "**shiftoverlay** `erofs` as on Linux 5.10", Store: "shift", Driver: "shiftoverlay", Engine: "erofs", Without: "data-only, file, idmap", Sharers: 50},
	{ID: metacopyID, Label: "**shiftoverlay** `metacopy`", Store: "shift", Driver: "shiftoverlay", Engine: "metacopy"},
	{ID: "shift-copyup", Label: "**shiftoverlay** `copyup`", Store: "shift", Driver: "shiftoverlay", Engine: "copyup"},
}

// shifts tells whether it is our driver that shifts, which makes something of
// an image at its first start.
func (c Config) shifts() bool { return c.Engine != "" }

// chooseConfigs returns the configurations with these IDs, in our order; all
// if none is named.
func chooseConfigs(ids []string) ([]Config, error) {
	if len(ids) == 0 {
		return configs, nil
	}
	var chosen []Config
	for _, c := range configs {
		if slices.Contains(ids, c.ID) {
			chosen = append(chosen, c)
		}
	}
	if len(chosen) != len(ids) {
		var known []string
		for _, c := range configs {
			known = append(known, c.ID)
		}
		return nil, fmt.Errorf("configurations %q: known are %s", strings.Join(ids, " "), strings.Join(known, " "))
	}
	return chosen, nil
}

// configure writes storage.conf and shiftoverlay.conf for a store below dir,
// and returns the environment in which podman uses them.
func (c Config) configure(dir string) ([]string, error) {
	conf := filepath.Join(dir, "conf", c.ID)
	store := filepath.Join(dir, c.Store)
	for _, d := range []string{conf, filepath.Join(store, "graph"), filepath.Join(store, "run")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	storage := fmt.Sprintf("[storage]\ndriver = %q\ngraphroot = %q\nrunroot = %q\n", c.Driver, filepath.Join(store, "graph"), filepath.Join(store, "run"))
	if c.Mountopt != "" {
		storage += fmt.Sprintf("[storage.options]\nmountopt = %q\n", c.Mountopt)
	}
	if c.Program != "" {
		program, err := exec.LookPath(c.Program)
		if err != nil {
			return nil, err
		}
		storage += fmt.Sprintf("[storage.options.overlay]\nmount_program = %q\n", program)
	}
	shift := "[shiftoverlay]\n"
	if c.Engine != "" {
		shift += fmt.Sprintf("engine = %q\nerofs_without = %q\n", c.Engine, c.Without)
	}
	for name, text := range map[string]string{"storage.conf": storage, "shiftoverlay.conf": shift} {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	env := append(os.Environ(), c.Env...)
	return append(env, "CONTAINERS_STORAGE_CONF="+filepath.Join(conf, "storage.conf"),
		"SHIFTOVERLAY_CONF="+filepath.Join(conf, "shiftoverlay.conf")), nil
}
