// Package deps_test keeps the rooms of the house apart: it fails when a
// package gains an import that the architecture does not allow. The linter
// says the same of single files; this looks at what is reached through others,
// too.
package deps_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	module  = "github.com/shiftoverlay/shiftoverlay"
	storage = "github.com/containers/storage"
	image   = "github.com/containers/image/v5"
)

// pkg is what go list says of a package, without its tests.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// packages returns every package of the module and of its dependencies, by
// import path.
func packages(t *testing.T) map[string]pkg {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports,Deps",
		"-tags", "containers_image_openpgp,exclude_graphdriver_btrfs", "./cmd/...", "./drivers/...", "./internal/...", "./pkg/...")
	list.Dir = "../.."
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	require.NoError(t, err, "%s", &stderr)
	all := map[string]pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all[p.ImportPath] = p
	}
}

// below says whether a package is the room or in it. A room that ends in
// "/" means only what is in it.
func below(path, room string) bool {
	if strings.HasSuffix(room, "/") {
		return strings.HasPrefix(path, room)
	}
	return path == room || strings.HasPrefix(path, room+"/")
}

// ours is a room of this module.
func ours(room string) string { return module + "/" + room }

// TestRooms checks, for each room, what must not be reached from it.
func TestRooms(t *testing.T) {
	all := packages(t)
	house := []string{module}
	for _, rule := range []struct {
		room   string
		except []string // rooms in the room that the rule is not about
		never  []string
		but    []string // allowed all the same
	}{
		{room: ours("internal/linux"), never: house},
		{room: ours("internal/failpoint"), never: house},
		{room: ours("internal/pace"), never: house},
		{room: ours("internal/ovl"), never: house, but: []string{ours("internal/linux")}},
		{room: ours("pkg/idshift"), never: append(house, storage, image), but: []string{ours("internal/linux")}},
		{room: ours("internal/mount"), never: house, but: []string{ours("internal/linux")}},
		{room: ours("internal/erofs"), never: house, but: []string{ours("internal/linux"), ours("internal/ovl"), ours("pkg/idshift")}},
		{
			room: ours("internal/probe"), never: house,
			but: []string{ours("internal/linux"), ours("internal/ovl"), ours("internal/mount"), ours("internal/erofs"), ours("pkg/idshift")},
		},
		{room: ours("internal/cache"), never: house, but: []string{ours("internal/linux"), ours("pkg/idshift")}},
		{
			room: ours("internal/engine"), except: []string{ours("internal/engine/enginetest")},
			never: house, but: []string{
				ours("internal/engine"), ours("internal/linux"), ours("internal/ovl"), ours("internal/mount"), ours("internal/erofs"), ours("pkg/idshift"),
			},
		},
		{room: ours("internal"), never: []string{ours("drivers"), ours("cmd"), storage, image}},
		{room: ours("drivers"), never: []string{ours("cmd"), image}},
		{room: ours("internal/adopt"), never: house},
		{room: ours("internal/podmandb"), never: house},
		{room: ours("internal/worstcase"), never: house, but: []string{ours("internal/linux")}},
		{room: ours("internal/referee"), never: house, but: []string{ours("pkg/idshift"), ours("internal/linux")}},
	} {
		checked := 0
		for path, p := range all {
			if !below(path, rule.room) || slices.ContainsFunc(rule.except, func(e string) bool { return below(path, e) }) {
				continue
			}
			checked++
			for _, dep := range p.Deps {
				in := func(room string) bool { return below(dep, room) }
				if dep == ours("internal/failpoint") {
					continue // empty outside of test builds; it reaches nothing of ours itself
				}
				if slices.ContainsFunc(rule.never, in) && !slices.ContainsFunc(rule.but, in) && !below(dep, rule.room) {
					t.Errorf("%s must not reach %s", path, dep)
				}
			}
		}
		assert.Positive(t, checked, "packages in %s", rule.room)
	}
}

// TestEnginesApart checks that no engine knows another, and that the contract
// knows none.
func TestEnginesApart(t *testing.T) {
	all := packages(t)
	shared := []string{ours("internal/engine/tree"), ours("internal/engine/enginetest")}
	engines := 0
	for path, p := range all {
		if !below(path, ours("internal/engine/")) || slices.Contains(shared, path) {
			continue
		}
		engines++
		for _, dep := range p.Deps {
			if below(dep, ours("internal/engine/")) && !below(dep, path) && !slices.Contains(shared, dep) {
				t.Errorf("engine %s must not know %s", path, dep)
			}
		}
	}
	assert.GreaterOrEqual(t, engines, 3)
	for _, path := range append(shared[:1:1], ours("internal/engine")) {
		for _, dep := range all[path].Deps {
			if below(dep, ours("internal/engine/")) && dep != path {
				t.Errorf("%s must not know %s", path, dep)
			}
		}
	}
}

// TestLibraries checks which packages import the two large libraries.
func TestLibraries(t *testing.T) {
	for path, p := range packages(t) {
		if !below(path, module) {
			continue
		}
		for _, dep := range p.Imports {
			if below(dep, storage) && !below(path, ours("drivers/shiftoverlay")) && !below(path, ours("cmd")) {
				t.Errorf("%s must not import %s: only the driver and commands know the storage library", path, dep)
			}
			if below(dep, image) && !below(path, ours("cmd/plugin-test")) {
				t.Errorf("%s must not import %s: only cmd/plugin-test knows the image library", path, dep)
			}
		}
	}
}

// TestNoTestCode checks that nothing that is shipped contains test helpers.
func TestNoTestCode(t *testing.T) {
	all := packages(t)
	commands := 0
	for path, p := range all {
		if !below(path, ours("cmd")) && !below(path, ours("drivers")) && !below(path, ours("pkg")) {
			continue
		}
		commands++
		for _, dep := range p.Deps {
			if below(dep, ours("internal/testutil")) || below(dep, ours("internal/engine/enginetest")) || below(dep, "github.com/stretchr/testify") {
				t.Errorf("%s contains %s", path, dep)
			}
			// Package testing is in some libraries; that is not for us to change.
			if below(dep, module) && slices.Contains(all[dep].Imports, "testing") {
				t.Errorf("%s contains %s, which imports testing", path, dep)
			}
		}
	}
	assert.Positive(t, commands)
}
