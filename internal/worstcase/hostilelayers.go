package worstcase

import (
	"context"
	"fmt"
	"slices"
)

// HostileLayers is the number of layers of a Hostile.
const HostileLayers = 3

// Hostile is a chain of layers that mean harm.
type Hostile struct {
	// Name is short, What says what is tried.
	Name, What string
	// Refused is the path for which whoever reads the layers by himself must
	// refuse them, because it has attributes that only the kernel may follow;
	// empty if there is no such path.
	Refused string
	// Reads are files with their contents, which nothing in the chain may
	// change, and Gone are names that must not be found. Gone may be listed all
	// the same: the kernel reads a directory that only one layer has as it is.
	Reads map[string]string
	Gone  []string

	add func(t *tree, outside string)
}

// Write writes the layers into empty folders, the uppermost first. outside is
// the absolute path of a folder with a file "secret", which is in none of them.
func (h Hostile) Write(ctx context.Context, folders []string, outside string) error {
	if len(folders) != HostileLayers {
		return fmt.Errorf("write hostile layers: %d folders for %d layers", len(folders), HostileLayers)
	}
	folders = slices.Clone(folders)
	slices.Reverse(folders)
	var t tree
	for layer := range HostileLayers {
		t.on(layer).dir(".")
	}
	h.add(&t, outside)
	if err := writeTo(ctx, folders, &t); err != nil {
		return fmt.Errorf("write hostile layers %s: %w", h.Name, err)
	}
	return nil
}

// HostileChains lists what is tried.
func HostileChains() []Hostile { return slices.Concat(redirects(), others()) }

// Overlay's attributes that lead from one file to another.
const (
	metacopyName = "trusted.overlay.metacopy"
	redirectName = "trusted.overlay.redirect"
)

// victims are what layers with redirects would like to lead to.
func victims(l on) map[string]string {
	l.dir("private", mode(0o700))
	l.file("private/key", "for root alone", mode(0o600))
	l.file("victim", "nobody's target", owner(5, 5))
	return map[string]string{"private/key": "for root alone", "victim": "nobody's target"}
}

func redirects() []Hostile {
	reads := victims((&tree{}).on(0))
	chain := func(name, what, refused string, add func(t *tree, outside string)) Hostile {
		return Hostile{Name: name, What: what, Refused: refused, Reads: reads, add: func(t *tree, outside string) {
			victims(t.on(0))
			add(t, outside)
		}}
	}
	return []Hostile{
		chain("redirect-file", "a file that shows another one's data to everybody", "open", func(t *tree, _ string) {
			t.on(1).sparse("open", 14, nil, mode(0o644), owner(1000, 1000), attr(metacopyName, ""), attr(redirectName, "/private/key"))
		}),
		chain("redirect-dir", "a directory that shows another one's files to everybody", "open", func(t *tree, _ string) {
			t.on(0).file("open/own", "x")
			t.on(1).dir("open", mode(0o755), attr(redirectName, "/private"))
		}),
		chain("redirect-below", "the same, below a directory of an upper layer", "open", func(t *tree, _ string) {
			t.on(0).file("open/own", "x")
			t.on(1).dir("open", attr(redirectName, "/private"))
			t.on(2).file("open/upper", "x")
		}),
		chain("redirect-outside", "a file that shows the data of a file outside of the layers", "open", func(t *tree, outside string) {
			t.on(1).sparse("open", 14, nil, attr(metacopyName, ""), attr(redirectName, "/../../../../../../../../../.."+outside+"/secret"))
		}),
		chain("redirect-relative", "the same, by a relative path", "sub/open", func(t *tree, _ string) {
			t.on(1).sparse("sub/open", 14, nil, attr(metacopyName, ""), attr(redirectName, "../../outside/secret"))
		}),
		chain("redirect-dir-outside", "a directory that shows one outside of the layers", "open", func(t *tree, outside string) {
			t.on(1).dir("open", attr(redirectName, "/../../../../../../../../../.."+outside))
		}),
		chain("metacopy", "a file that gives another one's data to somebody else", "taken", func(t *tree, _ string) {
			t.on(0).file("taken", "root's", mode(0o600))
			t.on(1).sparse("taken", 6, nil, owner(1000, 1000), mode(0o4755), attr(metacopyName, ""))
		}),
		chain("redirect-root", "a layer that is another one's subdirectory", ".", func(t *tree, _ string) {
			t.on(1).dir(".", attr(redirectName, "/private"))
		}),
	}
}

func others() []Hostile {
	return []Hostile{
		{
			Name: "link-over-dir", What: "a link to the outside in the place of a lower layer's directory",
			Reads: map[string]string{"own": "own"},
			add: func(t *tree, outside string) {
				t.on(0).file("etc/secret", "hidden")
				t.on(1).symlink("etc", outside)
				t.on(0).file("own", "own")
			},
		},
		{
			Name: "dir-over-link", What: "a link to the outside in the place of an upper layer's directory",
			Reads: map[string]string{"etc/own": "own"}, Gone: []string{"etc/secret", "etc/hidden", "rel/secret", "deep/etc/secret"},
			add: func(t *tree, outside string) {
				t.on(0).file("etc/hidden", "hidden")
				t.on(1).symlink("etc", outside)
				t.on(2).file("etc/own", "own")
				t.on(1).symlink("rel", "../outside")
				t.on(2).dir("rel")
				t.on(1).symlink("deep", outside+"/..")
				t.on(2).dir("deep/etc")
			},
		},
		{
			Name: "file-over-link", What: "a file where lower layers have a link to the outside and its target's name",
			Reads: map[string]string{"a/secret": "own", "b/secret": "own"},
			add: func(t *tree, outside string) {
				// With data-only lowers a file's data is found by its path.
				t.on(2).file("a/secret", "own", owner(1, 1))
				t.on(1).symlink("a", outside)
				t.on(0).file("b/secret", "own", owner(1, 1))
				t.on(2).dir("b", owner(2, 2))
			},
		},
		{
			Name: "ghosts", What: "whiteouts in a directory that only one layer has",
			Reads: map[string]string{"dir/own": "own"}, Gone: []string{"dir/gone", "gone"},
			add: func(t *tree, _ string) {
				t.on(0).file("dir/own", "own")
				t.on(0).whiteout("dir/gone")
				t.on(0).whiteout("gone")
			},
		},
		{
			Name: "unmarked-whiteouts", What: "whiteouts of the attribute form in directories that are not marked for them",
			Reads: map[string]string{"dir/own": "own", "dir/full": "full"}, Gone: []string{"dir/gone", "only/gone"},
			add: func(t *tree, _ string) {
				t.on(0).file("dir/own", "own")
				t.on(0).file("dir/gone", "gone")
				t.on(1).file("dir/gone", "", attr("trusted.overlay.whiteout", ""))
				t.on(1).file("dir/full", "full", attr("trusted.overlay.whiteout", ""))
				t.on(1).file("only/gone", "", attr("trusted.overlay.whiteout", "y"))
			},
		},
		{
			Name: "user-namespace", What: "overlay's attributes in the namespace that is not in use",
			Reads: map[string]string{"open": "own", "dir/shown": "shown", "empty": "", "secret": "hidden"},
			add: func(t *tree, outside string) {
				t.on(0).file("secret", "hidden")
				t.on(0).file("dir/shown", "shown")
				t.on(0).file("empty", "below")
				t.on(1).file("open", "own", attr("user.overlay.metacopy", ""), attr("user.overlay.redirect", "/secret"))
				t.on(1).dir("dir", attr("user.overlay.opaque", "y"), attr("user.overlay.redirect", "/.."+outside))
				t.on(1).file("empty", "", attr("user.overlay.whiteout", "y"))
			},
		},
	}
}
