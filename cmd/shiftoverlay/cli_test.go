package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shiftoverlay/shiftoverlay/internal/testutil"
)

// builders are engines that keep something in the cache.
func builders() map[string][]string {
	return map[string][]string{
		"erofs":     {"erofs"},
		"erofs-old": {"erofs", `erofs_without = "data-only, file, idmap"`},
		"metacopy":  {"metacopy"},
		"copyup":    {"copyup"},
	}
}

func eachBuilder(t *testing.T, test func(t *testing.T, w *world)) {
	for name, c := range builders() {
		t.Run(name, func(t *testing.T) { test(t, newWorld(t, c[0], c[1:]...)) })
	}
}

// TestWarm checks that a mount after warm finds what it needs, that check
// agrees with what was made, and that nobody stays registered.
func TestWarm(t *testing.T) {
	eachBuilder(t, func(t *testing.T, w *world) {
		layer := w.image("localhost/one:latest")
		type line struct {
			Image, Engine, ID string
			Built             bool
			Mapping           *mappingText
		}
		first := decode[[]line](w, "warm", "--uidmap", "0:300000:65536", "one")
		require.Len(t, first, 1)
		assert.True(t, first[0].Built)
		assert.Equal(t, []string{"0:300000:65536"}, first[0].Mapping.GIDMap, "as the user IDs")
		again := decode[[]line](w, "warm", "--uidmap", "0:300000:65536", "one")
		assert.False(t, again[0].Built)
		assert.Equal(t, first[0].ID, again[0].ID)

		before := w.list()
		require.NotEmpty(t, before)
		for _, e := range before {
			assert.Empty(t, e.Containers)
			assert.Equal(t, []string{"localhost/one:latest"}, e.Images)
			assert.Equal(t, layer, e.Layer)
			assert.Positive(t, e.Size)
			assert.Positive(t, e.Inodes)
			assert.WithinDuration(t, time.Now(), e.LastUsed, 2*time.Minute)
			users, err := os.ReadDir(filepath.Join(filepath.Dir(e.Path), "users"))
			require.NoError(t, err)
			assert.Empty(t, users, "registered after warm")
		}
		built := map[string]time.Time{}
		for _, e := range before {
			st, err := os.Stat(e.Path)
			require.NoError(t, err)
			built[e.ID] = st.ModTime()
		}
		id, merged := w.container("c", "localhost/one:latest", mapped(300000))
		assert.Equal(t, [2]uint32{300001, 300001}, owner(t, filepath.Join(merged, "srv/more")))
		after := w.list()
		require.Len(t, after, len(before), "a mount after warm builds nothing")
		found := false
		for _, e := range after {
			st, err := os.Stat(e.Path)
			require.NoError(t, err)
			assert.Equal(t, built[e.ID], st.ModTime(), "made anew")
			for _, c := range e.Containers {
				assert.Equal(t, container{ID: id, Name: "c"}, c)
				assert.Equal(t, first[0].ID, e.ID)
				found = true
			}
		}
		assert.True(t, found, "the container is a user of the entry")
		if testutil.KernelSince(t, 6, 8) {
			assert.Contains(t, w.ok("check"), ", 0 findings")
			w.unmount(id)
			assert.Contains(t, w.ok("check", "--content"), ", 0 findings")
		}
	})
}

// TestWarmDurable checks that what is costly to make is believed after a
// reboot.
func TestWarmDurable(t *testing.T) {
	w := newWorld(t, "metacopy")
	w.image("localhost/one:latest")
	w.ok("warm", "--uidmap", "0:300000:65536", "one")
	require.Len(t, w.list(), 1)
	assert.True(t, w.list()[0].Durable)
}

// TestWarmIdmap checks an engine that needs nothing.
func TestWarmIdmap(t *testing.T) {
	w := newWorld(t, "idmap")
	w.image("localhost/one:latest")
	assert.Contains(t, w.ok("warm", "--uidmap", "0:300000:65536", "one"), "nothing to build")
	assert.Contains(t, w.ok("warm", "--uidmap", "0:0:65536", "one"), "nothing to build")
	assert.Empty(t, w.list())
}

// TestWarmRefused checks what is said of wrong command lines.
func TestWarmRefused(t *testing.T) {
	w := newWorld(t, "metacopy")
	w.image("localhost/one:latest")
	w.image("example.com/one:latest")
	w.image("localhost/two:latest")
	for want, args := range map[string][]string{
		"for which mapping":       {"two"},
		"auto:size=65536":         {"--userns", "auto", "two"},
		"only auto":               {"--userns", "keep-id", "two"},
		`size "x"`:                {"--userns", "auto:size=x", "two"},
		`"uidmapping=0:1:1"`:      {"--userns", "auto:size=5,uidmapping=0:1:1", "two"},
		"exclude":                 {"--userns", "auto:size=5", "--uidmap", "0:1:1", "two"},
		"--count is for":          {"--count", "2", "--uidmap", "0:1:1", "two"},
		"2 images are called":     {"--uidmap", "0:1:1", "one"},
		"podman pull three":       {"--uidmap", "0:1:1", "three"},
		"no root user":            {"--uidmap", "1:100000:5", "two"},
		"container:host:size":     {"--uidmap", "nonsense", "two"},
		"requires at least 1 arg": {"--uidmap", "0:1:1"},
	} {
		r := w.try("", append([]string{"warm"}, args...)...)
		assert.Equal(t, exitOwnError, r.code, args)
		assert.Contains(t, r.errors, want, args)
	}
	assert.Empty(t, w.list())
}

// TestLs checks table, template, order, and the IDs that inspect takes.
func TestLs(t *testing.T) {
	w := newWorld(t, "metacopy")
	assert.Equal(t, "[]\n", w.ok("ls", "--format", "json"))
	w.image("localhost/small:latest")
	w.image("localhost/large:latest", "a", "b", "c", "d", "e", "f", "g", "h")
	w.ok("warm", "--uidmap", "0:300000:65536", "small", "large")
	text := w.ok("ls")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	require.Len(t, lines, 3)
	assert.Regexp(t, `^ID +IMAGE +MAPPING +ENGINE +SIZE +INODES +LAST USED +CONTAINERS +DURABLE$`, lines[0])
	assert.Regexp(t, `^[0-9a-f]{12} +localhost/large:latest +0:300000:65536 +metacopy +`, lines[1])
	assert.Equal(t, "localhost/large:latest\nlocalhost/small:latest\n", w.ok("ls", "--sort", "inodes", "--format", "{{.Image}}"))
	assert.Equal(t, "localhost/small:latest\n", strings.SplitAfter(w.ok("ls", "--sort", "created", "--format", "{{.Image}}"), "\n")[1]+"", "the newest first")
	short := strings.Fields(w.ok("ls", "-q"))
	whole := strings.Fields(w.ok("ls", "-q", "--no-trunc"))
	require.Len(t, short, 2)
	for i := range short {
		assert.Len(t, whole[i], 64)
		assert.Equal(t, short[i], whole[i][:12])
		assert.Equal(t, whole[i]+"\n", w.ok("inspect", "--format", "{{.ID}}", short[i]))
	}
	assert.Len(t, decode[[]entryRow](w, "inspect", short[0], short[1]), 2)
	r := w.try("", "inspect", short[0], "nosuch")
	assert.Equal(t, exitOwnError, r.code)
	assert.Contains(t, r.errors, `no entry "nosuch"`)
	assert.Contains(t, r.out, whole[0], "what was found is shown all the same")
	for want, args := range map[string][]string{
		"unknown value": {"ls", "--sort", "colour"}, "read --format": {"ls", "--format", "{{"}, "write --format": {"ls", "--format", "{{.Colour}}"},
	} {
		r := w.try("", args...)
		assert.Equal(t, exitOwnError, r.code)
		assert.Contains(t, r.errors, want)
	}
}

// gone is an entry in the output of prune.
type gone struct{ ID, Why string }

// TestPrune checks who decides what goes, that containers are spared, and
// that --dry-run says what happens.
func TestPrune(t *testing.T) {
	eachBuilder(t, func(t *testing.T, w *world) {
		w.image("localhost/one:latest")
		w.image("localhost/two:latest")
		_, merged := w.container("running", "localhost/one:latest", mapped(300000))
		stopped, _ := w.container("stopped", "localhost/one:latest", mapped(400000))
		w.unmount(stopped)
		w.ok("warm", "--uidmap", "0:500000:65536", "two")
		before := w.list()
		for _, limits := range [][]string{{}, {"--max-size", "1g"}, {"--older-than", "1h"}} {
			assert.Equal(t, "Total would be reclaimed space: 0B\n", w.ok(append([]string{"prune", "--dry-run"}, limits...)...), "within the limits")
		}
		dry := decode[[]gone](w, "prune", "--all", "--dry-run")
		require.NotEmpty(t, dry)
		assert.Len(t, decode[[]gone](w, "prune", "--max-size", "1", "--dry-run"), len(dry))
		assert.Equal(t, before, w.list(), "--dry-run removes nothing")

		r := w.try("n\n", "prune", "--all")
		assert.Zero(t, r.code)
		assert.Contains(t, r.out, "Are you sure you want to continue? [y/N] ")
		r = w.try("", "prune", "--all")
		assert.Equal(t, exitOwnError, r.code)
		assert.Contains(t, r.errors, "--force")
		assert.Equal(t, before, w.list(), "nobody said yes")

		r = w.try("y\n", "prune", "--all", "--quiet")
		require.Zero(t, r.code, r.errors)
		for _, d := range dry {
			assert.Contains(t, r.out, short(d.ID))
		}
		after := w.list()
		assert.Len(t, after, len(before)-len(dry))
		used := map[string]bool{}
		for _, e := range after {
			for _, c := range e.Containers {
				used[c.Name] = true
			}
			assert.Equal(t, []string{"localhost/one:latest"}, e.Images)
		}
		assert.Equal(t, map[string]bool{"running": true, "stopped": true}, used)
		assert.Equal(t, [2]uint32{300001, 300001}, owner(t, filepath.Join(merged, "srv/more")))
		assert.Equal(t, [2]uint32{400001, 400001}, owner(t, filepath.Join(w.mount(stopped), "srv/more")))
		assert.Equal(t, "Total reclaimed space: 0B\n", w.ok("prune", "--all", "--force"))
	})
}

// TestPruneRefused checks what is said of wrong limits.
func TestPruneRefused(t *testing.T) {
	w := newWorld(t, "metacopy")
	for want, args := range map[string][]string{
		"excludes":              {"--all", "--max-size", "1g"},
		`--max-size "much"`:     {"--max-size", "much"},
		`--max-size "0"`:        {"--max-size", "0"},
		`--older-than "3"`:      {"--older-than", "3"},
		`--older-than "-5m"`:    {"--older-than", "-5m"},
		"unknown command \"x\"": {"x"},
	} {
		r := w.try("", append([]string{"prune"}, args...)...)
		assert.Equal(t, exitOwnError, r.code, args)
		assert.Contains(t, r.errors, want, args)
	}
}

// found is a line of the output of check.
type found struct {
	Kind, Subject, Problem, Repair, Error string
	Note, Repaired                        bool
	Differences                           []struct{ Path, Attribute string }
}

// check runs check and returns what it found and the exit code.
func (w *world) check(args ...string) ([]found, int) {
	w.t.Helper()
	testutil.RequireKernel(w.t, 6, 8)
	r := w.try("", append([]string{"check", "--format", "json"}, args...)...)
	require.Empty(w.t, r.errors)
	var list []found
	require.NoError(w.t, json.Unmarshal([]byte(r.out), &list), r.out)
	return list, r.code
}

// subjects are what findings are about.
func subjects(list []found) (out []string) {
	for _, f := range list {
		out = append(out, f.Subject)
	}
	return out
}

// TestCheckEntries damages entries in several ways. Each is found, and after a
// repair the image looks again as it should.
func TestCheckEntries(t *testing.T) {
	eachBuilder(t, func(t *testing.T, w *world) {
		w.image("localhost/one:latest")
		id, _ := w.container("c", "localhost/one:latest", mapped(300000))
		w.unmount(id)
		list, code := w.check()
		require.Empty(t, list)
		require.Zero(t, code)
		for name, damage := range map[string]func(e entryRow){
			"content": func(e entryRow) {
				if image := filepath.Join(e.Path, "image.erofs"); exists(image) {
					require.NoError(t, os.Truncate(image, 1000))
					return
				}
				require.NoError(t, os.Lchown(filepath.Join(e.Path, "tree", "srv"), 7, 7))
				require.NoError(t, os.Remove(filepath.Join(e.Path, "tree", "etc", "passwd")))
			},
			"description": func(e entryRow) { require.NoError(t, os.Truncate(filepath.Join(filepath.Dir(e.Path), "meta.json"), 5)) },
			"layers": func(e entryRow) {
				meta := filepath.Join(filepath.Dir(e.Path), "meta.json")
				b, err := os.ReadFile(meta)
				require.NoError(t, err)
				w.write(meta, strings.Replace(string(b), `"layers":["`+e.Layer+`"`, `"layers":["`+e.Layer+`","other"`, 1))
			},
		} {
			entries := w.list()
			require.NotEmpty(t, entries, name)
			for _, e := range entries {
				damage(e)
			}
			list, code := w.check()
			assert.Equal(t, exitFindings, code, name)
			for _, e := range entries {
				assert.Contains(t, subjects(list), e.Layer+"/"+e.ID, name)
				assert.True(t, exists(filepath.Dir(e.Path)), "%s: check without --repair removes nothing", name)
			}
			list, code = w.check("--repair")
			assert.Zero(t, code, "%s: %v", name, list)
			for _, e := range entries {
				assert.False(t, exists(e.Path), name)
			}
			merged := w.mount(id)
			assert.Equal(t, [2]uint32{300001, 300001}, owner(t, filepath.Join(merged, "srv/more")), name)
			assert.Equal(t, [2]uint32{300000, 300000}, owner(t, filepath.Join(merged, "etc/passwd")), name)
			w.unmount(id)
			list, code = w.check()
			assert.Empty(t, list, name)
			assert.Zero(t, code, name)
		}
	})
}

// TestCheckMounted checks that nothing is taken from a container that is
// mounted.
func TestCheckMounted(t *testing.T) {
	w := newWorld(t, "metacopy")
	w.image("localhost/one:latest")
	_, merged := w.container("c", "localhost/one:latest", mapped(300000))
	e := w.list()[0]
	require.NoError(t, os.Chmod(filepath.Join(e.Path, "tree", "bin", "tool"), 0o600))
	list, code := w.check("--repair")
	assert.Equal(t, exitFindings, code)
	require.Len(t, list, 1)
	assert.Contains(t, list[0].Error, "container c is mounted")
	assert.Equal(t, "mode", list[0].Differences[0].Attribute)
	assert.True(t, exists(e.Path))
	assert.True(t, exists(filepath.Join(merged, "bin/tool")))
}

// TestCheckContent checks that --content finds what the metadata does not
// show.
func TestCheckContent(t *testing.T) {
	w := newWorld(t, "copyup")
	w.image("localhost/one:latest")
	w.ok("warm", "--uidmap", "0:300000:65536", "one")
	file := filepath.Join(w.list()[0].Path, "tree", "etc", "passwd")
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte("ETC/passwd"), 0o600))
	require.NoError(t, os.Chtimes(file, st.ModTime(), st.ModTime()))
	list, code := w.check()
	assert.Empty(t, list)
	assert.Zero(t, code)
	list, code = w.check("--content")
	assert.Equal(t, exitFindings, code)
	require.Len(t, list, 1)
	assert.Equal(t, "content", list[0].Differences[0].Attribute)
}

// TestCheckStore finds what is wrong beside entries: records, registrations,
// leftovers and the folder itself.
func TestCheckStore(t *testing.T) {
	w := newWorld(t, "metacopy")
	layer := w.image("localhost/one:latest")
	id, _ := w.container("c", "localhost/one:latest", mapped(300000))
	w.unmount(id)
	c, err := w.open().Container(id)
	require.NoError(t, err)
	shifted, home := filepath.Join(w.graph, "shiftoverlay-shifted"), filepath.Join(w.graph, "shiftoverlay")
	e := w.list()[0]
	users := filepath.Join(filepath.Dir(e.Path), "users")
	record := filepath.Join(home, c.LayerID, "shiftoverlay.json")
	old := time.Now().Add(-time.Hour)
	for name, k := range map[string]struct {
		do      func() error
		subject string
		note    bool
	}{
		"mode":         {func() error { return os.Chmod(shifted, 0o755) }, shifted, false},
		"dead user":    {func() error { return os.WriteFile(filepath.Join(users, "dead"), nil, 0o600) }, layer + "/" + e.ID, false},
		"dead warm":    {func() error { return os.WriteFile(filepath.Join(users, "warm-1-5"), nil, 0o600) }, layer + "/" + e.ID, false},
		"unregistered": {func() error { return os.Remove(filepath.Join(users, c.LayerID)) }, record, false},
		"build":        {func() error { return os.Mkdir(filepath.Join(shifted, "tmp", "X"), 0o700) }, filepath.Join(shifted, "tmp", "X"), false},
		"lock":         {func() error { return os.WriteFile(filepath.Join(shifted, "locks", "X.lock"), nil, 0o600) }, filepath.Join(shifted, "locks", "X.lock"), false},
		"link":         {func() error { return os.Symlink("/nowhere", filepath.Join(home, c.LayerID, "diff1")) }, filepath.Join(home, c.LayerID, "diff1"), false},
		"attached":     {func() error { return os.MkdirAll(filepath.Join(w.run, "shiftoverlay", "attach", "X"), 0o700) }, filepath.Join(w.run, "shiftoverlay", "attach", "X"), false},
		"half record":  {func() error { return os.WriteFile(filepath.Join(home, c.LayerID, ".shiftoverlay.json-1"), nil, 0o600) }, filepath.Join(home, c.LayerID, ".shiftoverlay.json-1"), false},
		"probe": {func() error {
			dir := filepath.Join(w.graph, ".shiftoverlay-probe-1")
			return errors.Join(os.Mkdir(dir, 0o700), os.Chtimes(dir, old, old))
		}, filepath.Join(w.graph, ".shiftoverlay-probe-1"), false},
		"gone layer": {func() error { return os.CopyFS(filepath.Join(shifted, "goner", e.ID), os.DirFS(filepath.Dir(e.Path))) }, "goner/" + e.ID, false},
	} {
		list, code := w.check()
		require.Empty(t, list, name)
		require.Zero(t, code, name)
		require.NoError(t, k.do(), name)
		list, code = w.check()
		assert.Equal(t, exitFindings, code, name)
		assert.Contains(t, subjects(list), k.subject, name)
		for _, f := range list {
			assert.NotEmpty(t, f.Repair, name)
			assert.False(t, f.Repaired, name)
		}
		list, code = w.check("--repair")
		assert.Zero(t, code, "%s: %v", name, list)
	}
	list, _ := w.check()
	assert.Empty(t, list)
	assert.FileExists(t, filepath.Join(users, c.LayerID))

	// What only the operator can decide about.
	text, err := os.ReadFile(record)
	require.NoError(t, err)
	w.write(record, strings.ReplaceAll(string(text), "300000", "300001"))
	list, code := w.check("--repair")
	assert.Equal(t, exitFindings, code)
	require.Contains(t, subjects(list), record)
	w.write(record, "{")
	list, code = w.check("--repair")
	assert.Equal(t, exitFindings, code)
	require.Contains(t, subjects(list), record)
	w.write(record, string(text))
	require.NoError(t, os.RemoveAll(shifted))
	list, code = w.check()
	assert.Zero(t, code, "an entry that is gone is made anew")
	require.Len(t, list, 1)
	assert.True(t, list[0].Note)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestInfo checks what info says of engines, store and cache.
func TestInfo(t *testing.T) {
	w := newWorld(t, "metacopy")
	w.image("localhost/one:latest")
	w.ok("warm", "--uidmap", "0:300000:65536", "one")
	i := decode[info](w, "info")
	var engines []string
	for _, e := range i.Engines {
		engines = append(engines, e.Name)
		assert.Equal(t, e.Name == "metacopy", e.InUse)
		assert.NotEmpty(t, e.Reason)
		assert.Equal(t, !e.Works, e.Remedy != "", "a remedy for what does not work: %s", e.Name)
	}
	assert.Equal(t, []string{"idmap", "erofs", "metacopy", "copyup"}, engines)
	assert.Equal(t, w.graph, i.Store.GraphRoot)
	assert.Equal(t, w.conf, i.Store.ConfigFile)
	assert.Equal(t, 1, i.Cache.Entries)
	assert.Positive(t, i.Cache.Size)
	assert.Equal(t, int64(10<<30), i.Cache.MaxSize)
	assert.Equal(t, "1\n", w.ok("info", "--format", "{{.Store.Images}}"))
	assert.Contains(t, w.ok("info"), "* metacopy:")
	t.Setenv("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")
	assert.Contains(t, w.ok("info"), "remedy: take the variable")
}

// TestWrongStore checks what is said of stores that are not ours.
func TestWrongStore(t *testing.T) {
	w := newWorld(t, "metacopy")
	w.close()
	conf, err := os.ReadFile(w.conf)
	require.NoError(t, err)
	none := filepath.Join(w.dir, "none")
	r := w.try("", "--root", none, "ls")
	assert.Equal(t, exitOwnError, r.code)
	assert.Contains(t, r.errors, "no store of the driver shiftoverlay in "+none)
	assert.NoDirExists(t, none)
	w.write(w.conf, strings.Replace(string(conf), `"shiftoverlay"`, `"overlay"`, 1))
	r = w.try("", "ls")
	assert.Equal(t, exitOwnError, r.code)
	assert.Contains(t, r.errors, w.conf)
	assert.Contains(t, r.errors, `driver = "shiftoverlay"`)
	w.write(w.conf, string(conf))
	r = w.try("", "--storage-opt", "shiftoverlay.mount_program=/bin/true", "ls")
	assert.Equal(t, exitOwnError, r.code)
	assert.Contains(t, r.errors, "mount program")
}
