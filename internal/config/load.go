package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The environment variables that name files.
const (
	// EnvConf names the one file that is read instead of all others.
	EnvConf = "SHIFTOVERLAY_CONF"
	// EnvOverride names a file that is read after all others.
	EnvOverride = "SHIFTOVERLAY_CONF_OVERRIDE"
)

// fileName is the file's name in each place.
const fileName = "shiftoverlay.conf"

// Load reads the configuration of this machine: the files that the package
// comment lists, in that order. getenv is os.Getenv; rootless and uid say for
// whom; the home of uid is looked up for a rootless user who has neither
// XDG_CONFIG_HOME nor HOME. Errors name the file and what is wrong in it.
func Load(getenv func(string) string, rootless bool, uid int) (Config, error) {
	return LoadFrom("/", getenv, rootless, uid)
}

// LoadFrom is Load with another root folder, below which all paths are looked
// up, absolute ones from the environment too. It is meant for tests and for tools
// that look at an image.
func LoadFrom(root string, getenv func(string) string, rootless bool, uid int) (Config, error) {
	c := Default()
	files, err := find(root, getenv, rootless, uid)
	if err != nil {
		return Config{}, fmt.Errorf("find configuration: %w", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return Config{}, fmt.Errorf("read configuration: %w", err)
		}
		if c, err = Parse(c, string(text)); err != nil {
			return Config{}, fmt.Errorf("read configuration %q: %w", file, err)
		}
	}
	return c, nil
}

// find returns the files to read, in the order in which they are read.
func find(root string, getenv func(string) string, rootless bool, uid int) ([]string, error) {
	if file := getenv(EnvConf); file != "" {
		return []string{below(root, file)}, nil
	}
	places, err := places(root, getenv, rootless, uid)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, place := range places {
		file := filepath.Join(place, fileName)
		there, err := exists(file)
		if err != nil {
			return nil, err
		}
		if there {
			files = append(files, file)
			break
		}
	}
	more, err := dropIns(places, rootless)
	if err != nil {
		return nil, err
	}
	files = append(files, more...)
	if file := getenv(EnvOverride); file != "" {
		files = append(files, below(root, file))
	}
	return files, nil
}

// below is a path from the environment; a relative one is relative to the
// current folder.
func below(root, file string) string {
	if filepath.IsAbs(file) {
		return filepath.Join(root, file)
	}
	return file
}

// places returns the folders to look in, the most important first.
func places(root string, getenv func(string) string, rootless bool, uid int) ([]string, error) {
	var dirs []string
	if rootless {
		home := getenv("XDG_CONFIG_HOME")
		if home == "" {
			if home = getenv("HOME"); home == "" {
				u, err := user.LookupId(strconv.Itoa(uid))
				if err != nil {
					return nil, fmt.Errorf("neither XDG_CONFIG_HOME nor HOME is in the environment (set one, or %s): %w", EnvConf, err)
				}
				home = u.HomeDir
			}
			home = filepath.Join(home, ".config")
		}
		dirs = append(dirs, filepath.Join(root, home, "containers"))
	}
	return append(dirs, filepath.Join(root, "etc/containers"), filepath.Join(root, "usr/share/containers")), nil
}

// dropIns returns the drop-ins of all places in the order of their names.
func dropIns(places []string, rootless bool) ([]string, error) {
	special := "shiftoverlay.rootful.conf.d"
	if rootless {
		special = "shiftoverlay.rootless.conf.d"
	}
	byName := make(map[string]string)
	for _, place := range places {
		for _, folder := range []string{special, fileName + ".d"} {
			dir := filepath.Join(place, folder)
			entries, err := os.ReadDir(dir)
			if err != nil && !missing(err) {
				return nil, err
			}
			for _, entry := range entries {
				name := entry.Name()
				if !strings.HasSuffix(name, ".conf") || entry.IsDir() {
					continue
				}
				if byName[name] == "" {
					byName[name] = filepath.Join(dir, name)
				}
			}
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	files := make([]string, 0, len(names))
	for _, name := range names {
		files = append(files, byName[name])
	}
	return files, nil
}

// exists reports whether there is a file, or says why that cannot be known.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	switch {
	case err == nil:
		return true, nil
	case missing(err):
		return false, nil
	default:
		return false, err
	}
}

// missing reports whether an error says that a path is not there.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
